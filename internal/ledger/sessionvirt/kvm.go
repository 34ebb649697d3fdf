package sessionvirt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// kvmExit is the exit code of QEMU after the probe's code ran: the debug-exit
// device turns the byte v written to its port into 2v+1.
const kvmExit = 0x2a<<1 | 1

// KVMUsable says whether guest code really executes under KVM: it runs a boot
// sector, three times, and wants its answer each time at once. A device node that is there, and may even be
// opened, does not prove it; nor does one answer: some nested hosts run a
// boot sector now and then, after seconds, and let whole guests hang. It takes about
// a second, at most six.
func KVMUsable(ctx context.Context) bool {
	for range 3 {
		if !probe(ctx, "kvm", 2*time.Second) {
			return false
		}
	}
	return true
}

func probe(ctx context.Context, accel string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "kvm-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	var sector [512]byte
	copy(sector[:], []byte{
		0xBA, 0x01, 0x05, // mov dx, 0x501
		0xB0, 0x2A, //       mov al, 0x2a
		0xEE,       //       out dx, al
		0xF4,       //       hlt
		0xEB, 0xFD, //       jmp back to hlt
	})
	sector[510], sector[511] = 0x55, 0xAA
	img := filepath.Join(dir, "boot")
	if err := os.WriteFile(img, sector[:], 0o600); err != nil {
		return false
	}
	err = exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", accel, "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-drive", "file="+img+",format=raw,if=ide", "-device", "isa-debug-exit,iobase=0x501,iosize=1").Run()
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == kvmExit
}
