package planner

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"holdfast/internal/dr"
)

// FileVersion is the version of the profile file.
//
// History:
//
//	1  2026-11-22  first version: JSON lines, each with "kind": header, vm, sample
const FileVersion = 1

// maxLine bounds a line of a profile.
const maxLine = 4 << 20

// record is a line of a profile file; exactly one of the pointers is set, named by Kind.
type record struct {
	Kind   string        `json:"kind"`
	Header *fileHeader   `json:"header,omitempty"`
	VM     *fileVM       `json:"vm,omitempty"`
	Sample *fileInterval `json:"sample,omitempty"`
}

type fileHeader struct {
	Version    int          `json:"version"`
	Host       string       `json:"host"`
	Hypervisor string       `json:"hypervisor"`
	Started    time.Time    `json:"started"`
	Interval   float64      `json:"intervalSeconds"`
	Volumes    []fileVolume `json:"volumes,omitempty"`
}

type fileVolume struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
	Free int64  `json:"free"`
}

type fileVM struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Disks []fileDisk `json:"disks"`
}

type fileDisk struct {
	ID        string `json:"id"`
	Path      string `json:"path"`
	Size      int64  `json:"size"`
	Allocated int64  `json:"allocated,omitempty"`
}

type fileInterval struct {
	VM      string           `json:"vm"`
	At      time.Time        `json:"at"`
	Seconds float64          `json:"seconds"`
	Changed map[string]int64 `json:"changed,omitempty"` // bytes by disk
	Error   string           `json:"error,omitempty"`   // the interval could not be measured, and why
}

// Volume is a file system that holds disks.
type Volume struct {
	Path       string
	Size, Free int64
}

// Disk is a disk as it was when profiling began.
type Disk struct {
	ID, Path        string
	Size, Allocated int64
	Peak            int64 // most bytes that changed in one interval
	Total           int64 // bytes that changed in all intervals, each interval counted for itself
}

// VM is what was measured of a VM.
type VM struct {
	ID      dr.VMID
	Name    string
	Disks   []Disk
	Samples []Sample
	Errors  int    // intervals that could not be measured
	Last    string // the newest error
}

// Sample is one interval of one VM.
type Sample struct {
	At      time.Time // its end
	Length  time.Duration
	Changed int64 // bytes, of all disks
}

// Profile is what profile files hold, of one host.
type Profile struct {
	Host, Hypervisor string
	Started          time.Time
	Interval         time.Duration
	Volumes          []Volume
	VMs              []VM
	Torn             bool // the file ends in the middle of a line: the profiler was killed
}

// Read reads a profile. Unknown fields and kinds of lines are ignored; another version is refused.
func Read(r io.Reader) (Profile, error) {
	const op = "planner.Read"
	var p Profile
	index := map[string]int{}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for n := 1; sc.Scan(); n++ {
		if p.Torn {
			return p, dr.Errorf(dr.KindCorrupt, op, "line %d of the profile is no JSON, and more lines follow", n-1)
		}
		var rec record
		if err := json.Unmarshal(sc.Bytes(), &rec); err != nil {
			p.Torn = true // good if it is the last
			continue
		}
		switch {
		case rec.Header != nil:
			if rec.Header.Version != FileVersion {
				return p, dr.Errorf(dr.KindUnsupported, op, "the profile has version %d, this program reads %d", rec.Header.Version, FileVersion)
			}
			if p.Interval = time.Duration(rec.Header.Interval * float64(time.Second)); p.Interval <= 0 {
				return p, dr.Errorf(dr.KindCorrupt, op, "the profile says that its interval is %v seconds", rec.Header.Interval)
			}
			if p.Started.IsZero() { // a profile that was continued has more than one
				p.Host, p.Hypervisor, p.Started = rec.Header.Host, rec.Header.Hypervisor, rec.Header.Started
			}
			p.Volumes = nil
			for _, v := range rec.Header.Volumes {
				p.Volumes = append(p.Volumes, Volume(v))
			}
		case p.Interval == 0:
			return p, dr.Errorf(dr.KindInvalid, op, "this is no profile: it does not begin with a header")
		case rec.VM != nil:
			vm := VM{ID: dr.VMID(rec.VM.ID), Name: rec.VM.Name}
			for _, d := range rec.VM.Disks {
				vm.Disks = append(vm.Disks, Disk{ID: d.ID, Path: d.Path, Size: d.Size, Allocated: d.Allocated})
			}
			if i, ok := index[rec.VM.ID]; ok {
				for k, d := range vm.Disks { // what was counted stays
					for _, old := range p.VMs[i].Disks {
						if old.ID == d.ID {
							vm.Disks[k].Peak, vm.Disks[k].Total = old.Peak, old.Total
						}
					}
				}
				p.VMs[i].Name, p.VMs[i].Disks = vm.Name, vm.Disks
				continue
			}
			index[rec.VM.ID] = len(p.VMs)
			p.VMs = append(p.VMs, vm)
		case rec.Sample != nil:
			i, ok := index[rec.Sample.VM]
			if !ok {
				return p, dr.Errorf(dr.KindCorrupt, op, "line %d has a sample of VM %s, which was not introduced", n, rec.Sample.VM)
			}
			vm := &p.VMs[i]
			if rec.Sample.Error != "" {
				vm.Errors++
				vm.Last = rec.Sample.Error
				continue
			}
			s := Sample{At: rec.Sample.At, Length: time.Duration(rec.Sample.Seconds * float64(time.Second))}
			for id, c := range rec.Sample.Changed {
				c = max(c, 0)
				s.Changed += c
				for k := range vm.Disks {
					if d := &vm.Disks[k]; d.ID == id {
						d.Peak, d.Total = max(d.Peak, c), d.Total+c
					}
				}
			}
			if s.Length > 0 {
				vm.Samples = append(vm.Samples, s)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return p, dr.Errorf(dr.KindCorrupt, op, "read the profile: %w", err)
	}
	if p.Interval == 0 {
		return p, dr.Errorf(dr.KindInvalid, op, "this is no profile: it does not begin with a header")
	}
	return p, nil
}

// writer appends records to a profile file.
type writer struct{ f *os.File }

// openWriter opens a profile for appending, after cutting off a torn last line.
func openWriter(path string) (*writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "planner.Profile", "open the profile: %w", err)
	}
	end, err := whole(f)
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(dr.Errorf(dr.KindUnavailable, "planner.Profile", "prepare the profile %s: %w", path, err), f.Close())
	}
	return &writer{f: f}, nil
}

// whole returns the end of the last complete line.
func whole(f *os.File) (int64, error) {
	r := bufio.NewReader(f)
	var end int64
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			more, err := r.ReadBytes('\n')
			if errors.Is(err, io.EOF) {
				return end, nil
			}
			if err != nil {
				return 0, err
			}
			end += int64(len(line) + len(more))
		case errors.Is(err, io.EOF):
			return end, nil
		case err != nil:
			return 0, err
		default:
			end += int64(len(line))
		}
	}
}

func (w *writer) append(list ...record) error {
	var buf []byte
	for _, r := range list {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode a line of the profile: %w", err)
		}
		buf = append(append(buf, b...), '\n')
	}
	if _, err := w.f.Write(buf); err != nil {
		return dr.Errorf(dr.KindUnavailable, "planner.Profile", "write the profile: %w", err)
	}
	if err := w.f.Sync(); err != nil {
		return dr.Errorf(dr.KindUnavailable, "planner.Profile", "write the profile: %w", err)
	}
	return nil
}
