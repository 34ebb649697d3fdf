package sessionvirt

import (
	"bufio"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/ledger/guestimage"
)

// TestMain cannot use package guesttest, which imports this one.
func TestMain(m *testing.M) {
	if os.Getenv("SESSIONVIRT_HELPER") != "" {
		holdInstance()
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.testlogfile=") })
	if code, ran, err := DropRoot(context.Background(), args); ran || err != nil {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// holdInstance starts an instance, tells its directory and waits to be killed.
func holdInstance() {
	i, err := Start(context.Background(), "")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Printf("%s %d\n", i.Dir, i.daemon.cmd.Process.Pid)
	select {}
}

func TestStartStop(t *testing.T) {
	i, err := Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	pid := i.daemon.cmd.Process.Pid
	if out, err := i.Virsh(t.Context(), "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("guests of a new instance: %q %v", out, err)
	}
	if _, err := i.Virsh(t.Context(), "dominfo", "none"); err == nil || !strings.Contains(err.Error(), "failed to get domain") {
		t.Errorf("error of virsh: %v", err)
	}
	for range 2 {
		if err := i.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(i.Dir); !os.IsNotExist(err) {
		t.Errorf("directory is left: %v", err)
	}
	if processIdentity(pid) != "" {
		t.Errorf("libvirtd %d is left", pid)
	}
}

// If the owner is killed, its libvirtd ends at once and the next Start removes the rest.
func TestKilledOwnerLeavesNothing(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SESSIONVIRT_HELPER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var dir string
	var pid int
	if _, scanErr := fmt.Sscanf(line, "%s %d", &dir, &pid); err != nil || scanErr != nil {
		cmd.Process.Kill()
		t.Fatalf("helper said %q: %v %v", line, err, scanErr)
	}
	// A stand-in for a guest: a real QEMU whose command line has the directory in it.
	qemu := exec.Command("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-m", "16", "-pidfile", filepath.Join(dir, "qemu.pid"))
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for deadline := time.Now().Add(20 * time.Second); processIdentity(pid) != ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("libvirtd %d outlives its owner", pid)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()
	sweep(dirPrefix, clean)
	if err := <-ended; err == nil || qemu.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("QEMU ended with %v, want SIGKILL", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory is left: %v", err)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	dir := t.TempDir()
	for name, owner := range map[string]string{"x-alive": processIdentity(os.Getpid()), "x-dead": "1 99999999999", "x-new": "", "y-dead": "1 99999999999"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, ownerFile), []byte(owner), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sweep(filepath.Join(dir, "x-"), os.RemoveAll)
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"x-alive", "x-new", "y-dead"}; !slices.Equal(names, want) {
		t.Errorf("left are %v, want %v", names, want)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"long": "/tmp/" + strings.Repeat("x", maxDir), "relative": "x", "not empty": "/etc"} {
		if i, err := Start(t.Context(), dir); err == nil {
			i.Stop()
			t.Errorf("%s directory is accepted", name)
		}
	}
}

// The probe tells running guest code from a QEMU that merely starts: the same
// code answers under emulation, and an accelerator that does not exist says no.
func TestProbe(t *testing.T) {
	t.Parallel()
	if !probe(t.Context(), "tcg", 30*time.Second) {
		t.Error("the boot sector does not answer under emulation")
	}
	if probe(t.Context(), "none-such", 30*time.Second) {
		t.Error("an unknown accelerator answers")
	}
	t.Logf("KVM usable: %t", KVMUsable(t.Context()))
}

func TestDomainXML(t *testing.T) {
	t.Parallel()
	g := &Guest{Name: "g1", UUID: newUUID(), NVRAM: "/x/nvram", Console: "/x/c", Control: "/x/s",
		Disks: guestimage.Disks{Boot: "/x/b", Data: "/x/d", Format: guestimage.QCOW2}}
	for _, c := range []struct {
		name        string
		cfg         GuestConfig
		want, avoid []string
	}{
		{"bios", GuestConfig{}, []string{"type='qemu'", "machine='pc'", "mode='maximum'", "<memory unit='MiB'>256<"}, []string{"<loader", "<interface"}},
		{"uefi", GuestConfig{UEFI: true}, []string{"machine='q35'", "<loader", ">/x/nvram</nvram>"}, nil},
		{"kvm", GuestConfig{KVM: true}, []string{"type='kvm'", "host-passthrough"}, []string{"mode='maximum'"}},
		{"user network", GuestConfig{Network: "user", MAC: "52:54:00:00:00:01"}, []string{"<interface type='user'>", "52:54:00:00:00:01"}, nil},
		{"own network", GuestConfig{Network: "<interface type='network'><source network='n'/></interface>"}, []string{"<source network='n'/>"}, nil},
	} {
		text, err := DomainXML(g, c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal([]byte(text), new(struct{})); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %s in\n%s", c.name, w, text)
			}
		}
		for _, w := range c.avoid {
			if strings.Contains(text, w) {
				t.Errorf("%s: %s in\n%s", c.name, w, text)
			}
		}
	}
	bad := *g
	bad.Name = "g<1"
	if _, err := DomainXML(&bad, GuestConfig{}); err == nil {
		t.Error("a name with characters of XML is accepted")
	}
	bad = *g
	bad.NVRAM = ""
	if _, err := DomainXML(&bad, GuestConfig{UEFI: true}); err == nil {
		t.Error("UEFI without a file for variables is accepted")
	}
}
