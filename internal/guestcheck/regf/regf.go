// Package regf reads registry hives of Windows ("regf" files, versions 1.3 to
// 1.6; described by the libregf project and by Maxim Suhanov's "Windows registry
// file format specification").
//
// It promises: hostile hives end in an error, in bounded time and memory; an
// absent key or value is fs.ErrNotExist and nothing else is; names compare
// without case. Only what is asked for is read. Transaction logs (.LOG1, .LOG2)
// are not replayed; Dirty tells when they would count.
package regf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// ErrCorrupt says that there is no hive, or a damaged one.
var ErrCorrupt = errors.New("registry hive is damaged")

const (
	base       = 4096 // bytes of the header; cells are counted from its end
	maxHive    = 2 << 30
	maxCell    = 1 << 20
	maxData    = 16 << 20 // bytes of a value
	maxSubkeys = 1 << 20
	maxValues  = 1 << 16
	maxDepth   = 512 // Windows' own limit
	segment    = 16344
	short      = 1024 // bytes that hold a key with the longest name, and most values
)

var le = binary.LittleEndian

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Hive is an open hive, safe for concurrent use when its reader is.
type Hive struct {
	r     io.ReaderAt
	size  int64 // bytes of the cells
	minor uint32
	root  uint32
	dirty bool
}

// Open reads the header of a hive of size bytes.
func Open(r io.ReaderAt, size int64) (*Hive, error) {
	b := make([]byte, base+32)
	if size < base+32 || size > maxHive {
		return nil, corrupt("%d bytes", size)
	}
	if err := read(r, b, 0); err != nil {
		return nil, err
	}
	if string(b[:4]) != "regf" {
		return nil, corrupt("no signature")
	}
	sum := uint32(0)
	for k := 0; k < 508; k += 4 {
		sum ^= le.Uint32(b[k:])
	}
	switch sum {
	case 0:
		sum = 1
	case 0xFFFFFFFF:
		sum = 0xFFFFFFFE
	}
	if sum != le.Uint32(b[508:]) {
		return nil, corrupt("wrong checksum of the header")
	}
	h := &Hive{r: r, minor: le.Uint32(b[24:]), root: le.Uint32(b[36:]), size: int64(le.Uint32(b[40:])), dirty: le.Uint32(b[4:]) != le.Uint32(b[8:])}
	if major := le.Uint32(b[20:]); major != 1 || h.minor > 6 {
		return nil, corrupt("version %d.%d", major, h.minor)
	}
	if kind, format := le.Uint32(b[28:]), le.Uint32(b[32:]); kind != 0 || format != 1 {
		return nil, corrupt("file type %d, format %d", kind, format)
	}
	if string(b[base:base+4]) != "hbin" || h.size < 32 || h.size > size-base {
		return nil, corrupt("%d bytes of cells in a file of %d", h.size, size)
	}
	_, err := h.Root()
	return h, err
}

// Dirty tells whether changes were under way: the newest are in the transaction
// logs, and the hive shows the state before.
func (h *Hive) Dirty() bool { return h.dirty }

// cell reads the start of the cell at an offset that the hive names: at most
// limit bytes, so that many names of one large cell cost little.
func (h *Hive) cell(at uint32, sig string, least, limit int) ([]byte, error) {
	off := int64(at)
	if off < 32 || off%8 != 0 || off > h.size-8 {
		return nil, corrupt("a cell at %#x", at)
	}
	var head [4]byte
	if err := read(h.r, head[:], base+off); err != nil {
		return nil, err
	}
	n := -int64(int32(le.Uint32(head[:])))
	if n < 8 || n > maxCell || n > h.size-off {
		return nil, corrupt("the cell at %#x is free, or has %d bytes", at, n)
	}
	b := make([]byte, min(int(n)-4, limit))
	if err := read(h.r, b, base+off+4); err != nil {
		return nil, err
	}
	if len(b) < least || !strings.HasPrefix(string(b[:min(len(b), 2)]), sig) {
		return nil, corrupt("the cell at %#x is no %q", at, sig)
	}
	return b, nil
}

// Key is a key of a hive.
type Key struct {
	h    *Hive
	name string
	nk   []byte
}

// Root returns the hive's root key.
func (h *Hive) Root() (Key, error) { return h.key(h.root) }

func (h *Hive) key(at uint32) (Key, error) {
	b, err := h.cell(at, "nk", 76, short)
	if err != nil {
		return Key{}, err
	}
	n := int(le.Uint16(b[72:]))
	if 76+n > len(b) {
		return Key{}, corrupt("the name of the key at %#x", at)
	}
	return Key{h, text(b[76:76+n], le.Uint16(b[2:])&0x20 != 0), b}, nil
}

