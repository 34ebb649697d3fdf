// Package vhdx reads and writes virtual hard disks in the VHDX format: fixed,
// dynamic and differencing files (.vhdx, .avhdx) and chains of them. The source
// of the format is [MS-VHDX], the published specification.
//
// It promises:
//   - A file that breaks a rule of the format is refused with an error that wraps
//     ErrDamaged and names file, structure and offset; an unknown required
//     structure is refused with ErrUnsupported. Hostile input costs bounded memory and time.
//   - Opening for reading never changes the file: a log that has to be replayed is
//     replayed in memory. Opening for writing replays it to the file first.
//   - A write that was followed by a successful Flush survives a crash at any later
//     moment. A crash leaves a file that opens: payload is durable before the block
//     table (BAT) and sector bitmap entries that make it visible, and these are
//     changed through the file's log, several at a time as one.
//   - Memory is bounded: block table and bitmaps are paged in, never loaded whole.
//
// Methods of File and Chain are safe for concurrent use. One handle at a time may
// have a file open for writing: the second gets ErrInUse (an advisory lock of the
// operating system, which ends with the process). Readers take no lock: a file that
// another handle writes must not be read, with one exception: Merge changes only what
// the child covers, so a chain through the child reads right while it is merged. (If the
// parent is itself a differencing file, a read at the moment when its structures change may fail.)
//
// Left undone: stale paths of a parent locator are not brought up to date on opening (see
// Reparent), and metadata items that this package does not know are neither copied into
// children nor moved by Merge.
//
// What is not promised: blocks whose space was freed by Zero are used again while
// the file stays open; later their space remains a hole in the file. Space that was
// allocated but not yet visible when a crash came is not found again either.
//
// # Layout of a file, [MS-VHDX] 2.1
//
// All numbers are little-endian. Log, metadata and BAT lie anywhere from 1 MiB on, aligned to 1 MiB.
//
//	0        file type identifier, 2.2.1: 0 "vhdxfile", 8 creator (UTF-16, 512 bytes)
//	64 KiB   header 1, 128 KiB header 2 (4 KiB each); the valid one with the higher sequence number counts
//	192 KiB  region table 1, 256 KiB region table 2 (64 KiB each); copies of each other
//	1 MiB    from here: log, metadata region, BAT region, payload blocks, sector bitmap blocks
//
// Header, 2.2.2:
//
//	0 "head"  4 CRC-32C of the 4 KiB with this field 0  8 SequenceNumber u64  16 FileWriteGuid  32 DataWriteGuid
//	48 LogGuid (not zero: replay)  64 LogVersion u16 (0)  66 Version u16 (1)  68 LogLength u32  72 LogOffset u64
//
// Region table, 2.2.3: 0 "regi"  4 CRC-32C of the 64 KiB  8 EntryCount u32 (≤ 2047), and from 16 on entries of
//
//	0 Guid  16 FileOffset u64  24 Length u32  28 bit 0 = Required
//
// Log entry, 2.3.1, in a ring of 4 KiB sectors; descriptors follow the header, data sectors follow these:
//
//	0 "loge"  4 CRC-32C of the entry  8 EntryLength u32  12 Tail u32  16 SequenceNumber u64  24 DescriptorCount u32
//	32 LogGuid  48 FlushedFileOffset u64  56 LastFileOffset u64
//	zero descriptor: 0 "zero"  8 ZeroLength u64  16 FileOffset u64  24 SequenceNumber u64
//	data descriptor: 0 "desc"  4 TrailingBytes  8 LeadingBytes  16 FileOffset u64  24 SequenceNumber u64
//	data sector:     0 "data"  4 SequenceHigh u32  8 data (4,084 bytes)  4092 SequenceLow u32
//
// Block allocation table, 2.5: u64 entries: bits 0–2 state, 20–63 file offset in MiB. After each chunk of
// 2^23·sector/block payload entries stands the entry of the sector bitmap block (1 MiB, least significant bit first).
//
// Metadata table, 2.6.1: 0 "metadata"  10 EntryCount u16 (≤ 2047), and from 32 on entries of
//
//	0 ItemId  16 Offset u32 (in the region, ≥ 64 KiB)  20 Length u32  24 bit 0 IsUser, 1 IsVirtualDisk, 2 IsRequired
//
// Parent locator, 2.6.2.6: 0 LocatorType  18 KeyValueCount u16, and from 20 on entries of
//
//	0 KeyOffset u32  4 ValueOffset u32  8 KeyLength u16  10 ValueLength u16 (UTF-16, offsets in the item)
package vhdx
