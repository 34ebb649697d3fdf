package regf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

func open(t testing.TB, b []byte) *Hive {
	t.Helper()
	h, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestAgainstHivex reads what hivexregedit wrote, as hivexget and hivexsh do.
func TestAgainstHivex(t *testing.T) {
	t.Parallel()
	var reg strings.Builder
	reg.WriteString("[\\Types]\n@=\"default\"\n\"Text\"=\"a text\"\n\"Empty\"=\"\"\n\"Number\"=dword:0000002a\n\"Expand\"=hex(2):25,00,41,00,25,00,00,00\n" +
		"\"Multi\"=hex(7):61,00,00,00,62,00,63,00,00,00,00,00\n\"Quad\"=hex(b):01,00,00,00,00,00,00,80\n\"Binary\"=hex(3):01,02,03,04,05\n\"Tiny\"=hex(3):ff\n\"Bare\"=hex(0):\n" +
		"\"Umläut ж\"=hex(1):73,00,70,00,e4,00,74,00,65,00,72,00,00,00\n\"Big\"=hex(3):" + strings.TrimSuffix(strings.Repeat("ab,", 20000), ",") + "\n\n[\\Schlüßel ж\\Sub]\n\"v\"=\"x\"\n\n")
	for k := range 1200 {
		fmt.Fprintf(&reg, "[\\Services\\Service %d]\n\"Start\"=dword:%08x\n\n", k, k)
	}
	hive := imagetest.Hive(t, reg.String())
	h := open(t, []byte(hive))
	file := imagetest.Blank(t, 0)
	if err := os.WriteFile(file, []byte(hive), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := h.Key("types")
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) Value {
		v, err := k.Value(name)
		if err != nil {
			t.Error(err)
		}
		return v
	}
	for name, want := range map[string]string{"": "default", "TEXT": "a text", "Empty": "", "Expand": "%A%", "Umläut ж": "später"} {
		got := value(name).Text()
		if got != want {
			t.Errorf("%q: %q", name, got)
		}
		if name == "" {
			name = "@"
		}
		if said := strings.TrimSuffix(imagetest.Tool(t, "", "hivexget", file, `\Types`, name), "\n"); said != want && name != "TEXT" {
			t.Errorf("%q: hivexget says %q", name, said)
		}
	}
	n, ok := value("Number").Uint()
	q, ok2 := value("Quad").Uint()
	if n != 42 || q != 1<<63|1 || !ok || !ok2 {
		t.Errorf("%d, %x, %v, %v", n, q, ok, ok2)
	}
	if got := value("Multi").Strings(); !slices.Equal(got, []string{"a", "bc"}) {
		t.Errorf("%q", got)
	}
	if _, ok := value("Text").Uint(); ok || value("Number").Text() != "" || value("Text").Strings() != nil {
		t.Error("types are mixed up")
	}
	if !bytes.Equal(value("Binary").Data, []byte{1, 2, 3, 4, 5}) || !bytes.Equal(value("Tiny").Data, []byte{0xFF}) || len(value("Bare").Data) != 0 || !bytes.Equal(value("Big").Data, bytes.Repeat([]byte{0xAB}, 20000)) {
		t.Error("binary values")
	}
	if vs, err := k.Values(); err != nil || len(vs) != 12 {
		t.Errorf("%d, %v", len(vs), err)
	}
	if sub, err := h.Key(`SCHLÜßEL Ж\sub`); err != nil || sub.Name() != "Sub" {
		t.Errorf("%v, %v", sub.Name(), err)
	}
	s, err := h.Key("Services")
	if err != nil {
		t.Fatal(err)
	}
	subs, err := s.Subkeys()
	if err != nil || len(subs) != 1200 {
		t.Fatalf("%d, %v", len(subs), err)
	}
	var names []string
	for _, x := range subs {
		names = append(names, x.Name())
		v, err := x.Value("start")
		if n, _ := v.Uint(); err != nil || x.Name() != fmt.Sprintf("Service %d", n) {
			t.Errorf("%s: %d, %v", x.Name(), n, err)
		}
	}
	theirs := strings.Split(strings.TrimSpace(imagetest.Tool(t, "cd \\Services\nls\n", "hivexsh", file)), "\n")
	slices.Sort(names)
	slices.Sort(theirs)
	if !slices.Equal(names, theirs) {
		t.Errorf("we list %d keys, hivexsh %d", len(names), len(theirs))
	}
	for _, path := range []string{"x", `Types\x`, `Services\Service 1200`} {
		if _, err := h.Key(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := k.Value("nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// writer lays cells out by hand, for what hivex reads and does not write.
type writer struct{ b []byte }

func (w *writer) cell(data ...[]byte) uint32 {
	d := slices.Concat(data...)
	n := (len(d) + 4 + 7) &^ 7
	at := len(w.b) - base
	w.b = le.AppendUint32(w.b, -uint32(n))
	w.b = append(append(w.b, d...), make([]byte, n-4-len(d))...)
	return uint32(at)
}

func u32(vs ...uint32) (out []byte) {
	for _, v := range vs {
		out = le.AppendUint32(out, v)
	}
	return out
}

func (w *writer) key(name string, subkeys, list, values, vlist uint32) uint32 {
	nk := make([]byte, 76)
	copy(nk, "nk\x20\x00")
	for at, v := range map[int]uint32{16: 0x20, 20: subkeys, 28: list, 32: 0xFFFFFFFF, 36: values, 40: vlist, 44: 0x80, 48: 0xFFFFFFFF, 72: uint32(len(name))} {
		le.PutUint32(nk[at:], v)
	}
	return w.cell(nk, []byte(name))
}

// byHand is a hive with an index of lists, an old list, and a value in segments.
func byHand() ([]byte, []byte) {
	w := &writer{imagetest.EmptyHive()[:4096+0xB0]}
	big := imagetest.Pattern(7, 2*segment+100)
	segs := u32(w.cell(big[:segment], make([]byte, 4)), w.cell(big[segment:2*segment], make([]byte, 4)), w.cell(big[2*segment:]))
	db := w.cell([]byte("db\x03\x00"), u32(w.cell(segs)))
	vk := w.cell([]byte("vk\x03\x00"), u32(uint32(len(big)), db, 3, 1), []byte("big"))
	none := uint32(0xFFFFFFFF)
	a, b, c := w.key("a", 0, none, 1, w.cell(u32(vk))), w.key("b", 0, none, 0, none), w.key("c", 0, none, 0, none)
	li := w.cell([]byte("li\x02\x00"), u32(a, b))
	lf := w.cell([]byte("lf\x01\x00"), u32(c), []byte("c\x00\x00\x00"))
	ri := w.cell([]byte("ri\x02\x00"), u32(li, lf))
	for (len(w.b)-base+8)%4096 != 0 {
		w.cell(make([]byte, 4))
	}
	w.cell(make([]byte, 4))
	le.PutUint32(w.b[24:], 5)
	le.PutUint32(w.b[40:], uint32(len(w.b)-base))
	le.PutUint32(w.b[base+8:], uint32(len(w.b)-base))
	le.PutUint32(w.b[base+0x24+20:], 3)
	le.PutUint32(w.b[base+0x24+28:], ri)
	imagetest.SealHive(w.b)
	return w.b, big
}

func TestByHand(t *testing.T) {
	t.Parallel()
	b, big := byHand()
	h := open(t, b)
	k, err := h.Key("A")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := k.Value("Big"); err != nil || !bytes.Equal(v.Data, big) {
		t.Errorf("%d bytes, %v", len(v.Data), err)
	}
	if _, err := h.Key("c"); err != nil {
		t.Error(err)
	}
	file := imagetest.Blank(t, 0)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if said := strings.Fields(imagetest.Tool(t, "ls\n", "hivexsh", file)); !slices.Equal(said, []string{"a", "b", "c"}) {
		t.Errorf("hivexsh lists %q", said)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	good := imagetest.EmptyHive()
	if open(t, good).Dirty() {
		t.Error("dirty")
	}
	change := func(at int, v uint32) []byte {
		b := slices.Clone(good)
		le.PutUint32(b[at:], v)
		imagetest.SealHive(b)
		return b
	}
	if !open(t, change(4, 2)).Dirty() {
		t.Error("a hive in use was not seen")
	}
	torn := slices.Clone(good)
	torn[100]++
	for name, b := range map[string][]byte{"checksum": torn, "signature": change(0, 1), "version": change(20, 2), "type": change(28, 1), "size": change(40, 1<<20),
		"root": change(36, 0x80), "root outside": change(36, 1<<30), "free root": change(36, 0xB0), "no cells": change(base, 0), "short": good[:100], "empty": nil} {
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamage: a list or value that can't be read is not an absent one.
func TestDamage(t *testing.T) {
	t.Parallel()
	b, _ := byHand()
	for _, sig := range []string{"ri\x02\x00", "li\x02\x00", "db\x03\x00", "vk\x03\x00"} {
		bad := slices.Clone(b)
		copy(bad[base+bytes.Index(bad[base:], []byte(sig)):], "zz")
		h := open(t, bad)
		k, err := h.Key("a")
		if err == nil {
			_, err = k.Value("big")
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", sig, err)
		}
	}
}

func FuzzHive(f *testing.F) {
	whole, _ := byHand()
	f.Add(uint32(36), uint32(0x80), uint32(base+0x24+28), uint32(0x20))
	f.Add(uint32(24), uint32(3), uint32(base+0x24+20), uint32(1<<31))
	f.Fuzz(func(t *testing.T, a, x, b, y uint32) {
		hive := slices.Clone(whole)
		le.PutUint32(hive[int(a)%(len(hive)-4):], x)
		le.PutUint32(hive[int(b)%(len(hive)-4):], y)
		imagetest.SealHive(hive)
		h, err := Open(bytes.NewReader(hive), int64(len(hive)))
		if err != nil {
			return
		}
		for _, n := range []string{"a", "c", `a\b`} {
			k, err := h.Key(n)
			if err != nil {
				continue
			}
			vs, _ := k.Values()
			for _, v := range vs {
				v.Uint()
				_, _ = v.Text(), v.Strings()
			}
		}
	})
}
