// Package layout reads partition tables and recognises what a volume holds by
// its signature. It owns MBR (with extended partitions) and GPT (UEFI
// specification 2.10, chapter 5) in their read-only forms.
//
// It promises: hostile tables end in an error or a note, in bounded time and
// memory; what contradicts itself is told in Table.Notes.
package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// ErrCorrupt says that a table is there and can't be used.
var ErrCorrupt = errors.New("partition table is damaged")

// Kind of a partition table.
type Kind string

// The kinds.
const (
	None Kind = "none" // the whole disk is one volume, or empty
	MBR  Kind = "mbr"
	GPT  Kind = "gpt"
)

// The partition types that matter for booting: GPT type GUIDs in upper case, MBR types as two digits.
const (
	TypeESP         = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	TypeBIOSBoot    = "21686148-6449-6E6F-744E-656564454649"
	TypeLDMMetadata = "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3"
	TypeLDMData     = "AF9B60A0-1431-4F62-BC68-3311714A69AD"
	TypeSpaces      = "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"
	TypeMBRLDM      = "42"
	TypeMBRESP      = "ef"
)

// Partition is a range of a disk.
type Partition struct {
	Index  int    `json:"index"` // as Linux counts: sda1 is 1
	Start  int64  `json:"start"` // bytes
	Size   int64  `json:"size"`  // bytes
	Type   string `json:"type"`
	Name   string `json:"name,omitempty"`
	UUID   string `json:"uuid,omitempty"` // PARTUUID, lower case
	Active bool   `json:"active,omitempty"`
}

// Table is what a disk says of its partitions.
type Table struct {
	Kind       Kind        `json:"kind"`
	Sector     int64       `json:"sector"`
	Partitions []Partition `json:"partitions"`
	BootCode   bool        `json:"bootCode"` // the first sector holds code
	Hybrid     bool        `json:"hybrid,omitempty"`
	Notes      []string    `json:"notes,omitempty"` // contradictions, in words
}

const maxLogical = 128

// Read reads the partition table of a disk of size bytes.
func Read(r io.ReaderAt, size int64) (Table, error) {
	t := Table{Kind: None, Sector: 512}
	if size < 512 {
		return t, nil
	}
	b := make([]byte, 512)
	if err := read(r, b, 0); err != nil {
		return t, fmt.Errorf("read the first sector: %w", err)
	}
	signed := b[510] == 0x55 && b[511] == 0xAA
	t.BootCode = signed && slices.ContainsFunc(b[:440], func(c byte) bool { return c != 0 })
	entries := mbrEntries(b)
	protective := slices.ContainsFunc(entries, func(e mbrEntry) bool { return e.kind == 0xEE })
	for _, sector := range []int64{512, 4096} {
		done, err := t.gpt(r, size, sector, signed && protective)
		if err != nil {
			return t, err
		}
		if done {
			t.Hybrid = slices.ContainsFunc(entries, func(e mbrEntry) bool { return e.kind != 0xEE && e.kind != 0 && e.count > 0 })
			if t.Hybrid {
				t.note("the MBR beside the GPT names partitions of its own (hybrid); tools disagree on which one counts")
			}
			return t, nil
		}
	}
	if signed && protective && len(entries) == 1 {
		return t, fmt.Errorf("%w: the MBR announces a GPT, and neither of its two headers can be used", ErrCorrupt)
	}
	if !signed || !plausible(entries, size) || volume(b) {
		return t, nil
	}
	t.Kind = MBR
	t.mbr(r, entries, binary.LittleEndian.Uint32(b[440:]), size)
	t.overlaps(size)
	return t, nil
}

func (t *Table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// volume tells a file system's first sector, which ends in 55 AA too.
func volume(b []byte) bool {
	return bytes.Equal(b[3:11], []byte("NTFS    ")) || bytes.Equal(b[54:57], []byte("FAT")) || bytes.Equal(b[82:85], []byte("FAT")) ||
		bytes.Equal(b[3:11], []byte("-FVE-FS-")) || bytes.Equal(b[3:11], []byte("EXFAT   "))
}

type mbrEntry struct {
	slot         int
	status, kind byte
	start, count int64
}

func mbrEntries(b []byte) []mbrEntry {
	var out []mbrEntry
	for k := range 4 {
		e := b[446+16*k:]
		m := mbrEntry{k, e[0], e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))}
		if m.kind != 0 {
			out = append(out, m)
		}
	}
	return out
}

