// Package rct is the change tracking of the simulator's disks: for each point
// that somebody remembers, which parts of a disk were written since.
//
// It promises: a range that was marked is reported by every query whose start
// lies before the mark, until its tracking is lost; a tracker that cannot
// answer for a point says so and never guesses. The format of the files is the
// simulator's own (Windows' .rct and .mrt files are not published).
package rct

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sort"
	"sync"

	"holdfast/internal/extent"
)

// pageBits is the number of granules in a page of the sparse bitmap.
const pageBits = 4096

type page [pageBits / 64]uint64

// period holds the changes from the moment it began to the next period's beginning.
type period struct {
	Seq   uint64
	ID    string // name of its beginning; "" if nobody was told one
	Pages map[int64]*page
}

// Tracker tracks one disk. Safe for concurrent use.
type Tracker struct {
	mu      sync.Mutex
	path    string // file that holds the tracker's state while it is clean; "" = none
	clean   bool   // the file says what memory says
	size    int64
	gran    int64
	next    uint64
	periods []*period // ascending
}

// New returns a tracker of a disk of size bytes without any point; gran is a
// power of two in bytes. path is its file, "" for none.
func New(path string, size, gran int64) *Tracker {
	return &Tracker{path: path, size: size, gran: gran, next: 1}
}

type stored struct {
	Size, Gran int64
	Next       uint64
	Periods    []*period
}

// Load reads a tracker that Save wrote. A file that is missing, damaged or of
// another size gives an empty tracker: after a crash of the program, which loses marks,
// the file is missing, so all earlier points are unknown.
func Load(path string, size, gran int64) (*Tracker, error) {
	t := New(path, size, gran)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rct: read %s: %w", path, err)
	}
	var s stored
	if json.Unmarshal(b, &s) != nil || s.Size != size || s.Gran <= 0 {
		return t, nil
	}
	t.gran, t.next, t.periods, t.clean = s.Gran, s.Next, s.Periods, true
	for _, p := range t.periods {
		if p.Pages == nil {
			p.Pages = map[int64]*page{}
		}
	}
	return t, nil
}

// Save makes the file say what memory says.
func (t *Tracker) Save() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.clean || t.path == "" {
		return nil
	}
	b, err := json.Marshal(stored{t.size, t.gran, t.next, t.periods})
	if err != nil {
		return fmt.Errorf("rct: %w", err)
	}
	if err := os.WriteFile(t.path+".new", b, 0o644); err != nil {
		return fmt.Errorf("rct: %w", err)
	}
	if err := os.Rename(t.path+".new", t.path); err != nil {
		return fmt.Errorf("rct: %w", err)
	}
	t.clean = true
	return nil
}

// Remove deletes the tracker's file.
func (t *Tracker) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.periods = nil
	return t.dirty()
}

// dirty takes the file away before memory differs from it.
func (t *Tracker) dirty() error {
	if t.path != "" && t.clean {
		if err := os.Remove(t.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rct: %w", err)
		}
	}
	t.clean = false
	return nil
}

// Mark notes that [off, off+n) is about to be written. A caller whose Mark failed must not write.
func (t *Tracker) Mark(off, n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.periods) == 0 || n <= 0 {
		return nil
	}
	if err := t.dirty(); err != nil {
		return err
	}
	p := t.periods[len(t.periods)-1]
	for g := off / t.gran; g <= (off+n-1)/t.gran; g++ {
		pg := p.Pages[g/pageBits]
		if pg == nil {
			pg = new(page)
			p.Pages[g/pageBits] = pg
		}
		pg[g%pageBits/64] |= 1 << (g % 64)
	}
	return nil
}

// Freeze begins a new period under a name and returns its number.
func (t *Tracker) Freeze(id string) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.dirty(); err != nil {
		return 0, err
	}
	p := &period{Seq: t.next, ID: id, Pages: map[int64]*page{}}
	t.next++
	t.periods = append(t.periods, p)
	return p.Seq, nil
}

// Keep drops the points that are not in seqs: what was written since one of
// them counts as written since the one before it.
func (t *Tracker) Keep(seqs map[uint64]bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*period
	for _, p := range t.periods {
		if seqs[p.Seq] {
			out = append(out, p)
			continue
		}
		if err := t.dirty(); err != nil {
			return err
		}
		if len(out) == 0 {
			continue
		}
		before := out[len(out)-1]
		for i, pg := range p.Pages {
			if have := before.Pages[i]; have == nil {
				before.Pages[i] = pg
			} else {
				for w := range pg {
					have[w] |= pg[w]
				}
			}
		}
	}
	t.periods = out
	return nil
}

// Lose forgets everything: all points are unknown from now on.
func (t *Tracker) Lose() error { return t.Remove() }

// Resize is Lose for a disk that has another size from now on.
func (t *Tracker) Resize(size int64) error {
	t.mu.Lock()
	t.size = size
	t.mu.Unlock()
	return t.Lose()
}

// Seq finds a point by its name.
func (t *Tracker) Seq(id string) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.periods {
		if id != "" && p.ID == id {
			return p.Seq, true
		}
	}
	return 0, false
}

// Latest returns the name of the newest named point, "" if there is none.
func (t *Tracker) Latest() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.periods) - 1; i >= 0; i-- {
		if t.periods[i].ID != "" {
			return t.periods[i].ID
		}
	}
	return ""
}

// ErrUnknown tells that a point is not known, so that nobody knows what changed since.
var ErrUnknown = errors.New("rct: the point is not known to the disk's change tracking")

// Changes returns the ranges of [off, off+n) that were written between the
// points from and to (0 = now), ascending and merged, at most limit of them;
// processed is how many bytes the answer covers, less than n if the limit was reached.
func (t *Tracker) Changes(from, to uint64, off, n int64, limit int) (list []extent.Extent, processed int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := false
	granules := map[int64]*page{}
	for _, p := range t.periods {
		known = known || p.Seq == from
		if p.Seq < from || to != 0 && p.Seq >= to {
			continue
		}
		for i, pg := range p.Pages {
			if i < off/t.gran/pageBits || i > (off+n-1)/t.gran/pageBits {
				continue
			}
			u := granules[i]
			if u == nil {
				u = new(page)
				granules[i] = u
			}
			for w := range pg {
				u[w] |= pg[w]
			}
		}
	}
	if !known {
		return nil, 0, ErrUnknown
	}
	idx := make([]int64, 0, len(granules))
	for i := range granules {
		idx = append(idx, i)
	}
	sort.Slice(idx, func(a, b int) bool { return idx[a] < idx[b] })
	end := min(off+n, t.size)
	for _, i := range idx {
		for w, word := range granules[i] {
			for ; word != 0; word &= word - 1 {
				g := i*pageBits + int64(w)*64 + int64(bits.TrailingZeros64(word))
				lo, hi := max(g*t.gran, off), min((g+1)*t.gran, end)
				if lo >= hi {
					continue
				}
				if k := len(list) - 1; k >= 0 && list[k].End() == lo {
					list[k].Len += hi - lo
					continue
				}
				if len(list) == limit {
					return list, list[limit-1].End() - off, nil
				}
				list = append(list, extent.Extent{Off: lo, Len: hi - lo})
			}
		}
	}
	return list, end - off, nil
}
