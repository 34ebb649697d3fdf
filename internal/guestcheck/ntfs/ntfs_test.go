package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

func open(t testing.TB, img string) *FS {
	t.Helper()
	dev, size := imagetest.Open(t, img)
	f, err := Open(dev, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t testing.TB, f *FS, name string) []byte {
	t.Helper()
	r, err := f.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// strided is what a file with holes holds.
func strided(data []byte, stride int) []byte {
	pieces := (len(data) + 4095) / 4096
	out := make([]byte, (pieces-1)*stride+len(data)-(pieces-1)*4096)
	for k := range pieces {
		copy(out[k*stride:], data[k*4096:min(len(data), (k+1)*4096)])
	}
	return out
}

func sample() []imagetest.NTFSFile {
	long := strings.Repeat("long name ", 24) + "ü€"
	files := []imagetest.NTFSFile{
		{Name: "small.txt", Data: []byte("resident")}, {Name: "empty"}, {Name: "Ünïcode Ж 漢.txt", Data: []byte("u")},
		{Name: "large.bin", Data: imagetest.Pattern(1, 3<<20+17)},
		{Name: strings.Repeat("d/", 40) + long, Data: []byte("deep")},
		{Name: "holes.bin", Data: imagetest.Pattern(2, 200*4096+5), Stride: 128 << 10},
		{Name: "fragments.bin", Data: imagetest.Pattern(3, 900*4096+99), Stride: 8192},
		{Name: "packed/", Compressed: true},
		{Name: "packed/text", Data: imagetest.Text(700_001)},
		{Name: "packed/noise", Data: imagetest.Pattern(4, 200_000)},
		{Name: "packed/zeros", Data: make([]byte, 300_000)},
		{Name: "packed/mixed", Data: slices.Concat(imagetest.Text(100_000), imagetest.Pattern(5, 100_000), make([]byte, 100_000), imagetest.Text(5))},
	}
	for k := range 1500 {
		files = append(files, imagetest.NTFSFile{Name: fmt.Sprintf("many/File number %d.txt", k*7919%1500), Data: []byte(fmt.Sprint("content ", k*7919%1500))})
		if k%50 == 0 { // between the table's pieces
			files = append(files, imagetest.NTFSFile{Name: fmt.Sprintf("between/%d", k), Data: imagetest.Pattern(k, 70_000)})
		}
	}
	return files
}

// TestAgainstNTFS3G compares with the tools of ntfs-3g, both ways.
func TestAgainstNTFS3G(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-c", "4096"}, {"-c", "1024", "-L", "läbel"}, {"-c", "512"}, {"-c", "65536"}, {"-c", "4096", "-s", "4096"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			if testing.Short() && args[1] != "1024" {
				t.Skip("one cluster size is enough")
			}
			t.Parallel()
			files := sample()
			if args[1] == "65536" { // compression needs clusters up to 4 KiB
				files = slices.DeleteFunc(files, func(f imagetest.NTFSFile) bool { return strings.HasPrefix(f.Name, "packed") })
			}
			img := imagetest.NTFS(t, 80, files, args...)
			f := open(t, img)
			if l := f.Label(); l != "" && l != "läbel" || len(args) > 2 && args[2] == "-L" && l == "" {
				t.Errorf("label %q", l)
			}
			blkid := imagetest.Tool(t, "", "blkid", "-p", "-o", "value", "-s", "UUID", img)
			if f.UUID() != strings.TrimSpace(blkid) {
				t.Errorf("UUID %s, blkid %s", f.UUID(), blkid)
			}
			kinds := map[string]bool{}
			for k, x := range files {
				if strings.HasSuffix(x.Name, "/") {
					continue
				}
				got, want := content(t, f, "/"+x.Name), x.Data
				if x.Stride > 0 {
					want = strided(want, x.Stride)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, want %d", x.Name, len(got), len(want))
				}
				if !strings.HasPrefix(x.Name, "many/") || k%200 == 0 {
					if said := imagetest.Tool(t, "", "ntfscat", img, "/"+x.Name); said != string(got) {
						t.Errorf("%s: ntfscat has %d bytes, we %d", x.Name, len(said), len(got))
					}
				}
				n, err := f.lookup(x.Name)
				if err != nil {
					t.Fatal(err)
				}
				a := n.find(attrData, "")
				kinds["resident"] = kinds["resident"] || a.resident != nil
				kinds["compressed"] = kinds["compressed"] || a.unit > 0
				kinds["listed"] = kinds["listed"] || len(a.runs) > 600
			}
			want := []string{"resident", "listed", "compressed"}
			if args[1] == "65536" {
				want = want[:1]
			}
			for _, k := range want {
				if !kinds[k] {
					t.Errorf("no file was %s", k)
				}
			}
			for _, dir := range []string{"/", "/many", "/between", "/d/d/d"} {
				ours, err := f.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				theirs := strings.Split(strings.TrimRight(imagetest.Tool(t, "", "ntfsls", "-p", dir, img), "\n"), "\n")
				theirs = slices.DeleteFunc(theirs, func(n string) bool { return n == "." || n == ".." })
				slices.Sort(ours)
				slices.Sort(theirs)
				if !slices.Equal(ours, theirs) {
					t.Errorf("%s: we list %d names, ntfsls %d", dir, len(ours), len(theirs))
				}
			}
		})
	}
}

