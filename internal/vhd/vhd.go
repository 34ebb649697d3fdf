// Package vhd reads and writes fixed virtual hard disks in the older VHD format:
// raw data followed by a footer of 512 bytes. It is what an Azure page blob holds.
// The source of the format is Microsoft's "Virtual Hard Disk Image Format
// Specification" 1.0. Numbers are big-endian:
//
//	0 "conectix"  8 features u32 (2)  12 format version u32 (0x00010000)  16 data offset u64 (all ones: fixed)
//	24 timestamp u32 (seconds since 2000-01-01 UTC)  28 creator application [4]  32 creator version u32
//	36 creator host OS [4]  40 original size u64  48 current size u64  56 cylinders u16, heads u8, sectors u8
//	60 disk type u32 (2 fixed, 3 dynamic, 4 differencing)  64 checksum u32 (ones' complement of the sum of all
//	other bytes)  68 unique id [16]  84 saved state u8  85 reserved
//
// It promises: dynamic and differencing files are refused by name, never read as raw
// data; a footer with a wrong checksum or a size that the file does not have is damage.
package vhd

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// FooterSize is the size of the footer in bytes.
	FooterSize = 512
	// SectorSize is the only sector size of the format.
	SectorSize = 512
	// MaxSize is the largest disk in a VHD file, 2,040 GiB, in bytes: what Hyper-V and
	// others open. The limit comes from the 32-bit sector numbers of dynamic VHDs and from
	// the geometry; Create keeps to it.
	MaxSize = int64(2040) << 30
	// MaxFixed is the largest disk that a footer is made or read for, 32 TiB, in bytes:
	// the largest that Azure takes by upload. The format gives a fixed disk's size
	// 64 bits; above MaxSize the geometry says nothing, and such an image is for Azure
	// only.
	MaxFixed = int64(32) << 40
	// MaxPageBlob is the largest disk that fits with its footer into a page blob of
	// 8 TiB, in bytes.
	MaxPageBlob = int64(8)<<40 - mib

	mib = int64(1) << 20
)

var (
	// ErrNotVHD: there is no footer.
	ErrNotVHD = errors.New("vhd: not a VHD file")
	// ErrDamaged: the footer breaks a rule of the format.
	ErrDamaged = errors.New("vhd: the footer is damaged")
	// ErrDynamic: the file is a dynamic VHD; convert it to a fixed VHD or to VHDX.
	ErrDynamic = errors.New("vhd: a dynamic VHD is not supported: convert it to a fixed VHD or to VHDX")
	// ErrDifferencing: the file is a differencing VHD; merge it or convert it.
	ErrDifferencing = errors.New("vhd: a differencing VHD is not supported: merge it into its parent or convert it")
	// ErrSize: the size is not one that the format or Azure allows.
	ErrSize = errors.New("vhd: the size is not allowed")
)

// Kind is the disk type of the footer.
type Kind uint32

// Kinds of the format.
const (
	Fixed        Kind = 2
	Dynamic      Kind = 3
	Differencing Kind = 4
)

// epoch is the begin of the format's time.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Footer is what the footer of a VHD file tells.
type Footer struct {
	Size         int64 // bytes, a multiple of 512
	OriginalSize int64 // 0 = Size when encoding
	Time         time.Time
	// Creator is the creating application. When encoding, zero becomes "win ", the
	// code of Windows: by it readers know that Size counts, not the geometry
	// (qemu rounds the disk down to whole cylinders for codes it does not know).
	Creator        [4]byte
	CreatorVersion uint32
	HostOS         [4]byte // zero becomes "Wi2k", Windows
	ID             [16]byte
	Kind           Kind
	Saved          bool // saved state of the old products
}

// Geometry is the disk's geometry by the algorithm of the specification's appendix. It
// ends at 65535/16/255, which is 127.5 GiB: what is larger has that, too.
func Geometry(size int64) (cylinders uint16, heads, sectors uint8) {
	total := min(size/SectorSize, 65535*16*255)
	if total >= 65535*16*63 {
		return uint16(total / 255 / 16), 16, 255
	}
	spt, cth := int64(17), total/17
	h := max((cth+1023)/1024, 4)
	if cth >= h*1024 || h > 16 {
		spt, h, cth = 31, 16, total/31
	}
	if cth >= h*1024 {
		spt, h, cth = 63, 16, total/63
	}
	return uint16(cth / h), uint8(h), uint8(spt)
}

