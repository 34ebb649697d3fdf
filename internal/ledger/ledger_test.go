package ledger

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// chain returns the first n records, as one file; boot n is used from record bootAt(n) on.
func chain(n int) []byte {
	var out []byte
	var prev Sum
	for i := 1; i <= n; i++ {
		r := Record{Seq: uint64(i), Time: time.Unix(1700000000, int64(i)).UTC(), Boot: uint64(1 + i/5), Prev: prev}
		b, sum := r.Encode()
		out, prev = append(out, b[:]...), sum
	}
	return out
}

// The first record's bytes never change; a change needs a new version in the magic.
func TestRecordGolden(t *testing.T) {
	t.Parallel()
	b, sum := Record{Seq: 1, Time: time.Unix(1700000000, 1).UTC(), Boot: 2, Prev: Sum{0: 0xAB, 31: 0xCD}}.Encode()
	want, err := os.ReadFile("testdata/record.hex")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b[:]); got != strings.TrimSpace(string(want)) {
		t.Errorf("record is\n%s\nwant\n%s", got, want)
	}
	r, got, err := Decode(b[:])
	if err != nil || got != sum || r.Seq != 1 || r.Boot != 2 || r.Time.UnixNano() != 1700000000000000001 || r.Prev[31] != 0xCD {
		t.Errorf("decode: %+v %v", r, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good := chain(1)
	for i := range RecordSize {
		b := bytes.Clone(good)
		b[i] ^= 1
		if _, _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("bit flip in byte %d: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, 255} {
		if _, _, err := Decode(good[:n]); !errors.Is(err, ErrRecord) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestScanFile(t *testing.T) {
	t.Parallel()
	ten := chain(10)
	flip := func(record int) []byte {
		b := bytes.Clone(ten)
		b[record*RecordSize+100] ^= 1
		return b
	}
	rec := func(n int) []byte { return ten[n*RecordSize : (n+1)*RecordSize] }
	for _, c := range []struct {
		name    string
		in      []byte
		last    uint64
		tail    int64
		torn    bool
		garbage bool
	}{
		{"empty", nil, 0, 0, false, false},
		{"whole", ten, 10, 0, false, false},
		{"cut short", ten[:9*RecordSize+7], 9, 7, true, false},
		{"only a torn record", ten[:255], 0, 255, true, false},
		{"last record damaged", flip(9), 9, 256, true, false},
		{"zero record at the end", append(bytes.Clone(ten), make([]byte, 256)...), 10, 256, true, false},
		{"zeros after the end", append(bytes.Clone(ten), make([]byte, 257)...), 10, 257, false, true},
		{"damage inside", flip(4), 4, 6 * 256, false, true},
		{"record missing", append(bytes.Clone(ten[:3*256]), ten[4*256:]...), 3, 6 * 256, false, true},
		{"last record repeated", append(bytes.Clone(ten), rec(9)...), 10, 256, false, true},
		{"first record missing", ten[256:], 0, 9 * 256, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := ScanFile(bytes.NewReader(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if s.Last != c.last || s.Records != int64(c.last) || s.Tail != c.tail || s.Torn != c.torn || s.Garbage != c.garbage {
				t.Errorf("%+v, want %+v", s, c)
			}
		})
	}
	t.Run("read error", func(t *testing.T) {
		if _, err := ScanFile(io.MultiReader(bytes.NewReader(ten[:300]), iotest.ErrReader(io.ErrClosedPipe))); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v", err)
		}
	})
	t.Run("boot number falls", func(t *testing.T) {
		var prev Sum
		var in []byte
		for i, boot := range []uint64{1, 2, 1} {
			b, sum := Record{Seq: uint64(i + 1), Boot: boot, Prev: prev, Time: time.Unix(1, 0)}.Encode()
			in, prev = append(in, b[:]...), sum
		}
		if s, _ := ScanFile(bytes.NewReader(in)); s.Last != 2 || !s.Garbage {
			t.Errorf("%+v", s)
		}
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	f := chain(20)
	n := func(records, extra int) []byte { return f[:records*RecordSize+extra] }
	other := func() []byte { // same numbers, other content
		var prev Sum
		var out []byte
		for i := 1; i <= 10; i++ {
			b, sum := Record{Seq: uint64(i), Boot: 1, Time: time.Unix(5, 0), Prev: prev}.Encode()
			out, prev = append(out, b[:]...), sum
		}
		return out
	}()
	for _, c := range []struct {
		name         string
		a, b         []byte
		order, chain bool
		torn         bool
		valid        int64
	}{
		{"nothing yet", nil, nil, true, true, false, 0},
		{"level", n(10, 0), n(10, 0), true, true, false, 10},
		{"A one ahead", n(11, 0), n(10, 0), true, true, false, 10},
		{"A two ahead: B's disk is older", n(12, 0), n(10, 0), false, true, false, 10},
		{"B ahead: A's disk is older", n(10, 0), n(11, 0), false, true, false, 10},
		{"A torn, level", n(10, 9), n(10, 0), true, true, true, 10},
		{"A torn while B lags: impossible", n(11, 9), n(10, 0), false, true, true, 10},
		{"B torn, A has the record", n(11, 0), n(10, 9), true, true, true, 10},
		{"B torn, A lacks the record", n(10, 0), n(10, 9), false, true, true, 10},
		{"B empty", n(10, 0), nil, false, true, false, 0},
		{"different histories", n(10, 0), other, true, false, false, 0},
		{"A damaged", append(n(5, 0)[:5*256:5*256], make([]byte, 5*256)...), n(10, 0), false, false, false, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := Verify(bytes.NewReader(c.a), bytes.NewReader(c.b))
			if err != nil {
				t.Fatal(err)
			}
			if v.OrderOK != c.order || v.ChainOK != c.chain || v.TornTail != c.torn || v.Valid != c.valid {
				t.Errorf("%s, want %+v", v, c)
			}
		})
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	v := Verdict{LastA: 10, LastB: 9, OrderOK: true, ChainOK: true}
	if err := v.Covers(9); err != nil {
		t.Error(err)
	}
	if v.Covers(10) == nil {
		t.Error("record 10 is not in B, yet covered")
	}
	v.ChainOK = false
	if v.Covers(0) == nil {
		t.Error("an unsound ledger covers something")
	}
}

func FuzzScan(f *testing.F) {
	f.Add(chain(3), chain(2))
	f.Add(chain(3)[:700], chain(2)[:300])
	f.Add([]byte{}, make([]byte, 600))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s, err := ScanFile(bytes.NewReader(a))
		if err != nil {
			t.Fatal(err)
		}
		if s.Records*RecordSize+s.Tail != int64(len(a)) || (s.Tail > 0) != (s.Torn || s.Garbage) || s.Torn && s.Garbage || s.Torn && s.Tail > RecordSize {
			t.Fatalf("%d bytes: %+v", len(a), s)
		}
		// What is counted must re-encode to the same bytes.
		for i := range s.Records {
			raw := a[i*RecordSize : (i+1)*RecordSize]
			r, sum, err := Decode(raw)
			if err != nil || r.Seq != uint64(i+1) {
				t.Fatalf("record %d: %+v %v", i+1, r, err)
			}
			if again, sum2 := r.Encode(); !bytes.Equal(again[:], raw) || sum != sum2 {
				t.Fatalf("record %d is not canonical", i+1)
			}
		}
		v, err := Verify(bytes.NewReader(a), bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if v.LastA != s.Last || v.ChainOK && s.Garbage || v.Valid > int64(min(v.LastA, v.LastB)) {
			t.Fatalf("scan %+v, verdict %s", s, v)
		}
	})
}

func TestGuestSourceCompilesAlone(t *testing.T) {
	t.Parallel()
	files, err := GuestSource()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ledger.go", "scan.go", "guest/main.go", "guest/init.go"} {
		if len(files[want]) == 0 {
			t.Errorf("no %s among the sources", want)
		}
	}
	for name, text := range files {
		if strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s is among the sources", name)
		}
		onDisk, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil || !bytes.Equal(onDisk, text) {
			t.Errorf("%s differs from the file: %v", name, err)
		}
		if bytes.Contains(text, []byte(`"golang.org/`)) || bytes.Contains(text, []byte(`"github.com/`)) {
			t.Errorf("%s imports a module; the guest is compiled without a module cache", name)
		}
	}
}
