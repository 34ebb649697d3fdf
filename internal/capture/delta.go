package capture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// tag names a new tracking token: recognisable as this replica's, and random,
// because a token of an attempt that died may still be there.
func (r *Replicator) tag(n uint64) string {
	return fmt.Sprintf("%.8s-%d-%08x", r.cfg.Machine, n, rand.Uint32())
}

// delta makes one cut after the tip. Without a token for the tip it is a
// resynchronization: everything is read and the filter says what differs.
func (r *Replicator) delta(ctx context.Context, a Assignment, st state, quiesce, offline bool) (err error) {
	full := st.Resync != "" || st.TipToken == ""
	base := st.TipToken
	if full {
		base = ""
		r.set(func(s *Status) { s.Phase, s.Resync, s.Percent = PhaseResync, st.Resync, 0 })
	} else {
		r.set(func(s *Status) { s.Phase, s.Resync, s.Note = PhaseDelta, "", "" })
	}
	r.cutting.Lock()
	defer r.cutting.Unlock()
	start := time.Now()
	c, err := r.cfg.Source.BeginCut(ctx, hypervisor.CutRequest{
		VM: a.VM, Disks: a.Disks, Base: base, Tag: r.tag(st.nextN()), Quiesce: quiesce, Offline: offline,
	})
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			// The base token stays good, so a failed cut costs nothing.
			err = errors.Join(err, c.Abort(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.step("cut.begun"); err != nil {
		kept = errors.Is(err, errCrash) // a crash aborts nothing
		return err
	}
	info := c.Info()
	disks, err := r.disksOf(info)
	if err != nil {
		return err
	}
	fs, err := r.openFilters(disks)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.close()) }()
	if err := r.alignFilters(fs, st.Tip); err != nil {
		return err
	}
	vm, err := r.vmRecord(ctx, a.VM)
	if err != nil {
		return err
	}
	dirty, data, err := r.measure(ctx, c, info, full)
	if err != nil {
		return err
	}
	s, err := r.newSealer(data)
	if err != nil {
		return err
	}
	sealed := false
	defer func() {
		if !sealed {
			s.abandon(err)
		}
	}()
	if err := r.readCut(ctx, c, info, disks, fs, s, dirty, full); err != nil {
		return err
	}
	if err := r.step("cut.read"); err != nil {
		kept = true
		return err
	}
	// The frozen image is not needed any more; its token is, once the entry is durable.
	if err := c.End(ctx); err != nil {
		return err
	}
	took := time.Since(start)
	if err := r.step("cut.ended"); err != nil {
		kept = true
		return err
	}
	commit := &cut.Commit{
		Prev: st.Tip, Time: info.Time.UTC(), Consistency: info.Consistency, Note: info.Note, Resync: full, Disks: disks, VM: vm,
		Stats: cut.Stats{DirtyBytes: dirty, Read: took},
	}
	e, err := s.finish(commit, info.Token, took)
	if err != nil {
		kept = errors.Is(err, errCrash)
		return err
	}
	sealed, kept = true, true
	return r.advance(e, fs, func(st *state) { st.Resync = "" })
}