// EncodeFooter makes the footer of a fixed disk of at most MaxFixed bytes. A zero ID
// becomes a random one.
func EncodeFooter(f Footer) ([]byte, error) {
	if f.Size <= 0 || f.Size > MaxFixed || f.Size%SectorSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes", ErrSize, f.Size)
	}
	if f.Kind != 0 && f.Kind != Fixed {
		return nil, kindError(f.Kind)
	}
	if f.OriginalSize == 0 {
		f.OriginalSize = f.Size
	}
	if f.Creator == [4]byte{} {
		f.Creator = [4]byte{'w', 'i', 'n', ' '}
	}
	if f.CreatorVersion == 0 {
		f.CreatorVersion = 0x000a0000
	}
	if f.HostOS == [4]byte{} {
		f.HostOS = [4]byte{'W', 'i', '2', 'k'}
	}
	if f.ID == [16]byte{} {
		rand.Read(f.ID[:]) // never fails
		f.ID[6], f.ID[8] = f.ID[6]&0x0f|0x40, f.ID[8]&0x3f|0x80
	}
	be := binary.BigEndian
	b := make([]byte, FooterSize)
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)
	be.PutUint32(b[12:], 0x00010000)
	be.PutUint64(b[16:], ^uint64(0))
	be.PutUint32(b[24:], uint32(max(0, min(int64(^uint32(0)), int64(f.Time.Sub(epoch)/time.Second)))))
	copy(b[28:], f.Creator[:])
	be.PutUint32(b[32:], f.CreatorVersion)
	copy(b[36:], f.HostOS[:])
	be.PutUint64(b[40:], uint64(f.OriginalSize))
	be.PutUint64(b[48:], uint64(f.Size))
	c, h, s := Geometry(f.Size)
	be.PutUint16(b[56:], c)
	b[58], b[59] = h, s
	be.PutUint32(b[60:], uint32(Fixed))
	copy(b[68:], f.ID[:])
	if f.Saved {
		b[84] = 1
	}
	be.PutUint32(b[64:], checksum(b))
	return b, nil
}

// DecodeFooter reads a footer of any kind; see Footer.Kind. It fails with ErrNotVHD
// or ErrDamaged.
func DecodeFooter(b []byte) (Footer, error) {
	var f Footer
	if len(b) < FooterSize || string(b[:8]) != "conectix" {
		return f, ErrNotVHD
	}
	b = b[:FooterSize]
	be := binary.BigEndian
	if got, want := be.Uint32(b[64:]), checksum(b); got != want {
		return f, fmt.Errorf("%w: checksum %#x instead of %#x", ErrDamaged, got, want)
	}
	if v := be.Uint32(b[12:]); v>>16 != 1 {
		return f, fmt.Errorf("%w: format version %#x", ErrDamaged, v)
	}
	size, original := be.Uint64(b[48:]), be.Uint64(b[40:])
	if size == 0 || size > uint64(MaxFixed) || size%SectorSize != 0 || original > 1<<62 {
		return f, fmt.Errorf("%w: current size %d, original size %d", ErrDamaged, size, original)
	}
	f = Footer{Size: int64(size), OriginalSize: int64(original), Time: epoch.Add(time.Duration(be.Uint32(b[24:])) * time.Second),
		Creator: [4]byte(b[28:32]), CreatorVersion: be.Uint32(b[32:]), HostOS: [4]byte(b[36:40]), ID: [16]byte(b[68:84]),
		Kind: Kind(be.Uint32(b[60:])), Saved: b[84] != 0}
	if f.Kind < Fixed || f.Kind > Differencing {
		return f, fmt.Errorf("%w: disk type %d", ErrDamaged, f.Kind)
	}
	return f, nil
}

// checksum is the ones' complement of the sum of all bytes but the checksum's own.
func checksum(b []byte) uint32 {
	var sum uint32
	for i, v := range b {
		if i < 64 || i >= 68 {
			sum += uint32(v)
		}
	}
	return ^sum
}

