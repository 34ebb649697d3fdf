package lvm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// heads returns the first MiB of two physical volumes of 32 MiB each. pvcreate,
// vgcreate and vgcfgrestore of LVM 2.03.16 wrote them: group vg-x with root
// (12 MiB from extent 3 of the first, 12 MiB from extent 1 of the second), swap
// (4 MiB from extent 20 of the second), and wide, which is striped over both.
func heads(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, n := range []string{"testdata/pv1.gz", "testdata/pv2.gz"} {
		f, err := os.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		out = append(out, append(b, make([]byte, 31<<20)...))
	}
	return out
}

func openAll(t *testing.T, disks ...[]byte) []PV {
	t.Helper()
	var out []PV
	for _, d := range disks {
		p, err := Open(bytes.NewReader(d), int64(len(d)))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func TestReadsLogicalVolumes(t *testing.T) {
	t.Parallel()
	d := heads(t)
	for mib := range 32 { // number every MiB of data
		for k := range d {
			if mib > 0 {
				binary.LittleEndian.PutUint32(d[k][mib<<20:], uint32(100*(k+1)+mib))
			}
		}
	}
	lvs := Assemble(openAll(t, d...))
	if len(lvs) != 3 || lvs[0].Name != "root" || lvs[1].Name != "swap" || lvs[2].Name != "wide" || lvs[0].Group != "vg-x" {
		t.Fatalf("%+v", lvs)
	}
	if lvs[2].Err == nil || !strings.Contains(lvs[2].Err.Error(), "not linear") {
		t.Errorf("striped: %v", lvs[2].Err)
	}
	if lvs[0].Err != nil || lvs[0].Size != 24<<20 || lvs[1].Size != 4<<20 {
		t.Fatalf("%+v", lvs)
	}
	all := make([]byte, 24<<20)
	if err := read(lvs[0].Dev, all, 0); err != nil {
		t.Fatal(err)
	}
	var got []uint32
	for m := range 24 {
		got = append(got, binary.LittleEndian.Uint32(all[m<<20:]))
	}
	want := []uint32{}
	for m := range 12 {
		want = append(want, uint32(100+1+3+m))
	}
	for m := range 12 {
		want = append(want, uint32(200+1+1+m))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d, want %d", got, want)
	}
	if n, err := lvs[1].Dev.ReadAt(make([]byte, 10), 4<<20-4); n != 4 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	lvs = Assemble(openAll(t, d[0]))
	if lvs[0].Err == nil || !strings.Contains(lvs[0].Err.Error(), "none of the disks") {
		t.Errorf("a physical volume is missing: %v", lvs[0].Err)
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	for _, at := range []int{512 + 0x20, 4096 + 8, 4096 + 512} {
		b := heads(t)[0]
		i := at
		if at == 4096+512 { // the text in use
			i = 4096 + int(binary.LittleEndian.Uint64(b[4096+40:])) + 20
		}
		b[i] ^= 0xFF
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	if _, err := Open(bytes.NewReader(make([]byte, 4096)), 4096); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("vg { id = \"a\" seqno = 1 extent_size = 8\nphysical_volumes { pv0 { id = \"x\" pe_start = 1 } }\nlogical_volumes { l { status = [\"VISIBLE\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 0] } } } }")
	f.Add("a { b = [")
	f.Add("# \"\\")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parse(s)
		if err != nil {
			return
		}
		for name, v := range n {
			if g, ok := v.(node); ok {
				p := PV{UUID: "x", dev: strings.NewReader("data"), group: g, name: name}
				for _, lv := range Assemble([]PV{p}) {
					if lv.Dev != nil {
						_, _ = lv.Dev.ReadAt(make([]byte, 10), 0)
					}
				}
			}
		}
	})
}
