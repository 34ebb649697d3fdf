package layout

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

func disk(t testing.TB, script string) []byte {
	t.Helper()
	img := imagetest.Blank(t, 64<<20)
	imagetest.Tool(t, script, "sfdisk", "-q", img)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const gptScript = `label: gpt
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid=11111111-2222-3333-4444-555555555555, name="boot ä"
size=20480, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
size=40960, type=linux, attrs=LegacyBIOSBootable
`

const mbrScript = `label: dos
label-id: 0xdeadbeef
start=2048, size=2048, type=83, bootable
start=4096, size=40960, type=5
start=6144, size=2048, type=82
start=10240, size=4096, type=83
start=49152, size=2048, type=ef
`

func TestGPT(t *testing.T) {
	t.Parallel()
	good := disk(t, gptScript)
	check := func(b []byte, notes ...string) {
		t.Helper()
		tab, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		p := tab.Partitions
		if tab.Kind != GPT || len(p) != 3 || p[0].Start != 1<<20 || p[0].Size != 1<<20 || p[0].Type != TypeBIOSBoot || p[1].Type != TypeESP ||
			p[0].UUID != "11111111-2222-3333-4444-555555555555" || p[0].Name != "boot ä" || p[2].Index != 3 || !p[2].Active || p[1].Active {
			t.Errorf("%+v", tab)
		}
		if len(tab.Notes) != len(notes) {
			t.Errorf("notes %q, want %q", tab.Notes, notes)
		}
		for k, n := range notes {
			if k < len(tab.Notes) && !strings.Contains(tab.Notes[k], n) {
				t.Errorf("note %q, want %q", tab.Notes[k], n)
			}
		}
	}
	check(good)
	main := slices.Clone(good)
	main[512+60]++
	check(main, "main GPT header")
	back := slices.Clone(good)
	back[len(back)-512+60]++
	check(back, "backup GPT header")
	check(append(slices.Clone(good), make([]byte, 1<<20)...), "backup GPT header") // grown
	entries := slices.Clone(good)
	entries[1024+33]++
	check(entries, "main GPT header")
	hybrid := slices.Clone(good)
	copy(hybrid[446+16:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0})
	check(hybrid, "hybrid")
	both := slices.Clone(main)
	both[len(both)-512+60]++
	if _, err := Read(bytes.NewReader(both), int64(len(both))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both headers damaged: %v", err)
	}
}

func TestMBR(t *testing.T) {
	t.Parallel()
	b := disk(t, mbrScript)
	tab, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		index       int
		start, size int64
		kind, uuid  string
		active      bool
	}
	var got []row
	for _, p := range tab.Partitions {
		got = append(got, row{p.Index, p.Start / 512, p.Size / 512, p.Type, p.UUID, p.Active})
	}
	want := []row{{1, 2048, 2048, "83", "deadbeef-01", true}, {5, 6144, 2048, "82", "deadbeef-05", false}, {6, 10240, 4096, "83", "deadbeef-06", false}, {3, 49152, 2048, "ef", "deadbeef-03", false}}
	slices.SortFunc(got, func(a, b row) int { return a.index - b.index })
	slices.SortFunc(want, func(a, b row) int { return a.index - b.index })
	if tab.Kind != MBR || tab.BootCode || !slices.Equal(got, want) || len(tab.Notes) != 0 {
		t.Errorf("%+v\nwant %+v\n%+v", got, want, tab)
	}
	b[0] = 0xEB
	b[446+32] = 0x80
	if tab, err = Read(bytes.NewReader(b), int64(len(b))); err != nil || !tab.BootCode || len(tab.Notes) != 1 {
		t.Errorf("two active partitions: %+v, %v", tab, err)
	}
	// The chain of logical partitions points at itself.
	loop := slices.Clone(b)
	copy(loop[4096*512+446+16:], []byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	if tab, err = Read(bytes.NewReader(loop), int64(len(loop))); err != nil || !strings.Contains(strings.Join(tab.Notes, " "), "broken") {
		t.Errorf("loop: %+v, %v", tab, err)
	}
	over := slices.Clone(b)
	over[446+12+2] = 1
	if tab, err = Read(bytes.NewReader(over), int64(len(over))); err != nil || !strings.Contains(strings.Join(tab.Notes, " "), "overlap") {
		t.Errorf("overlap: %+v, %v", tab, err)
	}
}

func TestNoTable(t *testing.T) {
	t.Parallel()
	ext := imagetest.Ext(t, nil, 8)
	fat := imagetest.FAT(t, nil, 8)
	for _, img := range []string{ext, fat, imagetest.Blank(t, 1<<20), imagetest.Blank(t, 100)} {
		f, size := imagetest.Open(t, img)
		if tab, err := Read(f, size); err != nil || tab.Kind != None || len(tab.Partitions) > 0 {
			t.Errorf("%+v, %v", tab, err)
		}
	}
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	swap := imagetest.Blank(t, 1<<20)
	imagetest.Tool(t, "", "mkswap", "-U", "01234567-89ab-cdef-0123-456789abcdef", swap)
	xfs := imagetest.Blank(t, 320<<20)
	imagetest.Tool(t, "", "mkfs.xfs", "-q", xfs)
	ntfs := imagetest.Blank(t, 8<<20)
	imagetest.Tool(t, "", "mkntfs", "-q", "-F", ntfs)
	for img, want := range map[string]Content{imagetest.Ext(t, nil, 8): Ext, imagetest.FAT(t, nil, 8): FAT, imagetest.FAT(t, nil, 64, "-F", "32"): FAT, swap: Swap, xfs: XFS, ntfs: NTFS, imagetest.Blank(t, 1<<20): Unknown} {
		f, size := imagetest.Open(t, img)
		if got, err := Identify(f, size); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	f, _ := imagetest.Open(t, swap)
	if u, err := SwapUUID(f); err != nil || u != "01234567-89ab-cdef-0123-456789abcdef" {
		t.Errorf("%s, %v", u, err)
	}
	for sig, want := range map[string]Content{"\xeb\x58\x90-FVE-FS-": BitLocker, "LUKS\xba\xbe": LUKS} {
		b := make([]byte, 4096)
		copy(b, sig)
		if got, err := Identify(bytes.NewReader(b), 4096); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

type piece struct {
	at   int64
	data []byte
}

// pieces is a disk of zeros with some data on it; later pieces win.
type pieces struct {
	size int64
	list []piece
}

func (d pieces) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, io.EOF
	}
	for _, x := range d.list {
		if from := x.at - off; from >= 0 && from < int64(len(p)) {
			copy(p[from:], x.data)
		} else if from < 0 && -from < int64(len(x.data)) {
			copy(p, x.data[-from:])
		}
	}
	return len(p), nil
}

func FuzzRead(f *testing.F) {
	// Only the regions that hold tables vary: the first 34 sectors and the last 33.
	for _, s := range []string{gptScript, mbrScript} {
		b := disk(f, s)
		f.Add(b[:34*512], b[len(b)-33*512:], b[4096*512:4097*512])
	}
	f.Fuzz(func(t *testing.T, head, tail, chain []byte) {
		const size = int64(8 << 20)
		tab, err := Read(pieces{size, []piece{{4096 * 512, chain}, {0, head}, {max(0, size-int64(len(tail))), tail}}}, size)
		if err != nil {
			return
		}
		for _, p := range tab.Partitions {
			if p.Start < 0 || p.Size < 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}
