package hyperv_test

import (
	"bytes"
	"errors"
	"testing"

	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
	"holdfast/internal/mshrl"
	"holdfast/internal/vhdx"
)

// TestLogsAfterCheckpoint is why TrackerHRL is refused: a log that was going on while
// a checkpoint was made and merged can't be told from one of a disk that somebody
// changed offline. Should this fail one day, the tracker has become possible.
func TestLogsAfterCheckpoint(t *testing.T) {
	t.Parallel()
	for name, checkpoint := range map[string]bool{"checkpoint": true, "none": false} {
		t.Run(name, func(t *testing.T) { t.Parallel(); logAfter(t, checkpoint) })
	}
}

// logAfter has a log go on over a checkpoint, or over none, and asks it whether it tells all.
func logAfter(t *testing.T, checkpoint bool) {
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
	write := func(b byte) {
		t.Helper()
		eventually(t, func() error { return r.vm.Disk(diskA).Write(4096, bytes.Repeat([]byte{b}, 4096)) })
	}
	_, err := r.vm.NewPoint("hf-base", true, 2)
	must(t, err)
	write(1)
	if checkpoint {
		cp, err := r.vm.Checkpoint(t.Context(), model.NewCheckpoint{Name: "hf-cut", Recovery: true, Consistency: 2})
		must(t, err)
		write(2)
		must(t, r.vm.DeleteCheckpoint(cp.ID))
	}
	eventually(t, func() error {
		if len(r.vm.Disk(diskA).State().Files) > 1 {
			return model.ErrInUse // still merging
		}
		return nil
	})
	write(3)
	p, err := r.vm.NewPoint("hf-next", true, 2)
	must(t, err)
	files := vhdxfiles.New(vhdxfiles.Config{Root: r.sim.Dir()})
	for _, l := range p.Logs {
		if l.Disk != r.vm.Disk(diskA).ID {
			continue
		}
		path, err := files.Local(l.Path)
		must(t, err)
		log, err := mshrl.Open(path)
		must(t, err)
		changed, err := log.Changed()
		must(t, err)
		if len(changed) == 0 {
			t.Error("the log is empty")
		}
		leaf, err := files.Local(r.vm.Disk(diskA).State().Leaf)
		must(t, err)
		must(t, r.vm.PowerOff())
		f, err := vhdx.Open(leaf, vhdx.OpenOptions{})
		must(t, err)
		in, err := f.Info()
		must(t, errors.Join(err, f.Close()))
		if err := log.CheckDisk(mshrl.GUID(in.DataWrite)); errors.Is(err, mshrl.ErrOffline) != checkpoint {
			t.Errorf("checkpoint %v: the log says %v", checkpoint, err)
		}
		must(t, log.Close())
		return
	}
	t.Fatalf("the reference point has the logs %v", p.Logs)
}