// advance makes the entry the chain's tip, brings the filters there and wakes the shipper.
func (r *Replicator) advance(e *entry, fs filters, also func(*state)) error {
	err := r.change(func(s *state) error {
		s.Tip, s.TipToken = e.Ref, e.Token
		also(s)
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.step("tip.saved"); err != nil {
		return err
	}
	for index, f := range fs {
		if err := e.apply(index, f); err != nil {
			return err
		}
	}
	if err := r.step("filter.applied"); err != nil {
		return err
	}
	r.set(func(s *Status) { s.Cycles++; s.Backlog = 0 })
	r.tipAt = e.Time
	r.enqueue(e)
	return nil
}

// disksOf gives the disks of a cut their stable indexes.
func (r *Replicator) disksOf(info hypervisor.CutInfo) ([]cut.Disk, error) {
	var disks []cut.Disk
	err := r.change(func(s *state) error {
		for _, d := range info.Disks {
			disks = append(disks, cut.Disk{Index: s.index(d.ID, d.Size), ID: d.ID, Size: d.Size})
		}
		return nil
	})
	return disks, err
}

// alignFilters brings the tables to the tip with what is still in the spool.
func (r *Replicator) alignFilters(fs filters, tip cut.Ref) error {
	entries, err := r.spool.list()
	if err != nil {
		return err
	}
	return fs.align(tip, entries)
}

// vmRecord captures the VM's configuration for the cut.
func (r *Replicator) vmRecord(ctx context.Context, vm dr.VMID) (cut.VMRecord, error) {
	c, err := r.cfg.Source.Config(ctx, vm)
	if err != nil {
		return cut.VMRecord{}, err
	}
	return cut.VMRecord{Name: c.VM.Name, UUID: string(c.VM.ID), Generation: c.VM.Generation, CPUs: c.VM.CPUs, MemoryMB: c.VM.MemoryMB, Config: c.Native}, nil
}

// measure sums what the tracker calls changed, and how much of it is data.
func (r *Replicator) measure(ctx context.Context, c hypervisor.Cut, info hypervisor.CutInfo, full bool) (dirty, data int64, err error) {
	for _, d := range info.Disks {
		err := c.Extents(ctx, d.ID, 0, d.Size, func(x hypervisor.Range) error {
			if x.Changed || full {
				dirty += x.Len
				if !x.Zero {
					data += x.Len
				}
			}
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
	}
	r.set(func(s *Status) { s.Backlog = dirty })
	return dirty, data, nil
}

// readCut reads what changed and seals what differs.
func (r *Replicator) readCut(ctx context.Context, c hypervisor.Cut, info hypervisor.CutInfo, disks []cut.Disk, fs filters, s *sealer, total int64, full bool) error {
	start := time.Now()
	var done int64
	for i, d := range info.Disks {
		index, f := disks[i].Index, fs[disks[i].Index]
		for off := int64(0); off < d.Size; off += window {
			rs, err := ranges(ctx, c, d.ID, off, min(window, d.Size-off), func(x hypervisor.Range) bool { return x.Changed || full })
			if err != nil {
				return err
			}
			err = readRanges(ctx, c, d.ID, widen(rs, d.Size), func(off, n int64, p []byte) error {
				done += n
				if full {
					r.progress(start, done, total)
				}
				return s.trim(ctx, f, index, off, n, p)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// widen aligns ranges to the unit of the format: a tracker may be finer.
func widen(rs []hypervisor.Range, size int64) []hypervisor.Range {
	const mask = cut.Unit - 1
	out := rs[:0]
	for _, x := range rs {
		if x.Off&mask != 0 || ((x.Off+x.Len)&mask != 0 && x.Off+x.Len != size) {
			end := min((x.Off+x.Len+mask)&^mask, size)
			x.Off &^= mask
			x.Len, x.Zero = end-x.Off, false // the neighbours inside the unit may be data
		}
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len > x.Off {
			overlap := out[n-1].Off + out[n-1].Len - x.Off
			if overlap >= x.Len {
				out[n-1].Zero = out[n-1].Zero && x.Zero
				continue
			}
			if out[n-1].Zero && !x.Zero {
				out[n-1].Len -= overlap
				if out[n-1].Len == 0 {
					out = out[:n-1]
				}
			} else {
				x.Off += overlap
				x.Len -= overlap
			}
		}
		out = append(out, x)
	}
	return out
}

// progress publishes percent and ETA.
func (r *Replicator) progress(start time.Time, done, total int64) {
	r.set(func(s *Status) {
		s.BytesDone, s.BytesTotal = done, total
		if total > 0 {
			s.Percent = 100 * float64(done) / float64(total)
		}
		s.ETA = 0
		if el := time.Since(start); done > 0 && done < total && el > 2*time.Second {
			s.ETA = time.Duration(float64(el) / float64(done) * float64(total-done)).Round(time.Second)
		}
	})
}
