package mshrl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	idA = GUID{1, 2, 3}
	idB = GUID{4, 5, 6}
	dwg = GUID{7, 8, 9}
	now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
)

// disk is a fixed-size disk in memory, also a log file without name.
type disk []byte

func (d disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(d)) {
		return 0, fmt.Errorf("write of %d at %d of %d", len(p), off, len(d))
	}
	return copy(d[off:], p), nil
}

// recorder is a file that remembers what was done to it, and can fail.
type recorder struct {
	ops    []op
	failAt int // fails the operation of this number, 1-based
	fired  int
	closed int
}

type op struct {
	off  int64
	p    []byte
	sync bool
}

var errInjected = errors.New("injected")

func (r *recorder) do(o op) error {
	r.ops = append(r.ops, o)
	if len(r.ops) == r.failAt {
		r.fired++
		return errInjected
	}
	return nil
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	return len(p), r.do(op{off: off, p: bytes.Clone(p)})
}
func (r *recorder) Sync() error  { return r.do(op{sync: true}) }
func (r *recorder) Close() error { r.closed++; return nil }

// image applies operations.
func image(ops []op) []byte {
	var out []byte
	for _, o := range ops {
		if end := int(o.off) + len(o.p); end > len(out) {
			out = append(out, make([]byte, end-len(out))...)
		}
		copy(out[o.off:], o.p)
	}
	return out
}

type write struct {
	off int64
	p   []byte
}

// randomWrites makes writes of a disk of size bytes.
func randomWrites(rnd *rand.Rand, n int, size int64) []write {
	var list []write
	for range n {
		length := int64(1+rnd.IntN(16)) * 512
		if rnd.IntN(50) == 0 {
			length = rnd.Int64N(3 * 512) // none of a sector, or empty
		}
		off := rnd.Int64N((size-length)/512+1) * 512
		off = min(off, size-length)
		if len(list) > 0 && rnd.IntN(3) == 0 { // sequential
			if last := list[len(list)-1]; last.off+int64(len(last.p))+length <= size {
				off = last.off + int64(len(last.p))
			}
		}
		p := make([]byte, length)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		list = append(list, write{off, p})
	}
	return list
}

func header() Header {
	return Header{UniqueID: idB, PreviousID: idA, DataWriteGUID: dwg, Created: now, Creator: "hf", CreatorVer: 7}
}

