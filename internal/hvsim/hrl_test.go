package hvsim_test

import (
	"bytes"
	"strings"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/mshrl"
)

// at is a disk's content as a replay's target.
type at []byte

func (a at) WriteAt(p []byte, off int64) (int, error) { return copy(a[off:], p), nil }

// TestLogBasedReferencePoints: the logs between two points replay to the disk at the second.
func TestLogBasedReferencePoints(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	const svc = "Msvm_VirtualSystemReferencePointService"
	work := b.vm.Workload(8)
	point := func() cim.Path {
		t.Helper()
		p, err := b.call(svc, "CreateReferencePoint", "Msvm_VirtualSystemReferencePoint", "AffectedSystem", b.ref(b.vm), "ReferencePointType", uint16(0))
		must(t, err)
		return p
	}
	must(t, work.Step(3))
	base := point()
	replica := map[string][]byte{}
	for _, id := range b.ids {
		p, err := b.vm.Disk(id).Content()
		must(t, err)
		replica[id] = p
	}
	must(t, work.Step(10))
	point()
	must(t, work.Step(4))
	last := point()
	want := map[string][]byte{}
	for _, id := range b.ids {
		p, err := b.vm.Disk(id).Content()
		must(t, err)
		want[id] = p
	}
	must(t, work.Step(4)) // after the point
	set := text(t, "Msvm_VirtualSystemReferencePointExportSettingData", "BaseReferencePoint", base.String())
	_, job, err := cim.Call(t.Context(), b.host, b.service(svc), "ExportReferencePoint", cim.Pairs("ReferencePoint", last, "ExportDirectory", `C:\export`, "ExportSettingData", set), nil)
	must(t, err)
	logs := job.Instance.Strings("ExportedLogFilePaths")
	if len(logs) != 4 {
		t.Fatalf("exported logs: %v", logs)
	}
	for _, path := range logs {
		local, err := b.host.Local(path)
		must(t, err)
		l, err := mshrl.Open(local)
		must(t, err)
		for i, d := range b.vm.State().Disks {
			stem := strings.TrimSuffix(d.Base[strings.LastIndexByte(d.Base, '\\')+1:], ".vhdx")
			if strings.HasPrefix(path, `C:\export\`+stem+"_") {
				must(t, l.Replay(at(replica[b.ids[i]]), int64(len(replica[b.ids[i]]))))
			}
		}
		must(t, l.Close())
	}
	for _, id := range b.ids {
		if !bytes.Equal(replica[id], want[id]) {
			t.Errorf("disk %s: the replayed logs give something else", id)
		}
	}
	in, err := b.host.Get(t.Context(), last)
	must(t, err)
	if has, _ := in.Bool("HasAssociatedData"); !has || in.Args.String("ReferencePointType") != "1" {
		t.Errorf("reference point: %v", in.Args)
	}
	_, err = b.call(svc, "RemoveAssociatedData", "", "AffectedReferencePoint", last)
	must(t, err)
	in, err = b.host.Get(t.Context(), last)
	must(t, err)
	if has, _ := in.Bool("HasAssociatedData"); has {
		t.Error("the data is still there")
	}
}
