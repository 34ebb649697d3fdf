package agent

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/guestcheck/imagetest"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/nbd"
	"holdfast/internal/store"
)

// A guest that names its disks by paths is served repaired where that was asked for,
// its file system stays whole, and the replica is what it was.
func TestServesRepaired(t *testing.T) {
	t.Parallel()
	const size, start = 40 << 20, 1 << 20
	volume := imagetest.Ext(t, map[string]string{
		"etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "sbin/init": "x",
		"etc/fstab": "# the root\n/dev/sda1 / ext4 errors=remount-ro 0 1\n" + strings.Repeat("# padding, so that the file has room\n", 3)}, 32)
	disk := imagetest.Blank(t, size)
	imagetest.Tool(t, "label: dos\nstart=2048, size=65536, type=83, bootable\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, start, volume)
	image, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}

	r := newRig(t)
	vm := r.host.AddVM(sim.VMSpec{Name: "web", Disks: []sim.DiskSpec{{ID: "vda", Size: size}}})
	for off := 0; off < len(image); off += 1 << 20 {
		if piece := image[off : off+1<<20]; bytes.Count(piece, []byte{0}) != len(piece) {
			if err := vm.Write("vda", int64(off), piece); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := dr.MachineID(machineA)
	if err := store.WriteGeneration(t.Context(), r.vault.bucket, cut.GenInfo{Machine: m, Gen: 1, Agent: "agent-1", Reason: "test", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.vault.assign(r.assignment(machineA, vm.ID(), 1))
	r.vault.command("await", agentapi.CmdAwaitInitial, agentapi.MachinePayload{Machine: machineA, Generation: 1})
	point := pointOf(t, r.vault.final("await"))
	r.vault.serving("serving-1", m, point)

	served := func(repair string) ([]byte, hydrate.Status) {
		t.Helper()
		r.vault.mu.Lock()
		p := r.vault.points["serving-1"]
		p.Repair = repair
		r.vault.points["serving-1"] = p
		r.vault.mu.Unlock()
		dir, err := os.MkdirTemp("/tmp", "hfs")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- ServePoint(ctx, r.dir, "serving-1", dir) }()
		var client *nbd.Client
		eventually(t, "the export", func() bool {
			client, err = nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: filepath.Join(dir, hydrate.SocketName), Export: "vda"})
			return err == nil
		})
		got := make([]byte, size)
		for off := 0; off < size; off += 1 << 20 {
			if err := client.ReadAt(t.Context(), got[off:off+1<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		st, err := hydrate.ReadStatus(dir)
		if err != nil {
			t.Error(err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return got, st
	}
	plain, st := served("")
	if !bytes.Equal(plain, image) || len(st.Repaired) != 0 {
		t.Errorf("without repair the disk differs, or says that it was repaired: %v", st.Repaired)
	}
	repaired, st := served("azure")
	if len(st.Repaired) != 1 || !strings.Contains(st.Repaired[0], "fstab") {
		t.Errorf("repaired: %q", st.Repaired)
	}
	out := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(out, repaired[start:start+32<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	if text := imagetest.Tool(t, "", "debugfs", "-R", "cat /etc/fstab", out); !strings.Contains(text, "UUID=") || strings.Contains(text, "/dev/sda1 /") {
		t.Errorf("fstab is\n%s", text)
	}
	imagetest.Tool(t, "", "e2fsck", "-fn", out)
	if again, _ := served(""); !bytes.Equal(again, image) {
		t.Error("the replica has changed")
	}
}
