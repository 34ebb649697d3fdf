package ledger

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrUnsound says that the two files are not a state which their writer can
// have left behind. OpenPair changes nothing in that case: the evidence stays.
var ErrUnsound = errors.New("ledger files are not a possible state of their writer")

// File is what a ledger is kept in; *os.File satisfies it. Sync must return
// only after everything written is durable.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
}

// Pair appends to the two ledger files of a guest. It is for one goroutine.
type Pair struct {
	a, b File
	last Record
	sum  Sum
	boot uint64
	err  error // first failure; nothing is written after it
}

// Opening is what OpenPair found.
type Opening struct {
	A, B    Scan
	Verdict Verdict
}

// OpenPair scans both files, cuts torn tails off, lets B catch up with A, and
// returns a writer with a boot number one above the last. On ErrUnsound the
// opening is valid and neither file was touched. A crash inside OpenPair
// leaves a pair that the next OpenPair accepts.
func OpenPair(a, b File) (*Pair, Opening, error) {
	var o Opening
	var err error
	if o.A, err = ScanFile(whole(a)); err != nil {
		return nil, o, fmt.Errorf("open ledger A: %w", err)
	}
	if o.B, err = ScanFile(whole(b)); err != nil {
		return nil, o, fmt.Errorf("open ledger B: %w", err)
	}
	if o.Verdict, err = Verify(whole(a), whole(b)); err != nil {
		return nil, o, err
	}
	if !o.Verdict.OK() {
		return nil, o, fmt.Errorf("open ledger pair (%s): %w", o.Verdict, ErrUnsound)
	}
	if err := trim(a, o.A); err != nil {
		return nil, o, fmt.Errorf("cut torn tail of ledger A: %w", err)
	}
	if err := trim(b, o.B); err != nil {
		return nil, o, fmt.Errorf("cut torn tail of ledger B: %w", err)
	}
	if o.A.Last > o.B.Last {
		var rec [RecordSize]byte
		if _, err := a.ReadAt(rec[:], int64(o.B.Last)*RecordSize); err != nil {
			return nil, o, fmt.Errorf("read record %d of ledger A: %w", o.A.Last, err)
		}
		if err := put(b, rec[:], o.B.Last); err != nil {
			return nil, o, fmt.Errorf("let ledger B catch up with record %d: %w", o.A.Last, err)
		}
	}
	p := &Pair{a: a, b: b, sum: o.A.Sum, boot: o.A.Boot + 1}
	p.last.Seq = o.A.Last
	return p, o, nil
}

// Boot returns the boot number that new records carry.
func (p *Pair) Boot() uint64 { return p.boot }

// Last returns the number of the last record that is durable in both files.
func (p *Pair) Last() uint64 { return p.last.Seq }

// Append adds one record with clock t and returns its number after it is
// durable in A and then in B. After a failure every later call fails alike.
func (p *Pair) Append(t time.Time) (uint64, error) {
	if p.err != nil {
		return 0, p.err
	}
	r := Record{Seq: p.last.Seq + 1, Time: t, Boot: p.boot, Prev: p.sum}
	b, sum := r.Encode()
	if err := put(p.a, b[:], p.last.Seq); err != nil {
		p.err = fmt.Errorf("append record %d to ledger A: %w", r.Seq, err)
		return 0, p.err
	}
	if err := put(p.b, b[:], p.last.Seq); err != nil {
		p.err = fmt.Errorf("append record %d to ledger B: %w", r.Seq, err)
		return 0, p.err
	}
	p.last, p.sum = r, sum
	return r.Seq, nil
}

func put(f File, rec []byte, after uint64) error {
	if _, err := f.WriteAt(rec, int64(after)*RecordSize); err != nil {
		return err
	}
	return f.Sync()
}

func trim(f File, s Scan) error {
	if s.Tail == 0 {
		return nil
	}
	if err := f.Truncate(s.Records * RecordSize); err != nil {
		return err
	}
	return f.Sync()
}

func whole(r io.ReaderAt) io.Reader { return io.NewSectionReader(r, 0, 1<<62) }
