package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Modules of the guest's kernel. "core" is loaded at every boot; "fallback"
// only if the disks do not show up, as on a machine without virtio.
var moduleClasses = map[string][]string{
	"core":     {"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "button", "evdev"},
	"fallback": {"sd_mod", "virtio_scsi", "ata_piix", "hv_vmbus", "hv_storvsc", "hv_netvsc"},
}

// kernel returns the cache directory with vmlinuz, the modules, and per class a list in loading order.
func (b *builder) kernel(ctx context.Context) (string, error) {
	if dir := b.cached("kernel-"); dir != "" {
		return dir, nil
	}
	// The meta package depends on the package of the current version.
	out, err := runIn(ctx, b.cfg.CacheDir, "apt-cache", "depends", "linux-image-cloud-amd64")
	if err != nil {
		return "", fmt.Errorf("ask which kernel package is current (is apt-get update needed?): %w", err)
	}
	for word := range strings.FieldsSeq(out) {
		if strings.HasPrefix(word, "linux-image-") && word != "linux-image-cloud-amd64" {
			return b.unpacked(ctx, "kernel-", word, unpackKernel)
		}
	}
	return "", fmt.Errorf("apt-cache names no kernel package for linux-image-cloud-amd64 (is apt-get update needed?): %q", out)
}

// agent returns the cache directory with the guest agent and the libraries it needs.
func (b *builder) agent(ctx context.Context) (string, error) {
	if dir := b.cached("agent-"); dir != "" {
		return dir, nil
	}
	return b.unpacked(ctx, "agent-", "qemu-guest-agent", unpackAgent)
}

// cached returns the directory of an earlier unpacking. The cache pins the
// version; removing the cache directory is how to get a newer one.
func (b *builder) cached(prefix string) string {
	dirs, err := filepath.Glob(filepath.Join(b.cfg.CacheDir, prefix+"*"))
	if err != nil || len(dirs) == 0 {
		return ""
	}
	slices.Sort(dirs)
	return dirs[len(dirs)-1]
}

// unpacked downloads a package and publishes what unpack makes of it.
func (b *builder) unpacked(ctx context.Context, prefix, pkg string, unpack func(ctx context.Context, deb, dir string) error) (string, error) {
	work, err := os.MkdirTemp(b.cfg.CacheDir, "tmp-")
	if err != nil {
		return "", fmt.Errorf("make a place to download to: %w", err)
	}
	defer os.RemoveAll(work)
	b.log.Info("downloading package", "package", pkg)
	if _, err := runIn(ctx, work, "apt-get", "-q", "download", pkg); err != nil {
		return "", fmt.Errorf("download package %s (is apt-get update needed?): %w", pkg, err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("download package %s: apt-get left %d files, want 1", pkg, len(debs))
	}
	version, err := runIn(ctx, work, "dpkg-deb", "-f", debs[0], "Version")
	if err != nil {
		return "", err
	}
	name := prefix + pkg + "-" + strings.NewReplacer(":", "_", "/", "_").Replace(strings.TrimSpace(version))
	return b.published(ctx, name, func(tmp string) error { return unpack(ctx, debs[0], tmp) })
}

// eachFile calls f with every regular file of a package; path has no leading dot or slash.
func eachFile(ctx context.Context, deb string, f func(path string, r io.Reader) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var text strings.Builder
	cmd.Stderr = &text
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	tr := tar.NewReader(pipe)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = f(strings.TrimLeft(h.Name, "./"), tr)
		}
		if err != nil {
			cancel()
			cmd.Wait()
			return fmt.Errorf("unpack %s: %s: %w", filepath.Base(deb), strings.TrimSpace(text.String()), err)
		}
	}
	io.Copy(io.Discard, pipe) // padding after the archive's end
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("unpack %s: %s: %w", filepath.Base(deb), strings.TrimSpace(text.String()), err)
	}
	return nil
}

func unpackKernel(ctx context.Context, deb, dir string) error {
	modules := map[string][]byte{}
	err := eachFile(ctx, deb, func(path string, r io.Reader) error {
		base := filepath.Base(path)
		switch {
		case strings.HasPrefix(path, "boot/vmlinuz"):
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "vmlinuz"), b, 0o644)
		case strings.HasSuffix(base, ".ko"):
			b, err := io.ReadAll(r)
			modules[strings.ReplaceAll(strings.TrimSuffix(base, ".ko"), "-", "_")] = b
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err != nil {
		return fmt.Errorf("package %s holds no kernel: %w", filepath.Base(deb), err)
	}
	for class, wanted := range moduleClasses {
		order, err := loadOrder(modules, wanted)
		if err != nil {
			return err
		}
		for _, m := range order {
			if err := os.WriteFile(filepath.Join(dir, m+".ko"), modules[m], 0o644); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, class), []byte(strings.Join(order, ".ko\n")+".ko\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// loadOrder lists the wanted modules and what they need, needs first. A wanted
// module that the package lacks is built into the kernel.
func loadOrder(modules map[string][]byte, wanted []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] || modules[name] == nil {
			return nil
		}
		seen[name] = true
		needs, err := moduleNeeds(modules[name])
		if err != nil {
			return fmt.Errorf("read dependencies of module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleNeeds reads "depends=a,b" of a module's .modinfo section.
func moduleNeeds(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	data, err := s.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if v, ok := strings.CutPrefix(string(entry), "depends="); ok && v != "" {
			return strings.Split(strings.ReplaceAll(v, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

func unpackAgent(ctx context.Context, deb, dir string) error {
	root := filepath.Join(dir, "root")
	program := filepath.Join(root, "usr/sbin/qemu-ga")
	err := eachFile(ctx, deb, func(path string, r io.Reader) error {
		if path != "usr/sbin/qemu-ga" {
			return nil
		}
		return writeFrom(program, r, 0o755)
	})
	if err != nil {
		return err
	}
	// The libraries are those of this machine: QEMU itself needs the same ones.
	out, err := runIn(ctx, dir, "ldd", program)
	if err != nil {
		return fmt.Errorf("list libraries of the guest agent: %w", err)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "not found") {
			return fmt.Errorf("guest agent needs a library that this machine lacks: %s", strings.TrimSpace(line))
		}
		for _, w := range strings.Fields(line) {
			if !strings.HasPrefix(w, "/") {
				continue
			}
			f, err := os.Open(w)
			if err != nil {
				return fmt.Errorf("copy library of the guest agent: %w", err)
			}
			err = writeFrom(filepath.Join(root, w), f, 0o755)
			f.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func writeFrom(path string, r io.Reader, mode os.FileMode) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, mode)
}