func plausible(entries []mbrEntry, size int64) bool {
	for _, e := range entries {
		if e.status&0x7F != 0 || e.start == 0 || e.start*512 >= size {
			return false
		}
	}
	return true
}

func extended(kind byte) bool { return kind == 0x05 || kind == 0x0F || kind == 0x85 }

func (t *Table) mbr(r io.ReaderAt, entries []mbrEntry, id uint32, size int64) {
	add := func(index int, e mbrEntry, base int64) {
		t.Partitions = append(t.Partitions, Partition{Index: index, Start: (base + e.start) * 512, Size: e.count * 512,
			Type: fmt.Sprintf("%02x", e.kind), UUID: fmt.Sprintf("%08x-%02x", id, index), Active: e.status == 0x80})
	}
	active := 0
	for _, e := range entries {
		if e.status == 0x80 {
			active++
		}
		if !extended(e.kind) {
			add(e.slot+1, e, 0)
			continue
		}
		// A chain of tables, each with one partition and the way to the next.
		seen := map[int64]bool{}
		for at, index := e.start, 5; ; index++ {
			b := make([]byte, 512)
			if seen[at] || index > 4+maxLogical || at*512 > size-512 {
				t.note("the chain of logical partitions is broken at sector %d", at)
				break
			}
			seen[at] = true
			if err := read(r, b, at*512); err != nil || b[510] != 0x55 || b[511] != 0xAA {
				t.note("the chain of logical partitions is broken at sector %d", at)
				break
			}
			next := int64(0)
			for _, l := range mbrEntries(b) {
				switch {
				case extended(l.kind):
					next = e.start + l.start
				case l.count > 0:
					add(index, l, at)
				}
			}
			if next == 0 {
				break
			}
			at = next
		}
	}
	if active > 1 {
		t.note("%d partitions are marked active; the boot code starts none", active)
	}
}

// gpt reads a GPT for one sector size; expected says that the MBR announces it.
func (t *Table) gpt(r io.ReaderAt, size, sector int64, expected bool) (bool, error) {
	if size < 6*sector {
		return false, nil
	}
	main, mainErr := gptHeader(r, sector, size, sector, 1)
	if main == nil && mainErr == nil && !expected { // at most the backup of a table that was removed
		return false, nil
	}
	back, backErr := gptHeader(r, sector, size, size-sector, size/sector-1)
	for _, err := range []error{mainErr, backErr} {
		var device *readError
		if errors.As(err, &device) {
			return false, device.err
		}
	}
	if main == nil && mainErr == nil && back == nil && backErr == nil {
		return false, nil
	}
	if main == nil && back == nil {
		if !expected {
			return false, nil
		}
		return false, fmt.Errorf("%w: main header: %w; backup header: %w", ErrCorrupt, orAbsent(mainErr), orAbsent(backErr))
	}
	t.Kind, t.Sector = GPT, sector
	parts := main
	if main == nil {
		parts = back
		t.note("the main GPT header can't be used (%v); the backup at the disk's end is", orAbsent(mainErr))
	}
	if back == nil {
		t.note("the backup GPT header at the disk's end can't be used (%v); the disk was grown, or damaged", orAbsent(backErr))
	}
	if !expected {
		t.note("there is no protective MBR; some firmware takes the disk for empty")
	}
	t.Partitions = parts
	t.overlaps(size)
	return true, nil
}

// readError is a device that failed: then nothing is known of the table.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

func orAbsent(err error) error {
	if err == nil {
		return errors.New("there is none")
	}
	return err
}

