package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Reading the frozen image: pieces of pieceSize, pieceDepth of them under way.
const (
	pieceSize  = 256 << 10
	pieceDepth = 6
	window     = 1 << 30 // of a disk, whose ranges are held in memory at a time
)

// sealer writes the changes of one cut into a draft of the spool: into the cut
// object itself when they are few, else into parts.
type sealer struct {
	r       *Replicator
	draft   string
	key     cut.EpochKey
	epoch   uint32
	gen     dr.Generation
	n       uint64
	attempt uint32
	inParts bool

	seg     *segment
	parts   []cut.PartRef
	objects []object
	ups     *updatesWriter // nil while there are none
	stats   cut.Stats
}

// segment is one object being written to a file.
type segment struct {
	*cut.Writer
	file *os.File
	buf  *bufio.Writer
}

func newSegment(path string, cfg cut.WriterConfig) (*segment, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, diskError("capture.seal", path, err)
	}
	buf := bufio.NewWriterSize(f, 256<<10)
	w, err := cut.NewWriter(buf, cfg)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{Writer: w, file: f, buf: buf}, nil
}

// finish seals the segment durably.
func (s *segment) finish(commit *cut.Commit) (cut.Sealed, error) {
	sealed, err := s.Close(commit)
	if err == nil {
		err = s.buf.Flush()
	}
	if err == nil {
		err = s.file.Sync()
	}
	if cerr := s.file.Close(); err == nil {
		err = cerr
	}
	if err != nil && dr.CodeOf(err) == "" {
		err = diskError("capture.seal", s.file.Name(), err)
	}
	return sealed, err
}

func (s *segment) abandon() {
	s.Abort()
	s.file.Close()
}