// Name is the key's name.
func (k Key) Name() string { return k.name }

// Key finds a key by its path from the root, with backslashes.
func (h *Hive) Key(path string) (Key, error) {
	k, err := h.Root()
	if err != nil {
		return Key{}, err
	}
	return k.Key(path)
}

// Key finds a key by its path from k, with backslashes; links are not followed.
func (k Key) Key(path string) (Key, error) {
	depth := 0
	for part := range strings.SplitSeq(path, `\`) {
		if part == "" {
			continue
		}
		if depth++; depth > maxDepth {
			return Key{}, fmt.Errorf("key %s: %w", path, fs.ErrNotExist)
		}
		var found *Key
		err := k.each(func(s Key) bool {
			if strings.EqualFold(s.name, part) {
				found = &s
			}
			return found == nil
		})
		if err != nil {
			return Key{}, fmt.Errorf("key %s: %w", path, err)
		}
		if found == nil {
			return Key{}, fmt.Errorf("key %s: %w", path, fs.ErrNotExist)
		}
		k = *found
	}
	return k, nil
}

// Subkeys returns the keys below, in the hive's order.
func (k Key) Subkeys() ([]Key, error) {
	var out []Key
	return out, k.each(func(s Key) bool {
		out = append(out, s)
		return true
	})
}

// each calls visit for the keys below until it returns false.
func (k Key) each(visit func(Key) bool) error {
	n := le.Uint32(k.nk[20:])
	if n == 0 {
		return nil
	}
	if n > maxSubkeys {
		return corrupt("%s has %d keys below", k.name, n)
	}
	at, err := k.h.list(le.Uint32(k.nk[28:]), true)
	if err != nil {
		return err
	}
	if len(at) != int(n) {
		return corrupt("%s has %d keys below, and a list of %d", k.name, n, len(at))
	}
	for _, a := range at {
		s, err := k.h.key(a)
		if err != nil {
			return err
		}
		if !visit(s) {
			return nil
		}
	}
	return nil
}

// list reads a list of keys; one of lists is allowed at the top only.
func (h *Hive) list(at uint32, top bool) ([]uint32, error) {
	b, err := h.cell(at, "", 4, 4)
	if err != nil {
		return nil, err
	}
	n, step := int(le.Uint16(b[2:])), 4
	kind := string(b[:2])
	if kind == "lf" || kind == "lh" {
		step = 8
	}
	if b, err = h.cell(at, kind, 4+n*step, 4+n*step); err != nil {
		return nil, err
	}
	var out []uint32
	for k := range n {
		v := le.Uint32(b[4+k*step:])
		switch {
		case kind == "lf" || kind == "lh" || kind == "li":
			out = append(out, v)
		case kind == "ri" && top:
			more, err := h.list(v, false)
			if err != nil {
				return nil, err
			}
			if out = append(out, more...); len(out) > maxSubkeys {
				return nil, corrupt("the list of keys at %#x is too long", at)
			}
		default:
			return nil, corrupt("a list of type %q at %#x", kind, at)
		}
	}
	return out, nil
}

// Type of a value.
type Type uint32

// The types that are told apart.
const (
	None     Type = 0
	String   Type = 1
	Expand   Type = 2
	Binary   Type = 3
	DWord    Type = 4
	DWordBE  Type = 5
	Link     Type = 6
	Multi    Type = 7
	QWord    Type = 11
	maxShown      = 1 << 20 // bytes that are made into text
)

// Value is a value of a key. The default value's name is empty.
type Value struct {
	Name string
	Type Type
	Data []byte
}

// Values returns all values of a key.
func (k Key) Values() ([]Value, error) {
	var out []Value
	total := 0
	return out, k.values(func(name string, vk []byte) (bool, error) {
		v, err := k.h.value(name, vk)
		if total += len(v.Data); total > 4*maxData {
			return false, corrupt("the values of %s are too large", k.name)
		}
		out = append(out, v)
		return err == nil, err
	})
}

// Value returns the value of that name.
func (k Key) Value(name string) (Value, error) {
	var out Value
	found := false
	err := k.values(func(n string, vk []byte) (more bool, err error) {
		if strings.EqualFold(n, name) {
			found = true
			out, err = k.h.value(n, vk)
		}
		return !found, err
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Value{}, fmt.Errorf("value %s of key %s: %w", name, k.name, err)
	}
	return out, nil
}

func (k Key) values(visit func(name string, vk []byte) (bool, error)) error {
	n := le.Uint32(k.nk[36:])
	if n == 0 {
		return nil
	}
	if n > maxValues {
		return corrupt("%s has %d values", k.name, n)
	}
	list, err := k.h.cell(le.Uint32(k.nk[40:]), "", int(4*n), int(4*n))
	if err != nil {
		return err
	}
	for j := range int(n) {
		at := le.Uint32(list[4*j:])
		b, err := k.h.cell(at, "vk", 20, short)
		if err != nil {
			return err
		}
		m := int(le.Uint16(b[2:]))
		if 20+m > len(b) {
			if b, err = k.h.cell(at, "vk", 20, 20+m); err != nil {
				return err
			}
		}
		if 20+m > len(b) {
			return corrupt("the name of a value of %s", k.name)
		}
		if more, err := visit(text(b[20:20+m], le.Uint16(b[16:])&1 != 0), b); err != nil || !more {
			return err
		}
	}
	return nil
}

func (h *Hive) value(name string, vk []byte) (Value, error) {
	v := Value{Name: name, Type: Type(le.Uint32(vk[12:]))}
	n, at := le.Uint32(vk[4:]), le.Uint32(vk[8:])
	if n&(1<<31) != 0 { // in the offset's own place
		if n &^= 1 << 31; n > 4 {
			return v, corrupt("value %s", name)
		}
		v.Data = append([]byte{}, vk[8:8+n]...)
		return v, nil
	}
	if n == 0 {
		return v, nil
	}
	if n > maxData {
		return v, corrupt("value %s has %d bytes", name, n)
	}
	if n > segment && h.minor > 3 {
		return h.big(v, int(n), at)
	}
	b, err := h.cell(at, "", int(n), int(n))
	if err != nil {
		return v, fmt.Errorf("value %s: %w", name, err)
	}
	v.Data = b[:n]
	return v, nil
}

// big reads a value that lies in segments.
func (h *Hive) big(v Value, n int, at uint32) (Value, error) {
	db, err := h.cell(at, "db", 8, 8)
	if err != nil {
		return v, fmt.Errorf("value %s: %w", v.Name, err)
	}
	count := int(le.Uint16(db[2:]))
	list, err := h.cell(le.Uint32(db[4:]), "", 4*count, 4*count)
	if err != nil {
		return v, fmt.Errorf("value %s: %w", v.Name, err)
	}
	for k := 0; k < count && len(v.Data) < n; k++ {
		want := min(segment, n-len(v.Data))
		b, err := h.cell(le.Uint32(list[4*k:]), "", want, want)
		if err != nil {
			return v, fmt.Errorf("value %s: %w", v.Name, err)
		}
		v.Data = append(v.Data, b[:want]...)
	}
	if len(v.Data) < n {
		return v, corrupt("value %s has %d bytes of %d", v.Name, len(v.Data), n)
	}
	return v, nil
}

// Text is the value of String and Expand, without the zero at its end.
func (v Value) Text() string {
	if v.Type != String && v.Type != Expand {
		return ""
	}
	s, _, _ := strings.Cut(text(v.Data[:min(len(v.Data), maxShown)&^1], false), "\x00")
	return s
}

// Strings is the value of Multi, without empty ones.
func (v Value) Strings() []string {
	if v.Type != Multi {
		return nil
	}
	var out []string
	for s := range strings.SplitSeq(text(v.Data[:min(len(v.Data), maxShown)&^1], false), "\x00") {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Uint is the value of the types that are numbers; ok is false for others.
func (v Value) Uint() (n uint64, ok bool) {
	switch {
	case v.Type == DWord && len(v.Data) >= 4:
		return uint64(le.Uint32(v.Data)), true
	case v.Type == DWordBE && len(v.Data) >= 4:
		return uint64(binary.BigEndian.Uint32(v.Data)), true
	case v.Type == QWord && len(v.Data) >= 8:
		return le.Uint64(v.Data), true
	}
	return 0, false
}

// text is Latin-1 or UTF-16.
func text(b []byte, latin bool) string {
	if latin {
		out := make([]rune, len(b))
		for k, c := range b {
			out[k] = rune(c)
		}
		return string(out)
	}
	out := make([]uint16, len(b)/2)
	for k := range out {
		out[k] = le.Uint16(b[2*k:])
	}
	return string(utf16.Decode(out))
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
