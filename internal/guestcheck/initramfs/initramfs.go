// Package initramfs looks into the archives that Linux boots from: cpio "newc"
// archives, one after another, plain or compressed (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst), such as early
// microcode followed by the compressed main archive.
//
// It promises: bounded memory (names that matter and small files only), bounded
// output of decompressors, and an error rather than half an answer.
package initramfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// ErrCorrupt says that the file is no archive, or a damaged one.
var ErrCorrupt = errors.New("initramfs is damaged")

// ErrTooLarge says that a limit of this package was met.
var ErrTooLarge = errors.New("initramfs is too large to look into")

const (
	maxOut     = 2 << 30   // bytes unpacked
	maxEntries = 1 << 20   // files
	maxDict    = 256 << 20 // memory of a decompressor
	maxName    = 4096
	maxPadding = 32 << 20
	maxBuiltin = 4 << 20
)

// Contents is what matters of an initramfs.
type Contents struct {
	Modules  map[string]bool // names of kernel modules with "_" for "-", without suffix
	Builtin  map[string]bool // modules that its modules.builtin lists
	Files    int
	Archives int
	Formats  []string // compression of each segment; "cpio" = none
	padding  int64
}

// Read looks into an initramfs.
func Read(r io.Reader) (Contents, error) {
	c := Contents{Modules: map[string]bool{}, Builtin: map[string]bool{}}
	left := int64(maxOut)
	err := c.segments(bufio.NewReaderSize(r, 64<<10), &left, false)
	if err == nil && c.Archives == 0 {
		err = fmt.Errorf("%w: no archive in it", ErrCorrupt)
	}
	return c, err
}

// segments reads archives until the end; what is compressed holds archives once more.
func (c *Contents) segments(r *bufio.Reader, left *int64, inner bool) error {
	for {
		b, err := r.Peek(1)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if b[0] == 0 { // padding
			if b, err = r.Peek(max(1, r.Buffered())); err != nil {
				return err
			}
			n := len(b) - len(bytes.TrimLeft(b, "\x00"))
			if c.padding += int64(n); c.padding > maxPadding {
				return fmt.Errorf("%w: over %d bytes of padding", ErrTooLarge, maxPadding)
			}
			if _, err := r.Discard(n); err != nil {
				return err
			}
			continue
		}
		head, err := r.Peek(6)
		if err != nil && err != io.EOF {
			return err
		}
		if string(head) == "070701" || string(head) == "070702" {
			c.Formats = append(c.Formats, "cpio")
			if err := c.archive(r, left); err != nil {
				return err
			}
			c.Archives++
			continue
		}
		if inner {
			return fmt.Errorf("%w: unknown bytes %x in a compressed archive", ErrCorrupt, head)
		}
		format, unpacked, err := decompressor(head, r)
		if err != nil {
			return err
		}
		c.Formats = append(c.Formats, format)
		err = c.segments(bufio.NewReaderSize(unpacked, 64<<10), left, true)
		if z, ok := unpacked.(io.Closer); ok {
			_ = z.Close() // what went wrong was seen while reading
		}
		if err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
	}
}

