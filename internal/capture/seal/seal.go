// Package seal writes the objects of one cut into a draft of the spool: the
// segments, and what the cut changes in the filters. Memory is bounded by the
// segment writers' buffers. What it leaves behind when it fails is a draft, which the spool removes.
package seal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/capture/durable"
	"holdfast/internal/capture/filter"
	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// Config of a cut that is to be sealed.
type Config struct {
	Spool    *spool.Spool
	Header   cut.Header // machine, generation, number, key epoch; Seed as the commit will have it
	Attempt  uint32     // of parts: never used before
	Key      cut.EpochKey
	Codec    cut.Codec
	PartSize int64 // about how large an object gets, bytes
}

// Cut takes the changes of one cut: into the cut object until that is full,
// and into parts from there on. It is for one goroutine, and is ended by Finish or Abandon.
type Cut struct {
	cfg   Config
	draft string

	main    *Segment // the cut, open until the end
	part    *Segment
	parts   []cut.PartRef
	objects []spool.Object
	stored  int64          // of closed parts, bytes
	ups     *spool.Updates // nil while there are none
	stats   cut.Stats

	sums, have []uint64 // of the piece at hand
}

// New begins a cut with a draft of its own.
func New(cfg Config) (*Cut, error) {
	draft, err := cfg.Spool.Draft()
	if err != nil {
		return nil, err
	}
	return &Cut{cfg: cfg, draft: draft}, nil
}

// Segment is one object being written to a file.
type Segment struct {
	*cut.Writer
	file *os.File
	buf  *bufio.Writer
}

// NewSegment makes the file, which must not exist.
func NewSegment(path string, cfg cut.WriterConfig) (*Segment, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, durable.Error("capture.seal", path, err)
	}
	buf := bufio.NewWriterSize(f, 256<<10)
	w, err := cut.NewWriter(buf, cfg)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Segment{Writer: w, file: f, buf: buf}, nil
}

// Finish seals the segment and closes the file, which is durable if that is
// asked for. A file that no later process looks at need not be: whoever sends
// it has its SHA-256.
func (s *Segment) Finish(commit *cut.Commit, durably bool) (cut.Sealed, error) {
	sealed, err := s.Close(commit)
	if err == nil {
		err = s.buf.Flush()
	}
	if err == nil && durably {
		err = s.file.Sync()
	}
	if cerr := s.file.Close(); err == nil {
		err = cerr
	}
	return sealed, s.Error(err)
}

// Error names a failure of the file; the writer passes it on as it came.
func (s *Segment) Error(err error) error {
	if err == nil || dr.CodeOf(err) != "" {
		return err
	}
	return durable.Error("capture.seal", s.file.Name(), err)
}

// Abandon gives the segment up and closes the file.
func (s *Segment) Abandon() {
	s.Abort()
	s.file.Close()
}

func (s *Cut) segment(name string, h cut.Header) (*Segment, error) {
	h.Machine, h.Gen, h.N, h.KeyEpoch = s.cfg.Header.Machine, s.cfg.Header.Gen, s.cfg.Header.N, s.cfg.Header.KeyEpoch
	return NewSegment(filepath.Join(s.draft, name), cut.WriterConfig{Header: h, Key: s.cfg.Key, Codec: s.cfg.Codec})
}

// open returns the segment that takes the next range.
func (s *Cut) open() (seg *Segment, err error) {
	switch {
	case s.main == nil:
		s.main, err = s.segment("cut", cut.Header{Kind: cut.KindCut, Seed: s.cfg.Header.Seed})
		return s.main, err
	case s.main.Stored() < s.cfg.PartSize:
		return s.main, nil
	}
	if s.part != nil && s.part.Stored() >= s.cfg.PartSize {
		if err := s.closePart(); err != nil {
			return nil, err
		}
	}
	if s.part == nil {
		k := len(s.parts)
		s.part, err = s.segment(fmt.Sprintf("part-%04x", k), cut.Header{Kind: cut.KindPart, Attempt: s.cfg.Attempt, K: k})
	}
	return s.part, err
}

func (s *Cut) closePart() error {
	seg := s.part
	s.part = nil
	sealed, err := seg.Finish(nil, true)
	if err != nil {
		return err
	}
	s.parts = append(s.parts, cut.PartRef{Attempt: s.cfg.Attempt, K: len(s.parts), Size: sealed.Size, BLAKE3: sealed.BLAKE3})
	s.stored += sealed.Size
	s.note(sealed, seg)
	return nil
}

func (s *Cut) note(sealed cut.Sealed, seg *Segment) {
	s.objects = append(s.objects, spool.Object{Name: sealed.Name.Key(), File: filepath.Base(seg.file.Name()), Size: sealed.Size, SHA256: sealed.SHA256})
	s.stats.RawFrames += sealed.RawFrames
	s.stats.IncompressibleBytes += sealed.IncompressibleBytes
}

// Size is about how many bytes the cut would have now.
func (s *Cut) Size() int64 {
	n := s.stored
	if s.main != nil {
		n += s.main.Stored()
	}
	if s.part != nil {
		n += s.part.Stored()
	}
	return n
}

func (s *Cut) data(ctx context.Context, disk uint16, off int64, p []byte) error {
	seg, err := s.open()
	if err != nil {
		return err
	}
	s.stats.ChangedBytes += int64(len(p))
	s.stats.DataBytes += int64(len(p))
	return seg.Error(seg.Data(ctx, disk, off, p))
}

func (s *Cut) zero(disk uint16, off, n int64) error {
	seg, err := s.open()
	if err != nil {
		return err
	}
	s.stats.ChangedBytes += n
	s.stats.ZeroBytes += n
	return seg.Error(seg.Zero(disk, off, n))
}

