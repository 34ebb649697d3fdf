package ledger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"
)

// Scan is what one ledger file holds.
type Scan struct {
	Records int64     // intact, chained records from the start of the file
	Last    uint64    // sequence number of the last of them, 0 if there is none
	Boot    uint64    // its boot number
	Time    time.Time // its clock
	Sum     Sum       // its sum
	Tail    int64     // bytes after it
	Torn    bool      // the tail is at most one record that is not intact: a write the power cut short
	Garbage bool      // the tail is anything else: damage
}

// ChainOK says that the file is an unbroken chain from record 1 with nothing
// but a torn record after it.
func (s Scan) ChainOK() bool { return !s.Garbage }

// scanner walks one ledger file record by record.
type scanner struct {
	r    *bufio.Reader
	buf  [RecordSize]byte
	scan Scan
	done bool
}

func newScanner(r io.Reader) *scanner {
	return &scanner{r: bufio.NewReaderSize(r, 64<<10)}
}

// next steps to the next intact and chained record. At the end of the chain it
// has drained the reader and filled Tail, Torn and Garbage. An error is a failed read only.
func (s *scanner) next() (bool, error) {
	if s.done {
		return false, nil
	}
	n, err := io.ReadFull(s.r, s.buf[:])
	switch {
	case errors.Is(err, io.EOF):
		s.done = true
		return false, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return false, s.finish(int64(n), true)
	case err != nil:
		s.done = true
		return false, err
	}
	rec, sum, err := Decode(s.buf[:])
	if err != nil {
		return false, s.finish(RecordSize, true)
	}
	if rec.Seq != s.scan.Last+1 || rec.Prev != s.scan.Sum || rec.Boot < s.scan.Boot || rec.Boot == 0 {
		// Intact but in the wrong place: old or foreign content, never a torn write.
		return false, s.finish(RecordSize, false)
	}
	s.scan.Records++
	s.scan.Last, s.scan.Boot, s.scan.Time, s.scan.Sum = rec.Seq, rec.Boot, rec.Time, sum
	return true, nil
}

func (s *scanner) finish(tail int64, maybeTorn bool) error {
	s.done = true
	rest, err := io.Copy(io.Discard, s.r)
	if err != nil {
		return err
	}
	s.scan.Tail = tail + rest
	s.scan.Torn = maybeTorn && rest == 0
	s.scan.Garbage = !s.scan.Torn
	return nil
}

// ScanFile reads one ledger file to its end. The error is non-nil only if
// reading failed; bad content is described in the Scan.
func ScanFile(r io.Reader) (Scan, error) {
	s := newScanner(r)
	for {
		ok, err := s.next()
		if err != nil {
			return s.scan, fmt.Errorf("scan ledger after record %d: %w", s.scan.Last, err)
		}
		if !ok {
			return s.scan, nil
		}
	}
}

// Verdict is the answer of a verification of the two files of one guest.
type Verdict struct {
	LastA, LastB    uint64    // last intact record of each file, 0 if none
	Valid           int64     // records that are intact and identical in both files
	OrderOK         bool      // LastA-LastB is 0 or 1: both disks stem from one instant
	ChainOK         bool      // both files are unbroken chains, agree, and have no damage after their ends
	TornTail        bool      // at least one file ends in a record cut short, which a crash may leave
	Boot            uint64    // boot number of the last record
	Time            time.Time // clock of the last record, zero if none
	JournalReplayed bool      // VerifyImages only: a file system was not cleanly unmounted or frozen
}

// OK says that the pair is a state which the writer's rule allows.
func (v Verdict) OK() bool { return v.OrderOK && v.ChainOK }

// Covers fails unless the pair is sound and holds every record up to acked in both files.
func (v Verdict) Covers(acked uint64) error {
	if !v.OK() {
		return fmt.Errorf("ledger is unsound: %s", v)
	}
	if v.LastB < acked {
		return fmt.Errorf("ledger lost records %d to %d, which were acknowledged: %s", v.LastB+1, acked, v)
	}
	return nil
}

// String renders the verdict on one line.
func (v Verdict) String() string {
	return fmt.Sprintf("lastA=%d lastB=%d valid=%d order=%t chain=%t torn=%t boot=%d replayed=%t",
		v.LastA, v.LastB, v.Valid, v.OrderOK, v.ChainOK, v.TornTail, v.Boot, v.JournalReplayed)
}

// Verify reads both files of a guest and judges them. The error is non-nil
// only if reading failed. Memory use does not depend on the files' size.
func Verify(a, b io.Reader) (Verdict, error) {
	sa, sb := newScanner(a), newScanner(b)
	var valid int64
	agree := true
	for {
		okA, err := sa.next()
		if err != nil {
			return Verdict{}, fmt.Errorf("read ledger A after record %d: %w", sa.scan.Last, err)
		}
		okB, err := sb.next()
		if err != nil {
			return Verdict{}, fmt.Errorf("read ledger B after record %d: %w", sb.scan.Last, err)
		}
		if okA && okB {
			agree = agree && sa.scan.Sum == sb.scan.Sum
			if agree {
				valid++
			}
		}
		if !okA && !okB {
			break
		}
	}
	return judge(sa.scan, sb.scan, valid, agree), nil
}

func judge(a, b Scan, valid int64, agree bool) Verdict {
	v := Verdict{
		LastA: a.Last, LastB: b.Last, Valid: valid,
		OrderOK:  a.Last == b.Last || a.Last == b.Last+1,
		ChainOK:  a.ChainOK() && b.ChainOK() && agree,
		TornTail: a.Torn || b.Torn,
		Boot:     a.Boot, Time: a.Time,
	}
	// A whole record of A is durable before B begins it, so while B ends in a
	// torn record A already has that record, and while A ends torn B is level.
	if b.Torn && a.Last != b.Last+1 || a.Torn && a.Last != b.Last {
		v.OrderOK = false
	}
	return v
}
