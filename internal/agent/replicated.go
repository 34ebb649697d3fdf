package agent

import (
	"errors"
	"io/fs"
	"path/filepath"

	"holdfast/internal/agent/state"
	"holdfast/internal/dr"
)

// ReplicatedVMs lists the VMs that the agent of a state directory replicates, or
// of which it still keeps state. It may run beside the agent. A
// directory without agent has none.
func ReplicatedVMs(stateDir string) (map[dr.VMID]bool, error) {
	var f assignmentsFile
	out := map[dr.VMID]bool{}
	err := state.Load(filepath.Join(stateDir, state.Assignments), &f)
	if errors.Is(err, fs.ErrNotExist) || dr.KindOf(err) == dr.KindNotFound {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, a := range f.List {
		out[dr.VMID(a.VM)] = true
	}
	for _, vm := range f.VMs {
		out[dr.VMID(vm)] = true
	}
	return out, nil
}