// Result is what Finish adds to the entry of the spool.
type Result struct {
	Dirty int64         // as the tracker says, bytes
	Held  time.Duration // how long the frozen image was held
	Marks map[uint16]cut.Ref
	// After is asked for what the entry is to keep for its owner, once its reference is known.
	After func(cut.Ref) any
	Step  func(label string) error
}

// Finish seals the cut and makes the draft an entry of the spool. It fills in
// what the commit says of parts and figures.
func (s *Cut) Finish(commit *cut.Commit, res Result) (*spool.Entry, error) {
	fail := func(err error) (*spool.Entry, error) { return nil, err }
	if s.part != nil {
		if err := s.closePart(); err != nil {
			return fail(err)
		}
	}
	if s.main == nil {
		if _, err := s.open(); err != nil {
			return fail(err)
		}
	}
	own := s.main
	counts, err := own.End()
	if err != nil {
		return fail(own.Error(err))
	}
	h := s.cfg.Header
	commit.Gen, commit.N, commit.Parts, commit.Seed = h.Gen, h.N, s.parts, h.Seed
	commit.Stats.StoredBytes += s.stored
	commit.Stats.ChangedBytes += s.stats.ChangedBytes
	commit.Stats.DataBytes += s.stats.DataBytes
	commit.Stats.ZeroBytes += s.stats.ZeroBytes
	commit.Stats.RawFrames += s.stats.RawFrames + counts.RawFrames
	commit.Stats.IncompressibleBytes += s.stats.IncompressibleBytes + counts.IncompressibleBytes
	s.main = nil
	sealed, err := own.Finish(commit, true)
	if err != nil {
		return fail(err)
	}
	s.note(sealed, own)
	updates := s.ups != nil
	if updates {
		ups := s.ups
		s.ups = nil
		if err := ups.Finish(); err != nil {
			return fail(err)
		}
	}
	ref := commit.Ref(sealed.ChainHash)
	raw, err := json.Marshal(res.After(ref))
	if err != nil {
		return fail(dr.Errorf(dr.KindInternal, "capture.seal", "encode position: %w", err))
	}
	e := &spool.Entry{
		Ref: ref, Prev: commit.Prev, Epoch: h.KeyEpoch, Time: commit.Time, Objects: s.objects, Dirty: res.Dirty, CutNS: int64(res.Held),
		Resync: commit.Resync, Seed: commit.Seed, Updates: updates, After: raw, Marks: res.Marks,
	}
	return e, s.cfg.Spool.Add(s.draft, e, res.Step)
}

// Abandon ends the writers and removes the draft; keep leaves it, as a crash would.
func (s *Cut) Abandon(keep bool) {
	for _, seg := range []*Segment{s.main, s.part} {
		if seg != nil {
			seg.Abandon()
		}
	}
	if s.ups != nil {
		s.ups.Abandon()
	}
	if !keep {
		os.RemoveAll(s.draft)
	}
}

// Trim hands over only the blocks that the filter does not know to be the
// same, and notes the new entries. p nil stands for zeroes.
func (s *Cut) Trim(ctx context.Context, f *filter.Table, disk uint16, off, n int64, p []byte) error {
	if p == nil {
		return s.trimZeroes(f, disk, off, n)
	}
	count := (len(p) + cut.Unit - 1) / cut.Unit
	if cap(s.have) < count {
		s.have = make([]uint64, count)
	}
	have := s.have[:count]
	if err := f.Load(off/cut.Unit, have); err != nil {
		return err
	}
	return s.TrimData(ctx, f, disk, off, p, have)
}

// TrimData is Trim for data whose blocks have these entries in the filter.
func (s *Cut) TrimData(ctx context.Context, f *filter.Table, disk uint16, off int64, p []byte, have []uint64) error {
	n := int64(len(p))
	s.sums = f.Sums(s.sums[:0], p)
	for from := 0; from < len(have); {
		if have[from] == s.sums[from] {
			from++
			continue
		}
		to := from + 1
		for to < len(have) && have[to] != s.sums[to] {
			to++
		}
		ups, err := s.updates()
		if err != nil {
			return err
		}
		ups.Sums(disk, off/cut.Unit+int64(from), s.sums[from:to])
		if err := s.data(ctx, disk, off+int64(from)*cut.Unit, p[from*cut.Unit:min(int64(to)*cut.Unit, n)]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func (s *Cut) updates() (_ *spool.Updates, err error) {
	if s.ups == nil {
		s.ups, err = spool.NewUpdates(s.draft)
	}
	return s.ups, err
}

func (s *Cut) trimZeroes(f *filter.Table, disk uint16, off, n int64) error {
	const step = 4096 // entries looked at a time
	first, last := off/cut.Unit, (off+n+cut.Unit-1)/cut.Unit
	if cap(s.have) < step {
		s.have = make([]uint64, step)
	}
	flush := func(from, to int64) error {
		if from == to {
			return nil
		}
		ups, err := s.updates()
		if err != nil {
			return err
		}
		ups.Zeroes(disk, from, to-from)
		return s.zero(disk, from*cut.Unit, min(to*cut.Unit, off+n)-from*cut.Unit)
	}
	from, to := first, first // a run of blocks that are not known to be zero
	for b := first; b < last; b += step {
		have := s.have[:min(step, last-b)]
		if err := f.Load(b, have); err != nil {
			return err
		}
		for i, v := range have {
			if v == filter.Zero {
				if err := flush(from, to); err != nil {
					return err
				}
				from, to = b+int64(i)+1, b+int64(i)+1
				continue
			}
			to = b + int64(i) + 1
		}
	}
	return flush(from, to)
}
