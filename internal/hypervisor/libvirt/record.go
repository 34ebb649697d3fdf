package libvirt

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"holdfast/internal/dr"
)

// bootRecord remembers what Boot creates, before it creates it. Stored as
// boot/<digest of the name>/boot.json, version in the bytes.
type bootRecord struct {
	Version int      `json:"version"` // 1
	Name    string   `json:"name"`
	Owner   string   `json:"owner"`
	UUID    string   `json:"uuid"`
	Files   []string `json:"files"` // local images
}

const recordVersion = 1

func writeRecord(dir string, rec bootRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "boot-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, "boot.json"))
	}
	return err
}

func readRecord(dir string) (bootRecord, error) {
	var rec bootRecord
	b, err := readLimited(filepath.Join(dir, "boot.json"), 1<<20)
	if errors.Is(err, os.ErrNotExist) {
		if _, derr := os.Stat(dir); derr == nil {
			// Died between making the directory and the record: nothing else exists.
			if rerr := os.RemoveAll(dir); rerr != nil {
				return rec, rerr
			}
		}
		return rec, err
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w", dir, err)
	}
	if rec.Version != recordVersion {
		return rec, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, "libvirt.Boot", "%s has version %d, known is %d", dir, rec.Version, recordVersion)
	}
	return rec, nil
}

// recordOf finds the record of a recovery VM by its UUID.
func (m *machines) recordOf(match func(bootRecord) bool) (bootRecord, bool, error) {
	dirs, err := filepath.Glob(filepath.Join(m.cfg.Dir, bootDir, "*", "boot.json"))
	if err != nil {
		return bootRecord{}, false, dr.Errorf(dr.KindInternal, "libvirt.Remove", "look for records: %w", err)
	}
	for _, d := range dirs {
		rec, err := readRecord(filepath.Dir(d))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return rec, false, dr.Errorf(dr.KindUnavailable, "libvirt.Remove", "read the records of recovery VMs: %w", err)
		}
		if match(rec) {
			return rec, true, nil
		}
	}
	return bootRecord{}, false, nil
}