// seal puts an update sequence into a record.
func seal(b []byte) {
	at := int(le.Uint16(b[4:]))
	for k := 1; k < int(le.Uint16(b[6:])); k++ {
		copy(b[at+2*k:], b[k*512-2:k*512])
		copy(b[k*512-2:], b[at:at+2])
	}
}

// finish ends a record after its attributes.
func finish(head []byte, attrs ...[]byte) []byte {
	b := append(slices.Concat(head, slices.Concat(attrs...)), 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0)
	le.PutUint32(b[24:], uint32(len(b)))
	b = append(b, make([]byte, 1024-len(b))...)
	seal(b)
	return b
}

// table is a $DATA attribute of the file table with some of its runs.
func table(from []byte, runs []run, lowest int64) []byte {
	b := slices.Clone(from[:64])
	le.PutUint64(b[16:], uint64(lowest))
	le.PutUint16(b[32:], 64)
	lcn := int64(0)
	for _, r := range runs {
		b = append(b, 0x44)
		b = le.AppendUint32(le.AppendUint32(b, uint32(r.n)), uint32(r.lcn-lcn))
		lcn = r.lcn
		le.PutUint64(b[24:], uint64(r.vcn+r.n-1))
	}
	b = append(b, make([]byte, 8-len(b)%8)...)
	le.PutUint32(b[4:], uint32(len(b)))
	return b
}