func kindError(k Kind) error {
	switch k {
	case Dynamic:
		return ErrDynamic
	case Differencing:
		return ErrDifferencing
	}
	return fmt.Errorf("%w: disk type %d", ErrDamaged, k)
}

// File is a fixed VHD over any reader: offsets and sizes are those of the disk.
// It is as safe for concurrent use as what lies below.
type File struct {
	r      io.ReaderAt
	footer Footer
}

// Open reads the footer at the end of a file of the given size. Dynamic and
// differencing files give ErrDynamic and ErrDifferencing.
func Open(r io.ReaderAt, fileSize int64) (*File, error) {
	if fileSize < FooterSize {
		return nil, ErrNotVHD
	}
	b := make([]byte, FooterSize)
	if n, err := r.ReadAt(b, fileSize-FooterSize); n < len(b) {
		return nil, fmt.Errorf("vhd: read the footer at %d: %w", fileSize-FooterSize, err)
	}
	f, err := DecodeFooter(b)
	if err != nil {
		return nil, err
	}
	if f.Kind != Fixed {
		return nil, kindError(f.Kind)
	}
	if f.Size != fileSize-FooterSize {
		return nil, fmt.Errorf("%w: a disk of %d bytes in a file of %d", ErrDamaged, f.Size, fileSize)
	}
	return &File{r: r, footer: f}, nil
}

// Footer returns what the footer tells.
func (f *File) Footer() Footer { return f.footer }

// Size is the size of the disk in bytes.
func (f *File) Size() int64 { return f.footer.Size }

// ReadAt reads from the disk; the footer is not part of it. At the end it gives io.EOF.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(f.r, 0, f.footer.Size).ReadAt(p, off)
}

// Writer lets a disk's bytes through to what lies below and guards the footer.
type Writer struct {
	w    io.WriterAt
	size int64
}

// Create writes the footer of a new fixed disk behind its data and returns a writer for
// the data. What is below must read as zeros until it is written (a new file does). A
// disk above MaxSize is refused: Hyper-V would not open the file.
func Create(w io.WriterAt, f Footer) (*Writer, error) {
	if f.Size > MaxSize {
		return nil, fmt.Errorf("%w: a VHD file has at most %d bytes, not %d; use VHDX", ErrSize, MaxSize, f.Size)
	}
	b, err := EncodeFooter(f)
	if err != nil {
		return nil, err
	}
	if _, err := w.WriteAt(b, f.Size); err != nil {
		return nil, fmt.Errorf("vhd: write the footer at %d: %w", f.Size, err)
	}
	return &Writer{w: w, size: f.Size}, nil
}

// WriteAt writes to the disk. A write that leaves the disk is refused as a whole.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > w.size || int64(len(p)) > w.size-off {
		return 0, fmt.Errorf("%w: %d bytes at %d of a disk of %d", ErrSize, len(p), off, w.size)
	}
	return w.w.WriteAt(p, off)
}

// CheckAzure says whether Azure takes a disk of this size as a page blob with a fixed
// VHD: a whole number of MiB, at most MaxPageBlob. The error tells the next size that is
// allowed. Which sizes a VM may use is another question: some disk types end below.
func CheckAzure(size int64) error { return checkAzure(size, MaxPageBlob, "a page blob") }

// CheckAzureDisk says the same of a managed disk that is filled by upload: at most
// MaxFixed. (Azure also wants at least 20 MiB; the disk is made larger for that, not the
// source.)
func CheckAzureDisk(size int64) error { return checkAzure(size, MaxFixed, "a managed disk") }

func checkAzure(size, most int64, what string) error {
	if size > most {
		return fmt.Errorf("%w: %s takes a disk of at most %d bytes, not %d", ErrSize, what, most, size)
	}
	if size <= 0 || size%mib != 0 {
		return fmt.Errorf("%w: Azure wants whole MiB, %d bytes are not; the next size is %d", ErrSize, size, RoundAzure(size))
	}
	return nil
}

// RoundAzure rounds a size up to the whole MiB, at least one. What can't be rounded up
// becomes the last whole MiB, which no limit allows.
func RoundAzure(size int64) int64 {
	const last = (1<<63 - 1) / mib * mib
	if size > last {
		return last
	}
	return max(mib, (size+mib-1)/mib*mib)
}
