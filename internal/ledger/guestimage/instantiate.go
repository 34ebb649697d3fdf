package guestimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Format of a guest's private disks.
type Format string

// The formats; the empty Format means qcow2, which dirty bitmaps need.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// Disks are the private disks of one guest.
type Disks struct {
	Boot, Data string
	Format     Format
}

// Instantiate makes private disks NAME-boot.FORMAT and NAME-data.FORMAT in dir.
// words are added to the guest's kernel command line; the guest program's comment lists them.
func Instantiate(ctx context.Context, img Image, dir, name string, format Format, words ...string) (Disks, error) {
	if format == "" {
		format = QCOW2
	}
	d := Disks{
		Boot:   filepath.Join(dir, name+"-boot."+string(format)),
		Data:   filepath.Join(dir, name+"-data."+string(format)),
		Format: format,
	}
	for _, w := range words {
		if strings.ContainsAny(w, " \n\r") {
			return Disks{}, fmt.Errorf("make disks of guest %s: kernel word %q holds white space", name, w)
		}
	}
	boot, err := configured(ctx, img.Boot, dir, name, words)
	if err != nil {
		return Disks{}, fmt.Errorf("make disks of guest %s: %w", name, err)
	}
	defer os.Remove(boot)
	for from, to := range map[string]string{boot: d.Boot, img.Data: d.Data} {
		if _, err := runIn(ctx, dir, "qemu-img", "convert", "-f", "raw", "-O", string(format), from, to); err != nil {
			return Disks{}, fmt.Errorf("make disks of guest %s: %w", name, err)
		}
	}
	return d, nil
}

// configured copies the boot template and sets the kernel words in the copy.
func configured(ctx context.Context, template, dir, name string, words []string) (path string, err error) {
	tmp, err := os.MkdirTemp(dir, "words-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	in, err := os.Open(template)
	if err != nil {
		return "", err
	}
	defer in.Close()
	path = filepath.Join(dir, name+"-boot.tmp")
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	if len(words) == 0 {
		return path, nil
	}
	cfg := filepath.Join(tmp, "syslinux.cfg")
	if err := os.WriteFile(cfg, []byte(loaderConfig(words)), 0o644); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	for _, to := range []string{"::syslinux.cfg", "::EFI/BOOT/syslinux.cfg"} {
		if _, err := runIn(ctx, dir, "mcopy", "-o", "-i", path+"@@1M", cfg, to); err != nil {
			return "", errors.Join(err, os.Remove(path))
		}
	}
	return path, nil
}