func decompressor(head []byte, r *bufio.Reader) (string, io.Reader, error) {
	starts := func(s string) bool { return bytes.HasPrefix(head, []byte(s)) }
	switch {
	case starts("\x1f\x8b"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return "gzip", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		z.Multistream(false)
		return "gzip", z, nil
	case starts("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDict), zstd.WithDecoderMaxWindow(maxDict), zstd.WithDecoderLowmem(true))
		if err != nil {
			return "zstd", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return "zstd", z.IOReadCloser(), nil
	case starts("\xfd7zXZ\x00"):
		if err := xzDict(r); err != nil {
			return "xz", nil, err
		}
		z, err := xz.ReaderConfig{SingleStream: true}.NewReader(r)
		if err != nil {
			return "xz", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return "xz", z, nil
	case starts("\x5d\x00\x00"):
		z, err := lzma.ReaderConfig{DictCap: maxDict}.NewReader(r)
		if err != nil {
			return "lzma", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return "lzma", z, nil
	case starts("BZh"):
		return "bzip2", bzip2.NewReader(r), nil
	case starts("\x02\x21\x4c\x18"), starts("\x04\x22\x4d\x18"):
		return "lz4", lz4.NewReader(r), nil
	case starts("\x89LZO"):
		z, err := newLZO(r)
		return "lzo", z, err
	}
	return "", nil, fmt.Errorf("%w: unknown bytes %x", ErrCorrupt, head)
}

// xzDict refuses a first block whose dictionary is beyond the limit (The .xz
// File Format 1.1.0, 3.1 and 5.3.1): the decoder would allocate it.
func xzDict(r *bufio.Reader) error {
	b, err := r.Peek(12 + 4 + 64)
	if len(b) < 18 {
		return fmt.Errorf("%w: xz header: %w", ErrCorrupt, err)
	}
	p := b[12:] // block header: size, flags, [sizes], filters
	flags := p[1]
	p = p[2:]
	for _, has := range []byte{0x40, 0x80} {
		for flags&has != 0 && len(p) > 0 {
			last := p[0] < 0x80
			p = p[1:]
			if last {
				break
			}
		}
	}
	for range flags&3 + 1 {
		if len(p) < 3 {
			return nil
		}
		id, n := p[0], int(p[1])
		if id == 0x21 && n == 1 && p[2] > 32 { // (2|n&1) << (n/2+11): 33 is over 256 MiB
			return fmt.Errorf("%w: dictionary of the xz stream", ErrTooLarge)
		}
		if len(p) < 2+n {
			return nil
		}
		p = p[2+n:]
	}
	return nil
}

// archive reads one cpio archive up to its trailer.
func (c *Contents) archive(r *bufio.Reader, left *int64) error {
	head := make([]byte, 110)
	pos := int64(0)
	take := func(n int64) error {
		if *left -= n; *left < 0 {
			return ErrTooLarge
		}
		pos += n
		return nil
	}
	skip := func(n int64) error {
		if err := take(n); err != nil {
			return err
		}
		for n > 0 {
			d, err := r.Discard(int(min(n, 1<<20)))
			if n -= int64(d); err != nil {
				return broken(err)
			}
		}
		return nil
	}
	for {
		if err := take(110); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, head); err != nil {
			return broken(err)
		}
		if string(head[:5]) != "07070" {
			return fmt.Errorf("%w: cpio header", ErrCorrupt)
		}
		size, err1 := strconv.ParseUint(string(head[54:62]), 16, 32)
		nameLen, err2 := strconv.ParseUint(string(head[94:102]), 16, 32)
		if err := errors.Join(err1, err2); err != nil || nameLen == 0 || nameLen > maxName {
			return fmt.Errorf("%w: cpio header", ErrCorrupt)
		}
		raw := make([]byte, nameLen)
		if err := take(int64(nameLen)); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, raw); err != nil {
			return broken(err)
		}
		if err := skip(-pos & 3); err != nil {
			return err
		}
		name := strings.TrimRight(string(raw), "\x00")
		if name == "TRAILER!!!" {
			return nil
		}
		if c.Files++; c.Files > maxEntries {
			return ErrTooLarge
		}
		if path.Base(name) == "modules.builtin" && size <= maxBuiltin {
			body := make([]byte, size)
			if err := take(int64(size)); err != nil {
				return err
			}
			if _, err := io.ReadFull(r, body); err != nil {
				return broken(err)
			}
			c.Builtin = Builtin(body)
			size = 0
		}
		c.name(name)
		if err := skip(int64(size)); err != nil {
			return err
		}
		if err := skip(-pos & 3); err != nil {
			return err
		}
	}
}

func broken(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends too early", ErrCorrupt)
	}
	return err
}

func (c *Contents) name(name string) {
	if m := Module(name); m != "" {
		c.Modules[m] = true
	}
}

// Module returns the module's name of a file such as kernel/drivers/hv/hv-vmbus.ko.xz, else "".
func Module(name string) string {
	base := path.Base(name)
	for _, s := range []string{".gz", ".xz", ".zst"} {
		base = strings.TrimSuffix(base, s)
	}
	m, ok := strings.CutSuffix(base, ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(m, "-", "_")
}

// Builtin reads a modules.builtin file.
func Builtin(b []byte) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if m := Module(strings.TrimSpace(line)); m != "" {
			out[m] = true
		}
	}
	return out
}

// Names returns the modules in order.
func (c Contents) Names() []string {
	out := make([]string, 0, len(c.Modules))
	for m := range c.Modules {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}

// lzop unpacks the container that lzop writes: a header, then blocks of at most 64 MiB.
type lzop struct {
	r     *bufio.Reader
	flags uint32
	out   []byte
	done  bool
}

func newLZO(r *bufio.Reader) (io.Reader, error) {
	be := binary.BigEndian
	h := make([]byte, 9+2+2+2+1+1+4)
	if _, err := io.ReadFull(r, h); err != nil {
		return nil, broken(err)
	}
	z := &lzop{r: r, flags: be.Uint32(h[17:])}
	rest := 4 + 4 + 4 // mode, two times
	if z.flags&0x800 != 0 {
		rest += 4 // filter
	}
	if _, err := r.Discard(rest); err != nil {
		return nil, broken(err)
	}
	n, err := r.ReadByte()
	if err != nil {
		return nil, broken(err)
	}
	if _, err := r.Discard(int(n) + 4); err != nil { // name, checksum of the header
		return nil, broken(err)
	}
	if z.flags&0x40 != 0 { // extra field
		return nil, fmt.Errorf("%w: lzop extra field", ErrCorrupt)
	}
	return z, nil
}

func (z *lzop) word() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(z.r, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

// Read unpacks the next bytes.
func (z *lzop) Read(p []byte) (int, error) {
	for len(z.out) == 0 {
		if z.done {
			return 0, io.EOF
		}
		if err := z.block(); err != nil {
			return 0, broken(err)
		}
	}
	n := copy(p, z.out)
	z.out = z.out[n:]
	return n, nil
}

func (z *lzop) block() error {
	full, err := z.word()
	if err != nil {
		return err
	}
	if full == 0 {
		z.done = true
		return nil
	}
	packed, err := z.word()
	if err != nil {
		return err
	}
	if full > 64<<20 || packed > full {
		return fmt.Errorf("%w: lzop block of %d bytes", ErrTooLarge, full)
	}
	sums := 0
	for _, bit := range []uint32{0x1, 0x100} { // of the unpacked bytes: Adler-32, CRC-32
		if z.flags&bit != 0 {
			sums += 4
		}
	}
	if packed < full {
		for _, bit := range []uint32{0x2, 0x200} { // of the packed bytes
			if z.flags&bit != 0 {
				sums += 4
			}
		}
	}
	if _, err := z.r.Discard(sums); err != nil {
		return err
	}
	src := make([]byte, packed)
	if _, err := io.ReadFull(z.r, src); err != nil {
		return err
	}
	if packed == full {
		z.out = src
		return nil
	}
	z.out = make([]byte, full)
	n, err := lzo.Decompress(src, z.out)
	if err != nil || n != int(full) {
		return fmt.Errorf("%w: lzop block: %v", ErrCorrupt, err)
	}
	return nil
}
