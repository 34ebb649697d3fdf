package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// disk is a file on a disk whose power can fail: only synced content
// survives, plus, if torn is set, a part of the last unsynced write.
type disk struct {
	cur, durable []byte
	lastOff      int
	power        *power
}

// power counts the operations of both disks and cuts at number at.
type power struct {
	n, at int
	trace []string
}

var errPower = errors.New("power cut")

func (p *power) step(what string) error {
	p.n++
	p.trace = append(p.trace, what)
	if p.at > 0 && p.n >= p.at {
		return errPower
	}
	return nil
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(d.cur)) {
		return 0, io.EOF
	}
	n := copy(b, d.cur[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	if err := d.power.step("write"); err != nil {
		return 0, err
	}
	if need := int(off) + len(b); need > len(d.cur) {
		d.cur = append(d.cur, make([]byte, need-len(d.cur))...)
	}
	d.lastOff = int(off)
	return copy(d.cur[off:], b), nil
}

func (d *disk) Truncate(n int64) error {
	if err := d.power.step("truncate"); err != nil {
		return err
	}
	d.cur = append([]byte(nil), d.cur[:n]...)
	return nil
}

func (d *disk) Sync() error {
	if err := d.power.step("sync"); err != nil {
		return err
	}
	d.durable = append([]byte(nil), d.cur...)
	return nil
}

// after returns what the disk holds after the power cut: what was durable, or
// with keep > 0 also the first keep bytes of what was written but not synced.
func (d *disk) after(keep int) *disk {
	b := append([]byte(nil), d.durable...)
	if keep > 0 && len(d.cur) > len(d.durable) {
		b = append(b, d.cur[len(d.durable):min(len(d.cur), len(d.durable)+keep)]...)
	}
	return &disk{cur: b, durable: append([]byte(nil), b...), power: &power{}}
}

// A power cut at every operation, with every kind of torn write, leaves a pair
// that verifies, holds all acknowledged records, and can be written on; also
// if the cut hits the recovery itself.
func TestPowerCutAtEveryOperation(t *testing.T) {
	t.Parallel()
	cuts := 0
	for _, keep := range []int{0, 1, 100, 255, 256} {
		for at := 1; at <= 24; at++ {
			p := &power{at: at}
			a, b := &disk{power: p}, &disk{power: p}
			acked := appendAll(a, b, 5)
			if p.n >= at {
				cuts++
			}
			for second := range 8 { // 0 = no second cut
				a2, b2 := a.after(keep), b.after(keep)
				q := &power{at: second}
				a2.power, b2.power = q, q
				name := fmt.Sprintf("keep %d cut %d, %d", keep, at, second)
				acked2 := max(acked, appendAll(a2, b2, 2))
				a3, b3 := a2.after(keep), b2.after(keep)
				v, err := Verify(whole(a3), whole(b3))
				if err != nil {
					t.Fatal(err)
				}
				if err := v.Covers(acked2); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				p3, _, err := OpenPair(a3, b3)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if n, err := p3.Append(time.Unix(9, 0)); err != nil || n < acked2+1 {
					t.Fatalf("%s: appended %d, %v", name, n, err)
				}
			}
		}
	}
	if cuts < 50 {
		t.Fatalf("only %d power cuts fired", cuts)
	}
}

// appendAll returns the last record that was acknowledged.
func appendAll(a, b File, n int) (acked uint64) {
	p, _, err := OpenPair(a, b)
	if err != nil {
		return 0
	}
	for range n {
		seq, err := p.Append(time.Unix(1, 0))
		if err != nil {
			if _, again := p.Append(time.Unix(2, 0)); !errors.Is(again, errPower) {
				panic("appending after a failure was not refused")
			}
			return acked
		}
		acked = seq
	}
	return acked
}

// A is durable before B is written.
func TestAppendOrder(t *testing.T) {
	t.Parallel()
	p := &power{}
	a, b := &disk{power: p}, &disk{power: p}
	pair, _, err := OpenPair(a, b)
	if err != nil {
		t.Fatal(err)
	}
	p.at = 3 // write A, sync A, write B fails
	if _, err := pair.Append(time.Unix(1, 0)); !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	if len(a.durable) != RecordSize || len(b.cur) != 0 {
		t.Fatalf("A has %d durable bytes, B %d; trace %v", len(a.durable), len(b.cur), p.trace)
	}
}

func TestOpenPairKeepsEvidence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, b []byte) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, b := write("a", chain(9)), write("b", chain(5)[:1200])
	_, o, err := OpenPair(a, b)
	if !errors.Is(err, ErrUnsound) || o.A.Last != 9 || o.B.Last != 4 || o.Verdict.OrderOK {
		t.Fatalf("%+v %v", o, err)
	}
	if st, _ := b.Stat(); st.Size() != 1200 {
		t.Errorf("file B was changed to %d bytes", st.Size())
	}
}

func TestOpenPairCatchesUpAndCountsBoots(t *testing.T) {
	t.Parallel()
	p := &power{}
	a, b := &disk{cur: chain(11), power: p}, &disk{cur: chain(10), power: p}
	pair, o, err := OpenPair(a, b)
	if err != nil || o.A.Last-o.B.Last != 1 {
		t.Fatalf("%+v %v", o, err)
	}
	if string(b.durable) != string(chain(11)) {
		t.Error("B did not catch up durably")
	}
	if pair.Last() != 11 || pair.Boot() != 1+11/5+1 {
		t.Errorf("last %d boot %d", pair.Last(), pair.Boot())
	}
}