// TestTableInPieces: the file table's own runs do not fit into its first record,
// as on volumes that were full once. The volume is rewritten so by hand, and ntfscat reads it, too.
func TestTableInPieces(t *testing.T) {
	t.Parallel()
	var files []imagetest.NTFSFile
	for k := range 1600 {
		files = append(files, imagetest.NTFSFile{Name: fmt.Sprintf("a/%d", k), Data: imagetest.Pattern(k, 4000)})
	}
	files = append(files, imagetest.NTFSFile{Name: "fill", Data: imagetest.Pattern(1, 4096), Fill: true})
	for k := 0; k < 1600; k += 2 {
		files = append(files, imagetest.NTFSFile{Name: fmt.Sprintf("a/%d", k), Delete: true})
	}
	for k := range 2400 {
		files = append(files, imagetest.NTFSFile{Name: fmt.Sprintf("b/%d", k), Data: fmt.Appendf(nil, "late %d", k)})
	}
	img := imagetest.NTFS(t, 16, files, "-c", "4096")
	f := open(t, img)
	if len(f.mft.runs) < 10 {
		t.Fatalf("the table has %d runs", len(f.mft.runs))
	}
	b, err := f.readRecord(recordMFT)
	if err != nil {
		t.Fatal(err)
	}
	const extension = 20 // a free record in the first run
	var attrs [][]byte
	var list, rest []byte
	entry := func(kind uint32, lowest int64, ref uint64, instance uint16) {
		e := make([]byte, 32)
		le.PutUint32(e, kind)
		le.PutUint16(e[4:], 32)
		e[7] = 26
		le.PutUint64(e[8:], uint64(lowest))
		le.PutUint64(e[16:], ref)
		le.PutUint16(e[24:], instance)
		list = append(list, e...)
	}
	for at := int(le.Uint16(b[20:])); le.Uint32(b[at:]) != 0xFFFFFFFF; at += int(le.Uint32(b[at+4:])) {
		a := b[at : at+int(le.Uint32(b[at+4:]))]
		kind, instance := le.Uint32(a), le.Uint16(a[14:])
		entry(kind, 0, recordMFT|1<<48, instance)
		if kind == attrData {
			cut := f.mft.runs[1].vcn
			entry(kind, cut, extension|1<<48, 0)
			rest = table(a, f.mft.runs[1:], cut)
			le.PutUint16(rest[14:], 0)
			a = table(a, f.mft.runs[:1], 0)
		}
		attrs = append(attrs, slices.Clone(a))
	}
	l := slices.Concat(make([]byte, 24), list)
	le.PutUint32(l, attrList)
	le.PutUint32(l[4:], uint32(len(l)))
	le.PutUint16(l[14:], 99)
	le.PutUint32(l[16:], uint32(len(list)))
	le.PutUint16(l[20:], 24)
	head := slices.Clone(b[:le.Uint16(b[20:])])
	le.PutUint16(head[40:], 100) // next instance
	first := finish(head, slices.Insert(attrs, 1, l)...)
	le.PutUint16(head[16:], 1)
	le.PutUint64(head[32:], recordMFT|1<<48)
	le.PutUint32(head[44:], extension)
	second := finish(head, rest)
	patch(t, img, f.mft.place(0), first)
	patch(t, img, f.mft.place(extension*1024), second)
	boot := make([]byte, 512)
	if _, err := f.dev.ReadAt(boot, 0); err != nil {
		t.Fatal(err)
	}
	patch(t, img, int64(le.Uint64(boot[56:]))*f.cluster, first)

	g := open(t, img)
	if len(g.mft.runs) != len(f.mft.runs) {
		t.Fatalf("%d runs, want %d", len(g.mft.runs), len(f.mft.runs))
	}
	for k := range 2400 {
		if got := content(t, g, fmt.Sprintf("/b/%d", k)); string(got) != fmt.Sprintf("late %d", k) {
			t.Errorf("%d: %q", k, got)
		}
	}
	if said := imagetest.Tool(t, "", "ntfscat", img, "/b/2399"); said != "late 2399" {
		t.Errorf("ntfscat says %q", said)
	}
}