// gptHeader returns nil, nil where there is no header.
func gptHeader(r io.ReaderAt, sector, size, at, lba int64) ([]Partition, error) {
	le := binary.LittleEndian
	b := make([]byte, sector)
	if err := read(r, b, at); err != nil {
		return nil, &readError{err}
	}
	if string(b[:8]) != "EFI PART" {
		return nil, nil
	}
	n := int64(le.Uint32(b[12:]))
	if n < 92 || n > sector {
		return nil, fmt.Errorf("header of %d bytes", n)
	}
	want := le.Uint32(b[16:])
	le.PutUint32(b[16:], 0)
	if crc32.ChecksumIEEE(b[:n]) != want {
		return nil, errors.New("wrong checksum of the header")
	}
	if int64(le.Uint64(b[24:])) != lba {
		return nil, fmt.Errorf("header says sector %d, not %d", le.Uint64(b[24:]), lba)
	}
	tableAt, count, each := le.Uint64(b[72:]), int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	if each < 128 || each > 4096 || each&(each-1) != 0 || count < 1 || count*each > 1<<20 || tableAt >= uint64(size/sector) {
		return nil, fmt.Errorf("%d entries of %d bytes at sector %d", count, each, tableAt)
	}
	table := make([]byte, count*each)
	if err := read(r, table, int64(tableAt)*sector); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("the entries lie past the disk's end")
		}
		return nil, &readError{err}
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(b[88:]) {
		return nil, errors.New("wrong checksum of the entries")
	}
	out := []Partition{}
	for k := range count {
		e := table[k*each:]
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		if last < first || last >= uint64(size/sector) {
			return nil, fmt.Errorf("partition %d at sectors %d to %d", k+1, first, last)
		}
		name := make([]uint16, 36)
		for c := range name {
			name[c] = le.Uint16(e[56+2*c:])
		}
		if z := slices.Index(name, 0); z >= 0 {
			name = name[:z]
		}
		out = append(out, Partition{Index: int(k) + 1, Start: int64(first) * sector, Size: int64(last-first+1) * sector,
			Type: guid(e, "%08X-%04X-%04X-%X-%X"), UUID: guid(e[16:], "%08x-%04x-%04x-%x-%x"), Name: string(utf16.Decode(name)), Active: e[48]&4 != 0})
	}
	return out, nil
}

func guid(b []byte, format string) string {
	le := binary.LittleEndian
	return fmt.Sprintf(format, le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

func (t *Table) overlaps(size int64) {
	byStart := slices.Clone(t.Partitions)
	slices.SortFunc(byStart, func(a, b Partition) int { return int(min(1, max(-1, a.Start-b.Start))) })
	end, before := int64(0), 0
	for _, p := range byStart {
		if p.Start < end {
			t.note("partitions %d and %d overlap", before, p.Index)
		}
		if p.Start+p.Size > size {
			t.note("partition %d ends %d bytes after the disk's end", p.Index, p.Start+p.Size-size)
		}
		if p.Start+p.Size > end {
			end, before = p.Start+p.Size, p.Index
		}
	}
}

func read(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Content of a volume.
type Content string

// The contents that are told apart.
const (
	Unknown   Content = ""
	Ext       Content = "ext"
	XFS       Content = "xfs"
	Btrfs     Content = "btrfs"
	FAT       Content = "vfat"
	NTFS      Content = "ntfs"
	ReFS      Content = "refs"
	BitLocker Content = "bitlocker"
	LUKS      Content = "luks"
	LVM       Content = "lvm"
	RAID      Content = "linux-raid"
	Swap      Content = "swap"
	ExFAT     Content = "exfat"
)

var signatures = []struct {
	off  int64
	sig  string
	what Content
}{
	{3, "-FVE-FS-", BitLocker}, {3, "NTFS    ", NTFS}, {3, "EXFAT   ", ExFAT}, {3, "ReFS\x00", ReFS},
	{0, "LUKS\xba\xbe", LUKS}, {0, "XFSB", XFS}, {0x438, "\x53\xef", Ext},
	{512, "LABELONE", LVM}, {0, "LABELONE", LVM}, {1024, "LABELONE", LVM}, {1536, "LABELONE", LVM},
	{4096, "\xfc\x4e\x2b\xa9", RAID}, {0, "\xfc\x4e\x2b\xa9", RAID}, {4086, "SWAPSPACE2", Swap}, {65600, "_BHRfS_M", Btrfs},
	{54, "FAT12", FAT}, {54, "FAT16", FAT}, {82, "FAT32", FAT},
}

// Identify says what a volume of size bytes holds, by its signature.
func Identify(r io.ReaderAt, size int64) (Content, error) {
	b := make([]byte, min(size, 66<<10))
	if err := read(r, b, 0); err != nil {
		return Unknown, err
	}
	for _, s := range signatures {
		if end := s.off + int64(len(s.sig)); end <= int64(len(b)) && string(b[s.off:end]) == s.sig {
			return s.what, nil
		}
	}
	return Unknown, nil
}

// SwapUUID returns the UUID of a Linux swap area with 4 KiB pages.
func SwapUUID(r io.ReaderAt) (string, error) {
	u := make([]byte, 16)
	err := read(r, u, 1024+12)
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), err
}
