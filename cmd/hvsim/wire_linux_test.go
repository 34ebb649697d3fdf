package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/vhdx"
)

// TestFaultsReachTheClient: what a fault's Err says is what a client over the network gets.
func TestFaultsReachTheClient(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var faults []map[string]any
	for _, c := range codes {
		count := 1
		if c == cim.CodeUnauthorized { // the client signs in again
			count = 2
		}
		faults = append(faults, map[string]any{"Name": string(c), "Method": "RequestStateChange", "Count": count, "Err": string(c)})
	}
	raw, err := json.Marshal(faults)
	must(t, err)
	plan := filepath.Join(dir, "faults.json")
	must(t, os.WriteFile(plan, raw, 0o644))
	s := start(t, dir, "--vms", "1", "--faults", plan)
	id, _, _ := strings.Cut(s.vms(0)["vm-0001"], " ")
	p, err := cim.ParsePath(fmt.Sprintf(`Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="%s"`, id))
	must(t, err)
	p.Namespace = space
	c := s.session(0)
	for _, want := range codes {
		_, err := c.Invoke(t.Context(), p, "RequestStateChange", cim.Pairs("RequestedState", uint16(3)))
		if got := cim.CodeOf(err); got != want {
			t.Errorf("%s arrives as %s: %v", want, got, err)
		}
	}
	if v := s.vms(0)["vm-0001"]; !strings.HasSuffix(v, " 2") {
		t.Errorf("a call that failed was done: %s", v)
	}
	s.end(syscall.SIGINT)
	if n := strings.Count(s.err.String(), "was used "); n != len(codes) {
		t.Errorf("%s", s.err.String())
	}
}

// TestJobsVanish: a restart keeps VMs, but no jobs.
func TestJobsVanish(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "--vms", "1")
	id, _, _ := strings.Cut(s.vms(0)["vm-0001"], " ")
	p, err := cim.ParsePath(fmt.Sprintf(`Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="%s"`, id))
	must(t, err)
	p.Namespace = space
	out, err := s.session(0).Invoke(t.Context(), p, "RequestStateChange", cim.Pairs("RequestedState", uint16(9)))
	must(t, err)
	job, ok := out.Ref("Job")
	if !ok || out.Return != cim.ReturnJobStarted {
		t.Fatalf("%+v", out)
	}
	if _, err := s.session(0).Get(t.Context(), job); err != nil {
		t.Error(err)
	}
	s.kill()
	s = start(t, s.dir, "--vms", "1")
	if _, err := s.session(0).Get(t.Context(), job); cim.CodeOf(err) != cim.CodeNotFound {
		t.Errorf("a job of the process before: %v", err)
	}
}

// TestImages: disks of --vm hold what the images hold; a VM under another name keeps them.
func TestImages(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	content := make([]byte, 3<<20+1000) // no whole number of sectors
	copy(content[1<<20:], "the middle")
	copy(content[len(content)-7:], "the end")
	raw := filepath.Join(tmp, "a.raw")
	must(t, os.WriteFile(raw, content, 0o644))
	dir := filepath.Join(tmp, "hv")
	disk := func(vm string, n int) string {
		return filepath.Join(dir, "HV2", "C", "VMs", vm, fmt.Sprintf("disk%d.vhdx", n))
	}
	same := func(path string) {
		t.Helper()
		c, err := vhdx.OpenChain(path, vhdx.ChainOptions{})
		must(t, err)
		defer c.Close()
		got := make([]byte, (len(content)+4095)&^4095)
		_, err = c.ReadAt(got, 0)
		if err != nil || !bytes.Equal(got[:len(content)], content) || !bytes.Equal(got[len(content):], make([]byte, len(got)-len(content))) {
			t.Errorf("%s does not hold the image (%v)", path, err)
		}
	}
	first := "name=one,host=HV2,gen=2,os=Linux,disk=" + raw + ",disk=" + raw
	s := start(t, dir, "--hosts", "2", "--vm", first)
	if v := s.vms(1); len(v) != 1 || !strings.HasSuffix(v["one"], " 2") {
		t.Errorf("%v", v)
	}
	s.end(syscall.SIGTERM)
	same(disk("one", 0))
	same(disk("one", 1))
	base := filepath.Join(tmp, "b.vhdx")
	b, err := os.ReadFile(disk("one", 0))
	must(t, err)
	must(t, os.WriteFile(base, b, 0o644))
	must(t, os.Remove(raw)) // "one" has its copies
	s = start(t, dir, "--hosts", "2", "--vm", first, "--vm", "name=two,host=HV2,disk="+base)
	v := s.vms(1)
	if len(v) != 2 {
		t.Errorf("%v", v)
	}
	// Renamed, "two" is not there, but its disk must not be overwritten.
	id, _, _ := strings.Cut(v["two"], " ")
	setting, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+id, "ElementName", "three"))
	must(t, err)
	c := s.session(1)
	services, err := c.Query(t.Context(), space, "SELECT * FROM Msvm_VirtualSystemManagementService")
	must(t, err)
	_, _, err = cim.Call(context.Background(), c, services[0].Path, "ModifySystemSettings", cim.Pairs("SystemSettings", setting), nil)
	must(t, err)
	s.end(syscall.SIGTERM)
	same(disk("two", 0))
	s = launch(t, dir, "--listen", "127.0.0.1:0", "--hosts", "2", "--vm", "name=two,host=HV2,disk="+base)
	if code := s.code(); code != 1 || !strings.Contains(s.err.String(), "is a disk of VM three") {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
	same(disk("two", 0))
	s = launch(t, dir, "--listen", "127.0.0.1:0") // HV2 is missing
	if code := s.code(); code != 1 || !strings.Contains(s.err.String(), "host HV2") {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
}

func TestVerbose(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "--vms", "1", "--verbose")
	s.drive("power", "vm-0001")
	for _, want := range []string{"operation=Enumerate", "method=RequestStateChange", "user=Administrator"} {
		if !strings.Contains(s.err.String(), want) {
			t.Errorf("the log has no %s", want)
		}
	}
	if strings.Contains(s.err.String(), s.Password) {
		t.Error("the log has the password")
	}
}

func TestUsable(t *testing.T) {
	t.Parallel()
	for _, f := range []hvsim.Fault{{Delay: 1}, {Method: "merge", Err: "failed"}, {Host: "hv2", Method: "requeststatechange", Return: 5}} {
		if err := usable(f, 2); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if err := errors.Join(usable(hvsim.Fault{Host: "HV2", Return: 5}, 1)); err == nil {
		t.Error("a fault of a host that is not there")
	}
}
