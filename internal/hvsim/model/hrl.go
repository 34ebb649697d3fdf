package model

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/mshrl"
	"holdfast/internal/vhdx"
)

// Log based reference points: from the first one on each disk has a replica log
// ([MS-HRL]) beside its file, which the next one ends. When exactly Hyper-V begins and ends
// its logs is not published; this is a guess.

// logWriter writes a disk's replica log.
type logWriter struct {
	w  *mshrl.Writer
	id mshrl.GUID
}

// append logs a write; p is nil for zeroes.
func (l *logWriter) append(off, n int64, p []byte) error {
	now := time.Now()
	if p != nil {
		return l.w.Append(off, p, now)
	}
	zero := make([]byte, min(n, 1<<20))
	for n > 0 {
		k := min(n, int64(len(zero)))
		if err := l.w.Append(off, zero[:k], now); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// turnLog ends the disk's log and begins the next one; it returns the path of
// the ended one, "" if this is the first. A log that a program's end cut short stays open: its reader sees that.
// The caller holds the VM's io.
func (d *Disk) turnLog() (string, error) {
	ended := d.State().Log
	h := mshrl.Header{UniqueID: mshrl.GUID(vhdx.NewGUID()), Creator: "sim"}
	if d.log != nil {
		h.PreviousID = d.log.id
		if err := d.log.w.Close(); err != nil {
			return "", err
		}
		d.log = nil
	}
	if c, ok := d.vol.(*vhdx.Chain); ok {
		// The first write of an open disk changes its DataWriteGuid: make it now, so that the log names what the file will have.
		p := make([]byte, 4096)
		if _, err := c.ReadAt(p, 0); err != nil {
			return "", err
		}
		if _, err := c.WriteAt(p, 0); err != nil {
			return "", err
		}
		in, err := c.Info()
		if err != nil {
			return "", err
		}
		h.DataWriteGUID = mshrl.GUID(in.DataWrite)
	}
	ds := d.State()
	path := strings.TrimSuffix(ds.Base, ds.Base[strings.LastIndexByte(ds.Base, '.'):]) + "_" + d.vm.site.NewGUID() + ".hrl"
	local, err := d.vm.Host().Local(path)
	if err != nil {
		return "", err
	}
	w, err := mshrl.Create(local, h)
	if err != nil {
		return "", err
	}
	d.log = &logWriter{w: w, id: h.UniqueID}
	return ended, d.edit(func(ds *DiskState) { ds.Log = path })
}

// abandonLog leaves the log as a program's end leaves it.
func (d *Disk) abandonLog() error {
	if d.log == nil {
		return nil
	}
	err := d.log.w.Abandon()
	d.log = nil
	return err
}

// DropLogs deletes the logs of a reference point.
func (vm *VM) DropLogs(point string) error {
	var logs []Log
	err := vm.change(func(st *State) error {
		for i := range st.Points {
			if strings.EqualFold(st.Points[i].ID, point) {
				logs, st.Points[i].Logs = st.Points[i].Logs, nil
				return nil
			}
		}
		return fmt.Errorf("reference point %s of VM %s: %w", point, st.Name, ErrNotFound)
	})
	errs := []error{err}
	for _, l := range logs {
		if local, err := vm.Host().Local(l.Path); err == nil {
			errs = append(errs, removeFile(local))
		}
	}
	return errors.Join(errs...)
}

// endLogs ends logging and deletes the logs that no reference point has.
func (vm *VM) endLogs() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	var errs []error
	for _, d := range vm.all() {
		path := d.State().Log
		if path == "" {
			continue
		}
		errs = append(errs, d.abandonLog(), d.edit(func(ds *DiskState) { ds.Log = "" }))
		if local, err := vm.Host().Local(path); err == nil {
			errs = append(errs, removeFile(local))
		}
	}
	return errors.Join(errs...)
}

// exports lists the logs between two reference points (base excluded; "" = those of point alone) and where
// they are copied to.
func (vm *VM) exports(point, base, dir string, disks []string) (from, to []string) {
	st := vm.State()
	end := slices.IndexFunc(st.Points, func(p Point) bool { return strings.EqualFold(p.ID, point) })
	begin := end
	if base != "" {
		begin = slices.IndexFunc(st.Points, func(p Point) bool { return strings.EqualFold(p.ID, base) }) + 1
	}
	if end < 0 || begin > end {
		return nil, nil
	}
	for _, p := range st.Points[begin : end+1] {
		for _, l := range p.Logs {
			ds := st.Disk(l.Disk)
			if len(disks) > 0 && (ds == nil || !slices.ContainsFunc(disks, func(d string) bool {
				return strings.Contains(strings.ToUpper(d), l.Disk) || strings.EqualFold(d, ds.Base) || strings.EqualFold(d, ds.Leaf)
			})) {
				continue
			}
			from = append(from, l.Path)
			to = append(to, strings.TrimRight(dir, `\`)+`\`+l.Path[strings.LastIndexByte(l.Path, '\\')+1:])
		}
	}
	return from, to
}

// ExportPaths is where ExportPoint puts the logs, oldest first.
func (vm *VM) ExportPaths(point, base, dir string, disks []string) []string {
	_, to := vm.exports(point, base, dir, disks)
	return to
}

// ExportPoint copies the logs of a log based reference point to a directory.
func (vm *VM) ExportPoint(point, base, dir string, disks []string) error {
	from, to := vm.exports(point, base, dir, disks)
	h := vm.Host()
	for i := range from {
		src, err := h.Local(from[i])
		if err != nil {
			return err
		}
		dst, err := h.Local(to[i])
		if err != nil {
			return fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if err := copyLog(dst, src); err != nil {
			return fmt.Errorf("export %s: %w", from[i], err)
		}
	}
	return nil
}

func copyLog(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