// TestFilesOfNTFSCP: a file that another program copied in, over one that was there.
func TestFilesOfNTFSCP(t *testing.T) {
	t.Parallel()
	img := imagetest.NTFS(t, 20, nil)
	for _, n := range []int{5, 900_000, 1000} {
		src := imagetest.Blank(t, 0)
		want := imagetest.Pattern(n, n)
		if err := os.WriteFile(src, want, 0o600); err != nil {
			t.Fatal(err)
		}
		imagetest.Tool(t, "", "ntfscp", "-q", img, src, "/copied.bin")
		if got := content(t, open(t, img), "/COPIED.BIN"); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d", len(got), n)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	link := slices.Concat(binary.LittleEndian.AppendUint32(nil, 0x80000017), []byte{8, 0, 0, 0}, make([]byte, 8))
	dlink := slices.Concat(binary.LittleEndian.AppendUint32(nil, 0xA0000003), []byte{12, 0, 0, 0}, make([]byte, 12))
	f := open(t, imagetest.NTFS(t, 10, []imagetest.NTFSFile{
		{Name: "Windows/System32/config/SYSTEM", Data: []byte("hive")}, {Name: "ÄÖÜ/Straße", Data: []byte("s")},
		{Name: "Case/name", Data: []byte("lower")}, {Name: "Case/NAME", Data: []byte("upper")},
		{Name: "wof.exe", Reparse: link}, {Name: "mount/", Reparse: dlink},
	}))
	for name, want := range map[string]string{"/windows/SYSTEM32/Config/system": "hive", "Windows//System32/./config/SYSTEM": "hive", "/äöü/STRAßE": "s", "/Case/name": "lower", "/Case/NAME": "upper"} {
		if got := content(t, f, name); string(got) != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{"/nothing", "/Windows/x", "/Windows/System32/config/SYSTEM/x", "/windows\\system32"} {
		if _, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{"/wof.exe": "compressed by WOF", "/mount/x": "/mount is a mount point", "/Windows": "is a directory"} {
		if _, err := f.Open(name); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.ReadDir("/mount"); !errors.As(err, new(*ReparseError)) {
		t.Errorf("%v", err)
	}
	if i, err := f.Stat("/wof.exe"); err != nil || i.Reparse != 0x80000017 || i.Dir {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := f.Stat("/windows/system32/config/system"); err != nil || i != (Info{Size: 4}) {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := f.ReadDir("/wof.exe"); err == nil {
		t.Error("a file was listed")
	}
}

// patch changes bytes of an image.
func patch(t testing.TB, img string, off int64, b []byte) {
	t.Helper()
	h, err := os.OpenFile(img, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// place is where a stream's byte lies on the disk.
func (s *stream) place(off int64) int64 {
	for _, r := range s.runs {
		if c := s.f.cluster; off >= r.vcn*c && off < (r.vcn+r.n)*c {
			return r.lcn*c + off - r.vcn*c
		}
	}
	return -1
}

// TestState: dirty, hibernated, and the journal.
func TestState(t *testing.T) {
	t.Parallel()
	hiber := make([]byte, 8192)
	copy(hiber, "HIBR")
	img := imagetest.NTFS(t, 10, []imagetest.NTFSFile{{Name: "hiberfil.sys", Data: hiber}})
	f := open(t, img)
	log, err := f.Log()
	if asleep, herr := f.Hibernated(); err != nil || herr != nil || log != LogClean || f.Dirty() || !asleep {
		t.Errorf("%v, %v, %v, %v, %v", log, err, herr, f.Dirty(), asleep)
	}
	n, err := f.file(recordLog, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.reader(n.find(attrData, ""))
	if err != nil {
		t.Fatal(err)
	}
	at := r.(*stream).place(0)
	page := func(lsn uint64, client, flags uint16) []byte {
		b := make([]byte, 4096)
		copy(b, "RSTR")
		le.PutUint16(b[4:], 30)
		le.PutUint16(b[6:], 9)
		le.PutUint32(b[16:], 4096)
		le.PutUint16(b[24:], 48)
		le.PutUint64(b[48:], lsn)
		le.PutUint16(b[60:], client)
		le.PutUint16(b[62:], flags)
		return b
	}
	for _, c := range []struct {
		one, two []byte
		want     Log
	}{
		{page(5, 0, 0), page(4, 0xFFFF, 0), LogOpen}, {page(4, 0, 0), page(5, 0xFFFF, 0), LogClean},
		{page(5, 0, 2), page(4, 0, 0), LogClean}, {make([]byte, 4096), page(1, 0, 0), LogOpen}, {make([]byte, 4096), make([]byte, 4096), LogBad},
	} {
		patch(t, img, at, slices.Concat(c.one, c.two))
		if got, err := open(t, img).Log(); err != nil || got != c.want {
			t.Errorf("%v, %v, want %v", got, err, c.want)
		}
	}
	v := f.mft.place(recordVolume * f.record)
	b := make([]byte, f.record)
	dev, _ := imagetest.Open(t, img)
	if _, err := dev.ReadAt(b, v); err != nil {
		t.Fatal(err)
	}
	for k := int(le.Uint16(b[20:])); ; k += int(le.Uint32(b[k+4:])) {
		if le.Uint32(b[k:]) == attrVolume {
			patch(t, img, v+int64(k)+int64(le.Uint16(b[k+20:]))+10, []byte{1, 0})
			break
		}
	}
	if !open(t, img).Dirty() {
		t.Error("the mark was not seen")
	}
}

// TestDamage: each ends in an error that is not "absent".
func TestDamage(t *testing.T) {
	t.Parallel()
	img := imagetest.NTFS(t, 10, []imagetest.NTFSFile{{Name: "dir/a", Data: imagetest.Pattern(1, 50_000)}})
	f := open(t, img)
	n, err := f.lookup("/dir/a")
	if err != nil {
		t.Fatal(err)
	}
	rec := f.mft.place(int64(n.number) * f.record)
	for name, c := range map[string]struct {
		off int64
		b   []byte
	}{
		"torn record": {rec + 510, []byte{0xEE, 0xEE}}, "no signature": {rec, []byte("BAAD")}, "not in use": {rec + 22, []byte{0, 0}},
		"used again": {rec + 16, []byte{77, 0}}, "no end": {rec + 24, []byte{48, 0, 0, 0}}, "not a base": {rec + 32, []byte{9}},
	} {
		bad := imagetest.Copy(t, img)
		patch(t, bad, c.off, c.b)
		if _, err := open(t, bad).Open("/dir/a"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dev, size := imagetest.Open(t, img)
	if _, err := Open(dev, size/2); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half of it: %v", err)
	}
	bad := imagetest.Copy(t, img) // the table's first record: the mirror has it too
	patch(t, bad, f.mft.place(0), make([]byte, 1024))
	if got := content(t, open(t, bad), "/dir/a"); !bytes.Equal(got, imagetest.Pattern(1, 50_000)) {
		t.Errorf("%d bytes", len(got))
	}
	if _, err := Open(bytes.NewReader(make([]byte, 512)), 512); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestLZNT1(t *testing.T) {
	t.Parallel()
	// "abcabcabc…": three letters, then one pair that repeats them: back 3, 9 more.
	src := []byte{0x05, 0xB0, 0x08, 'a', 'b', 'c', 0x06, 0x20, 0, 0}
	dst := make([]byte, 12)
	if err := lznt1(dst, src); err != nil || string(dst) != "abcabcabcabc" {
		t.Errorf("%q, %v", dst, err)
	}
	for _, bad := range [][]byte{{0x05, 0xB0, 0x08}, {0x02, 0xB0, 0x01, 0x06, 0x20}, {0x01, 0xB0, 0x01, 0x06}} {
		if err := lznt1(make([]byte, 4096), bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzLZNT1(f *testing.F) {
	f.Add([]byte{0x05, 0xB0, 0x08, 'a', 'b', 'c', 0x06, 0x20, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { _ = lznt1(make([]byte, 65536), b) })
}

// FuzzOpen changes a small volume in up to four places.
func FuzzOpen(f *testing.F) {
	img := imagetest.NTFS(f, 3, []imagetest.NTFSFile{{Name: "d/a", Data: imagetest.Pattern(1, 50_000)}, {Name: "p/", Compressed: true}, {Name: "p/t", Data: imagetest.Text(90_000)},
		{Name: "h", Data: imagetest.Pattern(2, 30*4096), Stride: 8192}}, "-c", "1024", "-z", "1")
	whole, err := os.ReadFile(img)
	if err != nil {
		f.Fatal(err)
	}
	mft := open(f, img).mft.place(0)
	f.Add(uint32(48), uint64(1), uint32(mft+24), uint64(0xFFFF))
	f.Add(uint32(mft+64), uint64(7), uint32(mft+5*1024+64), uint64(1<<63))
	f.Fuzz(func(t *testing.T, a uint32, x uint64, b uint32, y uint64) {
		img := slices.Clone(whole)
		le.PutUint64(img[int(a)%(len(img)-8):], x)
		le.PutUint64(img[int(b)%(len(img)-8):], y)
		f, err := Open(bytes.NewReader(img), int64(len(img)))
		if err != nil {
			return
		}
		_, _ = f.Log()
		_, _ = f.Hibernated()
		for _, n := range []string{"/", "/d", "/p"} {
			_, _ = f.ReadDir(n)
		}
		for _, n := range []string{"/d/a", "/p/t", "/h"} {
			if r, err := f.Open(n); err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			}
		}
	})
}
