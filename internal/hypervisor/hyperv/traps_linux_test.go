package hyperv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor/hyperv"
)

func wantCode(t testing.TB, err error, code dr.Code) {
	t.Helper()
	if err == nil || dr.CodeOf(err) != code {
		t.Errorf("error %v (code %q), want code %q", err, dr.CodeOf(err), code)
	}
}

// full takes a whole cut and ends it.
func (r *rig) full(t testing.TB, h *hyperv.Host, tag string) (token string, rep replica) {
	t.Helper()
	c, err := h.BeginCut(t.Context(), r.request("", tag))
	must(t, err)
	rep = replica{}
	must(t, rep.apply(t.Context(), c))
	must(t, c.End(t.Context()))
	return c.Info().Token, rep
}

// TestTraps: what goes wrong on hosts, one by one.
func TestTraps(t *testing.T) {
	t.Parallel()
	spec := func(fn func(*hvsim.VMSpec)) rigOption { return func(_ *hvsim.Config, s *hvsim.VMSpec) { fn(s) } }
	for name, c := range map[string]struct {
		opt rigOption
		fn  func(t *testing.T, r *rig, h *hyperv.Host)
	}{
		"old configuration": {spec(func(s *hvsim.VMSpec) { s.Version = "5.0" }), func(t *testing.T, r *rig, h *hyperv.Host) {
			_, err := h.BeginCut(t.Context(), r.request("", "a"))
			wantCode(t, err, dr.CodeConfigurationOld)
		}},
		"checkpoints disabled": {spec(func(s *hvsim.VMSpec) { s.UserSnapshotType = 2 }), func(t *testing.T, r *rig, h *hyperv.Host) {
			_, err := h.BeginCut(t.Context(), r.request("", "a"))
			wantCode(t, err, dr.CodeCheckpointsOff)
		}},
		"disks that can't be tracked": {spec(func(s *hvsim.VMSpec) {
			s.Disks = append(s.Disks, hvsim.DiskSpec{Name: "old", Kind: model.VHD, Size: 4 << 20}, hvsim.DiskSpec{Name: "raw", Kind: model.PassThrough, Size: 4 << 20}, hvsim.DiskSpec{Name: "set", Kind: model.Shared, Size: 4 << 20})
		}), func(t *testing.T, r *rig, h *hyperv.Host) {
			cfg, err := h.Config(t.Context(), r.id())
			must(t, err)
			refused := 0
			for _, d := range cfg.VM.Disks {
				if d.Unreplicatable != "" {
					refused++
					req := r.request("", "x")
					req.Disks = []string{d.ID}
					_, err := h.BeginCut(t.Context(), req)
					want := map[bool]dr.Code{d.PassThru: dr.CodeDiskPassThrough, d.Shared: dr.CodeDiskShared, d.Format == "vhd": dr.CodeDiskFormatVHD}[true]
					wantCode(t, err, want)
				}
			}
			if refused != 3 {
				t.Errorf("%d disks are refused in %+v", refused, cfg.VM.Disks)
			}
		}},
		"tracking of one disk lost": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			base, rep := r.full(t, h, "a")
			must(t, r.vm.Disk(diskA).LoseRCT())
			c, err := h.BeginCut(t.Context(), r.request(base, "b"))
			must(t, err)
			for _, d := range c.Info().Disks {
				if d.Whole != (d.ID == diskA) || d.Whole != (d.Why != "") {
					t.Errorf("disk %+v", d)
				}
			}
			must(t, rep.apply(t.Context(), c))
			rep.equal(t, r.vm, "cut after lost tracking")
			must(t, c.End(t.Context()))
		}},
		"changed offline": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			base, rep := r.full(t, h, "a")
			must(t, r.vm.PowerOff())
			eventually(t, func() error { return r.vm.Disk(diskA).EditOffline(1<<20, []byte(strings.Repeat("offline!", 512))) })
			must(t, r.vm.Start(t.Context()))
			c, err := h.BeginCut(t.Context(), r.request(base, "b"))
			must(t, err)
			for _, d := range c.Info().Disks {
				if d.Whole != (d.ID == diskA) || d.Whole != (d.Why != "") {
					t.Errorf("disk %+v", d)
				}
			}
			must(t, rep.apply(t.Context(), c))
			rep.equal(t, r.vm, "cut after an offline change")
			must(t, c.End(t.Context()))
		}},
		"user checkpoint": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			base, rep := r.full(t, h, "a")
			eventually(t, func() error { _, err := r.sim.UserCheckpoint(t.Context(), r.vm, "before update"); return err })
			must(t, r.vm.Disk(diskA).Write(3<<20, []byte(strings.Repeat("x", 4096))))
			c, err := h.BeginCut(t.Context(), r.request(base, "b"))
			must(t, err)
			must(t, rep.apply(t.Context(), c))
			rep.equal(t, r.vm, "cut with a user's checkpoint")
			must(t, c.End(t.Context()))
			must(t, h.Forget(t.Context(), r.id(), nil))
			if n := len(r.vm.State().Checkpoints); n != 1 {
				t.Errorf("%d checkpoints are left, want the user's", n)
			}
		}},
		"no right to log on as a service": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			c, err := h.BeginCut(t.Context(), r.request("", "a"))
			must(t, err)
			r.site.SetFaults(hvsim.Fault{Method: "ConvertToReferencePoint", JobState: 10, JobError: 32768, JobText: "failed (0x80070569)", Count: 1})
			wantCode(t, c.End(t.Context()), dr.CodeLogonAsService)
			if r.site.Fired()["ConvertToReferencePoint"] != 1 {
				t.Errorf("faults fired: %v", r.site.Fired())
			}
			must(t, c.End(t.Context())) // repaired meanwhile
			if got := r.points(); len(got) != 1 {
				t.Errorf("reference points %v", got)
			}
		}},
		"guest snapshot fails": {spec(func(s *hvsim.VMSpec) { s.VSS = model.VSSFail }), func(t *testing.T, r *rig, h *hyperv.Host) {
			req := r.request("", "a")
			req.Quiesce = true
			c, err := h.BeginCut(t.Context(), req)
			must(t, err)
			if i := c.Info(); i.Consistency != dr.CrashConsistent || i.Note == "" {
				t.Errorf("%q, note %q", i.Consistency, i.Note)
			}
			must(t, c.Abort(t.Context()))
		}},
		"guest snapshot": {spec(func(s *hvsim.VMSpec) { s.VSS, s.OS = model.VSSOk, "Windows Server 2022 Datacenter" }), func(t *testing.T, r *rig, h *hyperv.Host) {
			req := r.request("", "a")
			req.Quiesce = true
			c, err := h.BeginCut(t.Context(), req)
			must(t, err)
			if i := c.Info(); i.Consistency != dr.AppConsistent || i.Note != "" {
				t.Errorf("%q, note %q", i.Consistency, i.Note)
			}
			must(t, c.Abort(t.Context()))
		}},
		"record lost": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			base, _ := r.full(t, h, "a")
			must(t, os.RemoveAll(filepath.Join(r.cfg.Dir, "tokens")))
			_, err := h.BeginCut(t.Context(), r.request(base, "b"))
			wantCode(t, err, dr.CodeTrackingLost)
			must(t, h.Forget(t.Context(), r.id(), []string{base}))
			if got := r.points(); len(got) != 0 {
				t.Errorf("reference points %v that nobody can use are left", got)
			}
		}},
		"offline": {nil, func(t *testing.T, r *rig, h *hyperv.Host) {
			base, rep := r.full(t, h, "a")
			must(t, r.vm.Disk(diskB).Write(0, []byte(strings.Repeat("y", 512))))
			must(t, r.vm.PowerOff())
			req := r.request(base, "b")
			req.Offline = true
			c, err := h.BeginCut(t.Context(), req)
			must(t, err)
			must(t, rep.apply(t.Context(), c))
			rep.equal(t, r.vm, "offline cut")
			must(t, c.End(t.Context()))
			if s, err := h.State(t.Context(), r.id()); err != nil || s != "off" {
				t.Errorf("the VM is %s, %v", s, err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := []rigOption{}
			if c.opt != nil {
				opts = append(opts, c.opt)
			}
			r := newRig(t, opts...)
			c.fn(t, r, r.open(t))
		})
	}
}