// newSealer begins the next cut. bytes is how much data it may carry at most.
func (r *Replicator) newSealer(bytes int64) (*sealer, error) {
	var s sealer
	err := r.change(func(st *state) error {
		// Persisted before anything of this attempt can reach the store, so that
		// its parts never meet leftovers of an earlier one.
		st.Attempt++
		key, err := r.key(st)
		s = sealer{r: r, key: key, epoch: st.Epoch, gen: st.Gen, n: st.nextN(), attempt: st.Attempt, inParts: bytes > r.cfg.PartSize*3/4}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.draft, err = r.spool.draft(); err != nil {
		return nil, err
	}
	return &s, nil
}

func (s *sealer) header(k cut.Kind) cut.Header {
	return cut.Header{Kind: k, Machine: s.r.cfg.Machine, Gen: s.gen, N: s.n, KeyEpoch: s.epoch}
}

func (s *sealer) open() (*segment, error) {
	if s.seg != nil && s.inParts && s.seg.Stored() >= s.r.cfg.PartSize {
		if err := s.closePart(); err != nil {
			return nil, err
		}
	}
	if s.seg == nil {
		h := s.header(cut.KindCut)
		name := "cut"
		if s.inParts {
			h = s.header(cut.KindPart)
			h.Attempt, h.K = s.attempt, len(s.parts)
			name = fmt.Sprintf("part-%04x", h.K)
		}
		seg, err := newSegment(filepath.Join(s.draft, name), cut.WriterConfig{Header: h, Key: s.key, Codec: s.r.cfg.Codec})
		if err != nil {
			return nil, err
		}
		s.seg = seg
	}
	return s.seg, nil
}

func (s *sealer) closePart() error {
	seg := s.seg
	s.seg = nil
	sealed, err := seg.finish(nil)
	if err != nil {
		return err
	}
	s.parts = append(s.parts, cut.PartRef{Attempt: s.attempt, K: len(s.parts), Size: sealed.Size, BLAKE3: sealed.BLAKE3})
	s.note(sealed, seg)
	return nil
}

func (s *sealer) note(sealed cut.Sealed, seg *segment) {
	s.objects = append(s.objects, object{Name: sealed.Name.Key(), File: filepath.Base(seg.file.Name()), Size: sealed.Size, SHA256: sealed.SHA256})
}

func (s *sealer) data(ctx context.Context, disk uint16, off int64, p []byte) error {
	seg, err := s.open()
	if err != nil {
		return err
	}
	s.stats.DataBytes += int64(len(p))
	return seg.Data(ctx, disk, off, p)
}

func (s *sealer) zero(disk uint16, off, n int64) error {
	seg, err := s.open()
	if err != nil {
		return err
	}
	s.stats.ZeroBytes += n
	return seg.Zero(disk, off, n)
}

// finish seals the cut and makes the draft an entry of the spool.
func (s *sealer) finish(commit *cut.Commit, token string, cutTook time.Duration) (*entry, error) {
	if s.inParts && s.seg != nil {
		if err := s.closePart(); err != nil {
			return nil, err
		}
	}
	s.inParts = false
	seg, err := s.open()
	if err != nil {
		return nil, err
	}
	commit.Gen, commit.N, commit.Parts = s.gen, s.n, s.parts
	for _, p := range s.parts {
		commit.Stats.StoredBytes += p.Size
	}
	commit.Stats.DataBytes += s.stats.DataBytes
	commit.Stats.ZeroBytes += s.stats.ZeroBytes
	commit.Token = token
	s.seg = nil
	sealed, err := seg.finish(commit)
	if err != nil {
		return nil, err
	}
	s.note(sealed, seg)
	updates := s.ups != nil
	if updates {
		ups := s.ups
		s.ups = nil
		if err := ups.finish(); err != nil {
			return nil, err
		}
	}
	e := &entry{
		Ref: commit.Ref(sealed.ChainHash), Prev: commit.Prev, Token: token, Epoch: s.epoch, Time: commit.Time, Objects: s.objects,
		Dirty: commit.Stats.DirtyBytes, CutNS: int64(cutTook), Resync: commit.Resync, Updates: updates,
	}
	if err := s.r.spool.add(s.draft, e, s.r.step); err != nil {
		return nil, err
	}
	return e, nil
}

// abandon ends the writer and removes the draft, which a crash would leave.
func (s *sealer) abandon(err error) {
	if s.seg != nil {
		s.seg.abandon()
	}
	if s.ups != nil {
		s.ups.f.Close()
	}
	if !errors.Is(err, errCrash) {
		os.RemoveAll(s.draft)
	}
}

// ranges lists a window of a disk.
func ranges(ctx context.Context, c hypervisor.Cut, disk string, off, length int64, keep func(hypervisor.Range) bool) ([]hypervisor.Range, error) {
	var out []hypervisor.Range
	err := c.Extents(ctx, disk, off, length, func(r hypervisor.Range) error {
		if !keep(r) {
			return nil
		}
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len == r.Off && out[n-1].Zero == r.Zero && out[n-1].Changed == r.Changed {
			out[n-1].Len += r.Len
		} else {
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// readRanges reads the non-zero ranges in pieces, several at a time, and calls
// fn for all ranges in order: with data, or with p nil for a range of zeroes.
func readRanges(ctx context.Context, c hypervisor.Cut, disk string, rs []hypervisor.Range, fn func(off, n int64, p []byte) error) error {
	type piece struct {
		off, n int64
		p      []byte // nil for zeroes
		ready  chan error
	}
	eg, ctx := errgroup.WithContext(ctx)
	queue := make(chan *piece, pieceDepth)
	free := make(chan []byte, pieceDepth+2)
	for range cap(free) {
		free <- nil
	}
	eg.Go(func() error {
		defer close(queue)
		for _, r := range rs {
			for off, end := r.Off, r.Off+r.Len; off < end; {
				x := &piece{off: off, n: end - off, ready: make(chan error, 1)}
				if r.Zero {
					x.ready <- nil
				} else {
					x.n = min(x.n, pieceSize)
					var buf []byte
					select {
					case buf = <-free:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
					if buf == nil {
						buf = make([]byte, pieceSize)
					}
					x.p = buf[:x.n]
					eg.Go(func() error {
						x.ready <- c.ReadAt(ctx, disk, x.p, x.off)
						return nil
					})
				}
				select {
				case queue <- x:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				off += x.n
			}
		}
		return nil
	})
	eg.Go(func() error {
		for x := range queue {
			select {
			case err := <-x.ready:
				if err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := fn(x.off, x.n, x.p); err != nil {
				return err
			}
			if x.p != nil {
				free <- x.p[:pieceSize]
			}
		}
		return nil
	})
	return eg.Wait()
}

// trim hands over only the blocks that the filter does not know to be the
// same, and notes the new entries. p nil stands for zeroes.
func (s *sealer) trim(ctx context.Context, f *filter, disk uint16, off, n int64, p []byte) error {
	if p == nil {
		return s.trimZeroes(f, disk, off, n)
	}
	flush := func(from, to int64, sums []uint64) error {
		if from == to {
			return nil
		}
		if err := s.update(update{disk: disk, block: (off + from) / cut.Unit, sums: sums}); err != nil {
			return err
		}
		return s.data(ctx, disk, off+from, p[from:to])
	}
	var start int64
	var sums []uint64
	for at := int64(0); at < n; at += cut.Unit {
		v := f.sum(p[at:min(at+cut.Unit, n)])
		if !f.same((off+at)/cut.Unit, v) {
			sums = append(sums, v)
			continue
		}
		if err := flush(start, at, sums); err != nil {
			return err
		}
		start, sums = at+cut.Unit, nil
	}
	return flush(min(start, n), n, sums)
}

// update notes that the filter's entries of a run change with this cut.
func (s *sealer) update(x update) (err error) {
	if s.ups == nil {
		if s.ups, err = newUpdatesWriter(s.draft); err != nil {
			return err
		}
	}
	s.ups.add(x)
	return nil
}

func (s *sealer) trimZeroes(f *filter, disk uint16, off, n int64) error {
	first, last := off/cut.Unit, (off+n+cut.Unit-1)/cut.Unit
	for b := first; b < last; {
		if f.same(b, entryZero) {
			b++
			continue
		}
		e := b + 1
		for e < last && !f.same(e, entryZero) {
			e++
		}
		if err := s.update(update{disk: disk, block: b, zero: e - b}); err != nil {
			return err
		}
		if err := s.zero(disk, b*cut.Unit, min(e*cut.Unit, off+n)-b*cut.Unit); err != nil {
			return err
		}
		b = e
	}
	return nil
}
