// Package bare boots a recovery point on the machine at hand with nothing but
// QEMU: no vault, no agent, no libvirt. It is the last resort of "the store alone
// is enough", and a way to look at a point.
//
// What it promises:
//
//   - The VM has no network and writes into files of its own directory only; the
//     point is never changed.
//   - When Boot returns, the VM has ended and its files are gone, unless they were
//     to be kept.
package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/ledger/sessionvirt"
	"holdfast/internal/store"
)

// Config says what is booted.
type Config struct {
	View *store.View
	// Dir gets the VM's copy-on-write disks. It must exist. Empty means a temporary
	// directory that is removed at the end.
	Dir      string
	CPUs     int       // 0 = as captured
	MemoryMB int       // 0 = as captured
	Console  io.Writer // the first serial port's output; nil = discarded
	Input    io.Reader // the first serial port's input; nil = none
	Display  string    // a QEMU display such as "vnc=127.0.0.1:1"; "" = none
	Accel    string    // kvm or tcg (slow and sure); "" = kvm where it runs guests
}

// qemu and the firmware images for UEFI guests, where Debian has them.
const qemu = "qemu-system-x86_64"

func firmware() []string {
	return []string{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd"}
}

// Boot runs the point until the guest powers off (nil) or ctx ends (its error).
// The VM's disks are served by this process.
func Boot(ctx context.Context, cfg Config) (err error) {
	const op = "bare.Boot"
	tool, err := exec.LookPath(qemu)
	if err != nil {
		return dr.New(dr.KindUnsupported, "", op, "%s is not installed", qemu).WithHint("Install qemu-system-x86, or restore the disks and boot them elsewhere.")
	}
	dir, err := os.MkdirTemp("", "holdfast-boot-")
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	uri, stop, err := hydrate.ServeLocal(ctx, cfg.View, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if cfg.Dir == "" {
		cfg.Dir = dir
	}
	if cfg.Accel == "" {
		cfg.Accel = "tcg"
		if sessionvirt.KVMUsable(ctx) {
			cfg.Accel = "kvm"
		}
	}
	args, err := arguments(cfg)
	if err != nil {
		return err
	}
	for i, d := range cfg.View.Disks() {
		path := filepath.Join(cfg.Dir, fmt.Sprintf("%02d.qcow2", i))
		if err := overlay(ctx, path, uri(d.ID), d.Size); err != nil {
			return err
		}
		args = append(args, disk(i, d.ID, path)...)
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin, cmd.Stdout = cfg.Input, cfg.Console
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return dr.New(dr.KindUnavailable, dr.CodeBootNotVerified, op, "QEMU ended: %s: %w", strings.TrimSpace(complaints.String()), err)
	}
	return nil
}

func arguments(cfg Config) ([]string, error) {
	vm := cfg.View.VM()
	cpus, memory := vm.CPUs, vm.MemoryMB
	if cfg.CPUs > 0 {
		cpus = cfg.CPUs
	}
	if cfg.MemoryMB > 0 {
		memory = cfg.MemoryMB
	}
	display := cfg.Display
	if display == "" {
		display = "none"
	}
	args := []string{"-name", "holdfast-recover", "-nodefaults", "-accel", cfg.Accel, "-machine", "q35", "-smp", strconv.Itoa(max(1, cpus)), "-m", strconv.Itoa(max(64, memory)),
		"-nic", "none", "-serial", "stdio", "-display", display, "-device", "VGA", "-device", "virtio-rng-pci", "-device", "ahci,id=sata", "-no-reboot"}
	if vm.Generation == 2 {
		for _, f := range firmware() {
			if _, err := os.Stat(f); err == nil {
				return append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+f), nil
			}
		}
		return nil, dr.New(dr.KindUnsupported, "", "bare.Boot", "the VM starts by UEFI and no firmware image is installed").WithHint("Install the package ovmf.")
	}
	return args, nil
}

// overlay makes a VM's own disk over a served one.
func overlay(ctx context.Context, path, base string, size int64) error {
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, strconv.FormatInt(size, 10)).CombinedOutput()
	if err != nil {
		return dr.New(dr.KindUnavailable, "", "bare.Boot", "make %s: %s: %w", path, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// disk attaches a disk to the bus that its id names.
func disk(i int, id, path string) []string {
	drive := fmt.Sprintf("if=none,id=disk%d,format=qcow2,discard=unmap,file=%s", i, strings.ReplaceAll(path, ",", ",,"))
	device := fmt.Sprintf("virtio-blk-pci,drive=disk%d,bootindex=%d", i, i)
	if !strings.HasPrefix(id, "vd") {
		device = fmt.Sprintf("ide-hd,bus=sata.%d,drive=disk%d,bootindex=%d", i%6, i, i)
	}
	return []string{"-drive", drive, "-device", device}
}