// record writes a log and returns its operations.
func record(t *testing.T, h Header, list []write) *recorder {
	t.Helper()
	r := &recorder{}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(r, "test", h)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range list {
		if err := w.Append(x.off, x.p, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

func openBytes(p []byte) (*Log, error) { return OpenReader(bytes.NewReader(p), int64(len(p))) }

// sample is a small closed log.
func sample(t *testing.T) []byte {
	return image(record(t, header(), randomWrites(rand.New(rand.NewPCG(1, 1)), 5, 1<<20)).ops)
}

// TestModel: a log replayed on the base is the disk, its ranges are what was written, whatever
// the size of the blocks and however few marks there are.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		const size = 1<<18 + 77
		h := header()
		h.MetadataSize = []uint32{0, 512, 1024, 8192}[seed%4]
		list := randomWrites(rnd, rnd.IntN(400), size)
		p := image(record(t, h, list).ops)
		limit := []int{2, 4, 64, maxMarks}[rnd.IntN(4)]
		l, err := open(bytes.NewReader(p), int64(len(p)), "test", limit)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(l.marks) > limit {
			t.Errorf("seed %d: %d marks, more than %d", seed, len(l.marks), limit)
		}
		base, want := make(disk, size), make(disk, size)
		for i := range base {
			base[i] = byte(i * 7)
		}
		copy(want, base)
		touched := make([]bool, size)
		for _, x := range list {
			copy(want[x.off:], x.p)
			for i := range x.p {
				touched[x.off+int64(i)] = true
			}
		}
		if err := l.Replay(base, size); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(base, want) {
			t.Errorf("seed %d: the replayed disk differs", seed)
		}
		ranges, err := l.Changed()
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range ranges {
			if r.Len <= 0 || i > 0 && ranges[i-1].Off+ranges[i-1].Len >= r.Off {
				t.Fatalf("seed %d: range %v is out of order", seed, r)
			}
			for j := r.Off; j < r.Off+r.Len; j++ {
				if !touched[j] {
					t.Fatalf("seed %d: byte %d was not written", seed, j)
				}
				touched[j] = false
			}
		}
		if slices.Contains(touched, true) {
			t.Errorf("seed %d: a written byte is missing", seed)
		}
		n := 0
		if err := l.Entries(func(e Entry) error {
			for len(list[n].p) == 0 {
				n++
			}
			if e.Off != list[n].off || e.Len != int64(len(list[n].p)) || !e.Time.Equal(now.Add(time.Duration(n)*time.Second)) {
				t.Errorf("seed %d: entry %d is %+v", seed, n, e)
			}
			n++
			return nil
		}); err != nil {
			t.Error(err)
		}
		if h := l.Header(); !h.ChecksumOK || h.UniqueID != idB || h.DataWriteGUID != dwg || h.Creator != "hf" || h.CreatorVer != 7 || !h.Created.Equal(now) ||
			l.Size() != int64(len(p)) || h.CurrentSize != uint64(len(p)) {
			t.Errorf("header is %+v", h)
		}
	}
}

// TestPublishedExample checks layout and checksums against the numbers of [MS-HRL] 3.
func TestPublishedExample(t *testing.T) {
	t.Parallel()
	var p [512]byte
	blockHeader{back: 324096, valid: 58}.encode(p[:])
	if got := binary.LittleEndian.Uint32(p[12:]); got != 4294966991 {
		t.Errorf("checksum of the second metadata header is %d", got)
	}
	blockHeader{}.encode(p[:])
	if got := binary.LittleEndian.Uint32(p[12:]); got != 4294967295 {
		t.Errorf("checksum of the first metadata header is %d", got)
	}
	if b, err := decodeBlockHeader(p[:], 4096, 4096); err != nil || b.back != 0 || b.valid != 0 {
		t.Errorf("%+v, %v", b, err)
	}
	for _, c := range []struct {
		length, off int64
		time, sum   uint32
	}{
		{4096, 3626340352, 539842382, 4294966639}, {8192, 3626348544, 539842382, 4294966591}, {4096, 10188185600, 539842382, 4294966776},
		{31232, 3673764352, 539842382, 4294966413}, {512, 3676929536, 539842382, 4294966664}, {1024, 135266304, 539842382, 4294967024},
		{2048, 139466752, 539842381, 4294966933},
	} {
		e := Entry{Off: c.off, Len: c.length, Time: fromSeconds(c.time)}
		e.encode(p[:])
		if got := binary.LittleEndian.Uint32(p[8:]); got != c.sum {
			t.Errorf("entry at %d has checksum %d, not %d", c.off, got, c.sum)
		}
		if d, err := decodeEntry(p[:]); err != nil || d != e {
			t.Errorf("%+v became %+v, %v", e, d, err)
		}
	}
	// The lengths of its 58 writes: the data follows each other without padding.
	lengths := map[int]int{4096: 38, 8192: 8, 31232: 2, 512: 5, 16384: 1, 1024: 1, 12288: 1, 2048: 2}
	var list []write
	for length, n := range lengths {
		for range n {
			list = append(list, write{0, make([]byte, length)})
		}
	}
	q := image(record(t, header(), list).ops)
	l, err := openBytes(q)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := l.block(328192); l.Size() != 332288 || l.blocks != 2 || err != nil || b.back != 324096 || b.valid != 58 || l.Header().Entries != 58 {
		t.Errorf("the log has %d bytes and %d blocks, the last one %+v, %v", l.Size(), l.blocks, b, err)
	}
	if got := fromSeconds(539842380); !got.Equal(time.Date(2017, 2, 8, 4, 13, 0, 0, time.UTC)) {
		t.Errorf("time is %v", got)
	}
}

// TestBytes is the header's table, byte by byte ([MS-HRL] 2.2).
func TestBytes(t *testing.T) {
	t.Parallel()
	h := Header{Created: fromSeconds(0x01020304), LastModified: fromSeconds(0x05060708), Creator: "ct", CreatorVer: 0xA0000, CurrentSize: 0x1112131415161718,
		EOL: 0x2122232425262728, ErrorCode: -2, MetadataSize: 4096, Entries: 58, UniqueID: idA, PreviousID: idB, DataWriteGUID: dwg, OriginalSize: 3}
	p := h.encode()
	for _, c := range []struct {
		off  int
		want []byte
	}{
		{0, []byte("msctlog\x00")}, {8, []byte{0, 0, 2, 0}}, {12, []byte{4, 3, 2, 1}}, {16, []byte("ct\x00\x00")}, {20, []byte{0, 0, 10, 0}},
		{24, []byte{3, 0, 0, 0, 0, 0, 0, 0}}, {32, []byte{0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11}}, {44, []byte{0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21}},
		{52, []byte{0xfe, 0xff, 0xff, 0xff}}, {56, []byte{0, 16, 0, 0}}, {60, idA[:]}, {76, idB[:]}, {92, []byte{8, 7, 6, 5}},
		{96, []byte{58, 0, 0, 0, 0, 0, 0, 0}}, {104, make([]byte, 6)}, {110, dwg[:]}, {126, make([]byte, 3970)},
	} {
		if got := p[c.off : c.off+len(c.want)]; !bytes.Equal(got, c.want) {
			t.Errorf("at %d: %x, not %x", c.off, got, c.want)
		}
	}
	got, err := decodeHeader(p)
	h.ChecksumOK = true
	if err != nil || got != h {
		t.Errorf("read back as %+v, %v", got, err)
	}
	if s := (GUID{0xff, 0xc7, 0x2f, 0x57, 0x03, 0x1f, 0xab, 0x49, 0xb3, 0xc5, 0x30, 0xa6, 0x65, 0xb8, 0xe2, 0x0c}).String(); s != "572fc7ff-1f03-49ab-b3c5-30a665b8e20c" {
		t.Errorf("GUID is %s", s)
	}
}

// TestDataAndBlockPlaces: where things stand in a log of two entries.
func TestDataAndBlockPlaces(t *testing.T) {
	t.Parallel()
	p := image(record(t, header(), []write{{1000, []byte("abc")}, {5, []byte("de")}}).ops)
	if len(p) != 4096+4096+5+4096 || string(p[8192:8197]) != "abcde" || binary.LittleEndian.Uint64(p[8197:]) != 4096+5 {
		t.Fatalf("%d bytes, data %q", len(p), p[8192:8197])
	}
	// A log may also do without the empty first block.
	q := append(bytes.Clone(p[:4096]), p[8192:]...)
	blockHeader{valid: 2}.encode(q[4096+5:])
	binary.LittleEndian.PutUint64(q[44:], uint64(len(q)))
	l, err := openBytes(q)
	if err != nil {
		t.Fatal(err)
	}
	d := make(disk, 2000)
	if err := l.Replay(d, 2000); err != nil || string(d[5:7]) != "de" || string(d[1000:1003]) != "abc" {
		t.Error(err)
	}
	if l.Header().ChecksumOK {
		t.Error("a wrong header checksum is not reported")
	}
}

// TestCrash: whatever of the operations reached the disk, the log is refused or
// complete. Before a sync any of the unsynced operations may be lost, and the last one torn at a sector.
func TestCrash(t *testing.T) {
	t.Parallel()
	h := header()
	h.MetadataSize = 512
	list := randomWrites(rand.New(rand.NewPCG(5, 5)), 60, 1<<20)
	r := record(t, h, list)
	whole := image(r.ops)
	rnd := rand.New(rand.NewPCG(6, 6))
	outcome := map[string]int{}
	for n := 0; n <= len(r.ops); n++ {
		for try := range 20 {
			synced := 0
			for i, o := range r.ops[:n] {
				if o.sync {
					synced = i
				}
			}
			ops := slices.Clone(r.ops[:synced])
			for _, o := range r.ops[synced:n] {
				if try == 0 || rnd.IntN(2) == 0 {
					ops = append(ops, o)
				}
			}
			if n < len(r.ops) && try%2 == 1 && len(r.ops[n].p) > 512 { // torn
				o := r.ops[n]
				o.p = o.p[:512*(1+rnd.IntN(len(o.p)/512))]
				ops = append(ops, o)
			}
			p := image(ops)
			l, err := openBytes(p)
			switch {
			case errors.Is(err, ErrOpen):
				outcome["open"]++
			case errors.Is(err, ErrNotLog): // the header itself was lost
				outcome["none"]++
			case err != nil:
				t.Fatalf("after %d operations: %v", n, err)
			case !bytes.Equal(p[:l.Size()], whole):
				t.Fatalf("after %d operations: closed but not complete", n)
			default:
				outcome["complete"]++
			}
		}
	}
	if outcome["open"] == 0 || outcome["none"] == 0 || outcome["complete"] == 0 {
		t.Errorf("outcomes are %v: the crashes missed some", outcome)
	}
}

// TestWriterFails: the first failure of any operation stays, and the log stays open.
func TestWriterFails(t *testing.T) {
	t.Parallel()
	h := header()
	h.MetadataSize = 512
	list := randomWrites(rand.New(rand.NewPCG(7, 7)), 40, 1<<20)
	total := len(record(t, h, list).ops)
	for n := 1; n <= total; n++ {
		r := &recorder{failAt: n}
		w, err := newWriter(r, "test", h)
		if err == nil {
			for _, x := range list {
				if e := w.Append(x.off, x.p, now); e != nil && err == nil {
					err = e
				} else if err != nil && !errors.Is(e, errInjected) {
					t.Fatalf("operation %d: append after the failure says %v", n, e)
				}
			}
			e := w.Close()
			if err == nil {
				err = e
			}
			if !errors.Is(e, errInjected) || !errors.Is(w.Close(), errInjected) || r.closed != 1 {
				t.Errorf("operation %d: close says %v, %d times closed", n, e, r.closed)
			}
		}
		if !errors.Is(err, errInjected) || r.fired != 1 {
			t.Errorf("operation %d: %v, fired %d", n, err, r.fired)
		}
		p := image(r.ops[:n-1])
		if _, err := openBytes(p); n < total && !errors.Is(err, ErrOpen) && !errors.Is(err, ErrNotLog) {
			t.Errorf("operation %d: the log reads as %v", n, err)
		}
	}
}

// TestDamage: every flipped byte of what is covered is found, and none makes the reader panic.
func TestDamage(t *testing.T) {
	t.Parallel()
	good := sample(t)
	l, err := openBytes(good)
	if err != nil {
		t.Fatal(err)
	}
	last := l.Size() - 4096
	scratch := make(disk, 1<<20)
	check := func(p []byte) error {
		l, err := openBytes(p)
		if err != nil {
			return err
		}
		if !l.Header().ChecksumOK {
			return ErrCorrupt
		}
		return l.Replay(scratch, 1<<20)
	}
	for i := range good {
		if i >= 4096+32 && i < 8192 || i >= int(last)+32+5*32 {
			continue // slots without entry
		}
		if i > 126 && i < 4096 && i%13 != 0 {
			continue // enough of the reserved bytes
		}
		if i > 8192+600 && i < int(last) && i%97 != 0 {
			continue // enough of the data
		}
		p := bytes.Clone(good)
		p[i] ^= 1 << (i % 8)
		if check(p) == nil {
			t.Errorf("a flipped bit at %d is not found", i)
		}
	}
	for n := range len(good) {
		if n%61 == 0 {
			if _, err := openBytes(good[:n]); err == nil {
				t.Errorf("a log cut at %d opens", n)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := sample(t)
	le := binary.LittleEndian
	end := len(good) - 4096
	for name, c := range map[string]struct {
		change func(p []byte)
		want   error
	}{
		"open":           {func(p []byte) { le.PutUint64(p[44:], 0) }, ErrOpen},
		"failed":         {func(p []byte) { p[52] = 1 }, ErrFailed},
		"cookie":         {func(p []byte) { p[0] = 'M' }, ErrNotLog},
		"file type":      {func(p []byte) { p[104] = 1 }, ErrNotLog},
		"version 1":      {func(p []byte) { p[10] = 1 }, ErrVersion},
		"metadata size":  {func(p []byte) { le.PutUint32(p[56:], 100) }, ErrCorrupt},
		"huge metadata":  {func(p []byte) { le.PutUint32(p[56:], 1<<31) }, ErrCorrupt},
		"end in header":  {func(p []byte) { le.PutUint64(p[44:], 100) }, ErrCorrupt},
		"end in block":   {func(p []byte) { le.PutUint64(p[44:], 5000) }, ErrCorrupt},
		"end behind":     {func(p []byte) { le.PutUint64(p[44:], uint64(len(good)+1)) }, ErrCorrupt},
		"end negative":   {func(p []byte) { le.PutUint64(p[44:], 1<<63) }, ErrCorrupt},
		"entry count":    {func(p []byte) { p[96]++ }, ErrCorrupt},
		"block count":    {func(p []byte) { blockHeader{back: int64(end - 4096), valid: 128}.encode(p[end:]) }, ErrCorrupt},
		"own block":      {func(p []byte) { blockHeader{back: 1, valid: 5}.encode(p[end:]) }, ErrCorrupt},
		"back too short": {func(p []byte) { blockHeader{back: 512, valid: 5}.encode(p[end:]); copy(p[end-512:], p[4096:4096+32]) }, ErrCorrupt},
		"back in header": {func(p []byte) { blockHeader{back: int64(end), valid: 5}.encode(p[end:]) }, ErrCorrupt},
		"back negative":  {func(p []byte) { blockHeader{back: -4096, valid: 5}.encode(p[end:]) }, ErrCorrupt},
		"block checksum": {func(p []byte) { p[end+12]++ }, ErrCorrupt},
	} {
		p := bytes.Clone(good)
		c.change(p)
		_, err := openBytes(p)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, not %v", name, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		change func(p []byte)
		part   string
	}{
		"operation": {func(p []byte) { p[20] = 2; le.PutUint32(p[8:], checksum(p[:32], 8)) }, "operation 2"},
		"length":    {func(p []byte) { le.PutUint32(p[12:], 1); le.PutUint32(p[8:], checksum(p[:32], 8)) }, "ends at"},
		"older":     {func(p []byte) { le.PutUint32(p[16:], 1<<31); le.PutUint32(p[8:], checksum(p[:32], 8)) }, "older"},
		"offset":    {func(p []byte) { le.PutUint64(p, 1<<63-2); le.PutUint32(p[8:], checksum(p[:32], 8)) }, "writes at"},
		"disk":      {func(p []byte) { le.PutUint64(p, 1<<20); le.PutUint32(p[8:], checksum(p[:32], 8)) }, "of a disk of"},
	} {
		p := bytes.Clone(good)
		c.change(p[end+32:])
		l, err := openBytes(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Replay(make(disk, 1<<20), 1<<20); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Both ways to compute an entry's checksum are taken, and a data checksum of 0 is none.
	p := bytes.Clone(good)
	e := p[end+32 : end+64]
	le.PutUint32(e[8:], checksum(e, 8)+sum(e[21:25]))
	clear(p[end+64+21 : end+64+25])
	le.PutUint32(p[end+64+8:], checksum(p[end+64:end+96], 8))
	l, err := openBytes(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Replay(make(disk, 1<<20), 1<<20); err != nil {
		t.Error(err)
	}
	if h, err := ReadHeader(bytes.NewReader(good), int64(len(good))); err != nil || h.UniqueID != idB {
		t.Error(h, err)
	}
}

// TestClockGoesBack: a writer whose clock steps back makes a log that can be read.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	h := header()
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(r, "test", h)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{5, 3, -100, 7} {
		if err := w.Append(0, []byte("x"), now.Add(d*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := openBytes(image(r.ops))
	if err != nil {
		t.Fatal(err)
	}
	var got []time.Duration
	if err := l.Entries(func(e Entry) error { got = append(got, e.Time.Sub(now)/time.Second); return nil }); err != nil {
		t.Error(err)
	}
	if !slices.Equal(got, []time.Duration{5, 5, 5, 7}) || !l.Header().LastModified.Equal(now.Add(7*time.Second)) {
		t.Errorf("times are %v", got)
	}
}

// TestEmptyLog: a log that ends at its header has no writes.
func TestEmptyLog(t *testing.T) {
	t.Parallel()
	h := header()
	h.MetadataSize, h.EOL = 4096, headerSize
	l, err := openBytes(h.encode())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := l.Changed(); err != nil || len(r) != 0 {
		t.Error(r, err)
	}
}

func TestReadData(t *testing.T) {
	t.Parallel()
	big := make([]byte, 2*copyBuffer+1000)
	for i := range big {
		big[i] = byte(i * 31)
	}
	p := image(record(t, header(), []write{{512, big}}).ops)
	l, err := openBytes(p)
	if err != nil {
		t.Fatal(err)
	}
	var e Entry
	if err := l.Entries(func(x Entry) error { e = x; return nil }); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if err := l.ReadData(e, got, copyBuffer-50); err != nil || !bytes.Equal(got, big[copyBuffer-50:copyBuffer+50]) {
		t.Error(err)
	}
	if l.ReadData(e, got, e.Len-99) == nil || l.ReadData(e, got, -1) == nil {
		t.Error("data outside of the entry is read")
	}
	if err := l.Verify(e); err != nil {
		t.Error(err)
	}
	d := make(disk, len(big)+1024)
	if err := l.Replay(d, int64(len(d))); err != nil || !bytes.Equal(d[512:512+len(big)], big) {
		t.Error(err)
	}
	p[e.Location+copyBuffer+5]++
	clear(d)
	if err := l.Replay(d, int64(len(d))); !errors.Is(err, ErrCorrupt) || !bytes.Equal(d, make(disk, len(d))) {
		t.Errorf("damaged data: %v, or some of it was written", err)
	}
	if err := l.Entries(func(Entry) error { return errInjected }); err != errInjected {
		t.Errorf("the callback's error became %v", err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.hrl")
	w, err := Create(path, header())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, header()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a log is overwritten: %v", err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				if err := w.Append(int64(g*100+i)*512, bytes.Repeat([]byte{byte(g)}, 512), now); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := Open(path); !errors.Is(err, ErrOpen) {
		t.Errorf("an open log reads as %v", err)
	}
	if err := errors.Join(w.Close(), w.Close(), w.Abandon()); err != nil {
		t.Fatal(err)
	}
	if w.Append(0, []byte("x"), now) == nil {
		t.Error("a closed log takes writes")
	}
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := l.Changed(); err != nil || !slices.Equal(r, []Range{{0, 400 * 512}}) {
		t.Error(r, err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != w.Size() || l.Size() != w.Size() {
		t.Error("sizes differ", err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}

	lost := filepath.Join(dir, "b.hrl")
	if w, err = Create(lost, header()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Append(0, []byte("x"), now), w.Abandon(), w.Abandon()); err != nil {
		t.Error(err)
	}
	if _, err := Open(lost); !errors.Is(err, ErrOpen) {
		t.Errorf("an abandoned log reads as %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for name, h := range map[string]Header{"no id": {}, "creator": {UniqueID: idA, Creator: "holdfast"}, "metadata": {UniqueID: idA, MetadataSize: 5}} {
		bad := filepath.Join(dir, "bad.hrl")
		if _, err := Create(bad, h); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if _, err := os.Stat(bad); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s leaves a file", name)
		}
	}
	if w.Append(-1, nil, now) == nil {
		t.Error("a negative offset is taken")
	}
}

func TestChainAndDisk(t *testing.T) {
	t.Parallel()
	mk := func(id, prev GUID) *Log { return &Log{name: id.String(), h: Header{UniqueID: id, PreviousID: prev}} }
	a, b, c := mk(idA, GUID{}), mk(idB, idA), mk(GUID{9}, idB)
	if err := errors.Join(Chain(), Chain(b), Chain(a, b, c)); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]*Log{{a, c}, {b, a}, {a, b, b}, {a, a}, {mk(idA, idA), mk(idA, idA)}} {
		if err := Chain(bad...); !errors.Is(err, ErrChain) {
			t.Errorf("a broken chain of %d: %v", len(bad), err)
		}
	}
	l := &Log{h: Header{DataWriteGUID: dwg}}
	if err := l.CheckDisk(dwg); err != nil {
		t.Error(err)
	}
	if !errors.Is(l.CheckDisk(idA), ErrOffline) || !errors.Is((&Log{}).CheckDisk(GUID{}), ErrOffline) {
		t.Error("an offline change is not found")
	}
	for _, c := range []struct {
		log, disk int64
		want      bool
	}{{0, 100, false}, {49, 100, false}, {50, 100, true}, {1 << 62, 1<<63 - 1, true}, {1<<62 - 100, 1<<63 - 1, false}, {50, 101, true}, {0, 0, true}} {
		if got := ResyncDue(c.log, c.disk); got != c.want {
			t.Errorf("%d of %d: %v", c.log, c.disk, got)
		}
	}
	if (&Log{h: Header{EOL: 50}}).ResyncDue(200) || !(&Writer{pos: 100}).ResyncDue(200) {
		t.Error("methods differ from the function")
	}
}

func TestMerger(t *testing.T) {
	t.Parallel()
	var m merger
	for i := range int64(10) {
		if !m.add(Range{i * 10, 5}, 10) {
			t.Fatal("too early")
		}
	}
	for range 5 { // the same again is no more
		if !m.add(Range{20, 5}, 10) || !m.add(Range{3, 1}, 10) {
			t.Fatal("overlaps are counted")
		}
	}
	ok := true
	for i := range int64(12) {
		ok = ok && m.add(Range{1000 + i*10, 5}, 10)
	}
	if ok {
		t.Error("the limit does not hold")
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	for in, want := range map[time.Time]uint32{epoch: 0, epoch.Add(-time.Hour): 0, epoch.Add(90 * time.Second): 90, epoch.AddDate(500, 0, 0): 1<<32 - 1} {
		if got := seconds(in); got != want {
			t.Errorf("%v is %d", in, got)
		}
	}
}

func FuzzOpen(f *testing.F) {
	h := header()
	h.MetadataSize = 512
	if err := h.prepare(); err != nil {
		f.Fatal(err)
	}
	for n := range 3 {
		r := &recorder{}
		w, err := newWriter(r, "seed", h)
		for i, x := range randomWrites(rand.New(rand.NewPCG(1, 2)), n*9, 1<<16) {
			err = errors.Join(err, w.Append(x.off, x.p[:min(len(x.p), 40)], now.Add(time.Duration(i))))
		}
		if err = errors.Join(err, w.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(image(r.ops))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, limit := range []int{2, maxMarks} {
			l, err := open(bytes.NewReader(p), int64(len(p)), "fuzz", limit)
			if err != nil {
				continue
			}
			var total int64
			if l.Entries(func(e Entry) error {
				total += e.Len
				if e.Location < headerSize || e.Location+e.Len > l.Size() {
					t.Fatalf("data at %d of %d bytes in a log of %d", e.Location, e.Len, l.Size())
				}
				return nil
			}) == nil && total > int64(len(p)) {
				t.Fatalf("%d bytes of data in a file of %d", total, len(p))
			}
			_, _ = l.Changed()
			_ = l.Replay(discard{}, 1<<40)
		}
	})
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// BenchmarkReplay: a log of 64 MiB in entries of 4 KiB.
func BenchmarkReplay(b *testing.B) {
	r := &recorder{}
	h := header()
	if err := h.prepare(); err != nil {
		b.Fatal(err)
	}
	w, err := newWriter(r, "bench", h)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 4096)
	for i := range int64(16384) {
		if err := w.Append(i*8192, data, now); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	p := make(disk, w.Size())
	for _, o := range r.ops {
		copy(p[o.off:], o.p)
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		l, err := OpenReader(bytes.NewReader(p), int64(len(p)))
		if err == nil {
			err = l.Replay(discard{}, 1<<40)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

var _ io.WriterAt = discard{}
