// Package guestimage builds the ledger guest: a virtual machine of two disks
// that boots under BIOS and UEFI and proves with its own ledger what a replica
// holds (package ledger). It is for tests and the demo; the product does not import it.
//
// It promises: nothing needs root, a loop device or a mount; what is built is
// published by one rename, so processes that build at the same time and builds
// that are killed leave whole results only; a second Build with a warm cache
// costs milliseconds.
//
// The boot disk is 81 MiB raw: MBR, a 32 MiB FAT16 partition at 1 MiB with
// SYSLINUX for both firmwares, kernel and initramfs, and a 48 MiB ext4
// partition "sys". The data disk is one ext4 file system "data" without a partition table.
//
// Needed on the machine (Debian package): apt-get, dpkg-deb, the Go tool, mtools,
// syslinux, syslinux-common, syslinux-efi, busybox-static, e2fsprogs, qemu-utils. The
// guest's kernel and guest agent are downloaded packages that are unpacked, never installed.
package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/ledger"
)

// recipe is part of the cache key: raise it when the builder changes the image.
const recipe = "4"

// DefaultDataSize is the size of the data disk in bytes.
const DefaultDataSize = 128 << 20

// Config says where and what to build.
type Config struct {
	CacheDir string       // required; see DefaultCacheDir
	DataSize int64        // bytes of the data disk, a multiple of 1 MiB from 16 MiB up; 0 = DefaultDataSize
	Log      *slog.Logger // nil = silent
}

// Validate checks the configuration.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.CacheDir) {
		return fmt.Errorf("guest image: cache directory %q is not an absolute path", c.CacheDir)
	}
	if c.DataSize != 0 && (c.DataSize < 16<<20 || c.DataSize%(1<<20) != 0) {
		return fmt.Errorf("guest image: data disk of %d bytes: want a multiple of 1 MiB, at least 16 MiB", c.DataSize)
	}
	return nil
}

// DefaultCacheDir is $HOLDFAST_CACHE, or holdfast-guest in the user's cache directory.
func DefaultCacheDir() (string, error) {
	if d := os.Getenv("HOLDFAST_CACHE"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory (set HOLDFAST_CACHE): %w", err)
	}
	return filepath.Join(d, "holdfast-guest"), nil
}

// Image is a built guest. Its files are templates shared by all users of the
// cache and must not be written; see Instantiate.
type Image struct {
	Boot, Data string // raw images
	Kernel     string // package and version of the guest's kernel
	Agent      string // package and version of the guest agent
}

type builder struct {
	cfg Config
	log *slog.Logger
}

// Build returns the image from the cache or builds it: seconds when the
// packages are cached, else a download of 27 MB. It waits for another process
// that builds in the same cache.
func Build(ctx context.Context, cfg Config) (Image, error) {
	if err := cfg.Validate(); err != nil {
		return Image{}, err
	}
	if cfg.DataSize == 0 {
		cfg.DataSize = DefaultDataSize
	}
	b := &builder{cfg: cfg, log: cfg.Log}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o755); err != nil {
		return Image{}, fmt.Errorf("make cache directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(cfg.CacheDir, "lock"))
	if err != nil {
		return Image{}, fmt.Errorf("wait for the build of the guest image: %w", err)
	}
	defer unlock()
	img, err := b.build(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("build guest image: %w", err)
	}
	return img, nil
}

func (b *builder) build(ctx context.Context) (Image, error) {
	kernel, err := b.kernel(ctx)
	if err != nil {
		return Image{}, err
	}
	agent, err := b.agent(ctx)
	if err != nil {
		return Image{}, err
	}
	source, err := ledger.GuestSource()
	if err != nil {
		return Image{}, fmt.Errorf("read sources of the guest program: %w", err)
	}
	dir, err := b.published(ctx, "image-"+b.key(kernel, agent, source), func(tmp string) error {
		return b.makeImage(ctx, tmp, kernel, agent, source)
	})
	if err != nil {
		return Image{}, err
	}
	return Image{
		Boot: filepath.Join(dir, "boot.img"), Data: filepath.Join(dir, "data.img"),
		Kernel: strings.TrimPrefix(filepath.Base(kernel), "kernel-"), Agent: strings.TrimPrefix(filepath.Base(agent), "agent-"),
	}, nil
}

func (b *builder) key(kernel, agent string, source map[string][]byte) string {
	h := sha256.New()
	fmt.Fprintln(h, recipe, b.cfg.DataSize, filepath.Base(kernel), filepath.Base(agent))
	for _, name := range slices.Sorted(maps.Keys(source)) {
		fmt.Fprintf(h, "%s %d\n%s", name, len(source[name]), source[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// published returns the cache directory name, making it first if needed:
// fill writes into a temporary directory that then takes the name.
func (b *builder) published(ctx context.Context, name string, fill func(tmp string) error) (string, error) {
	final := filepath.Join(b.cfg.CacheDir, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look into cache: %w", err)
	}
	tmp, err := os.MkdirTemp(b.cfg.CacheDir, "tmp-")
	if err != nil {
		return "", fmt.Errorf("make a place to build in: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := fill(tmp); err != nil {
		return "", errors.Join(err, ctx.Err())
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil {
		if _, there := os.Stat(final); there == nil {
			return final, nil // somebody without the lock was faster, with the same content
		}
		return "", fmt.Errorf("publish %s in cache: %w", name, err)
	}
	b.log.Info("guest image part built", "part", name)
	return final, nil
}

// Layout of the boot disk in sectors of 512 bytes.
const (
	bootSize  = 81 << 20
	fatStart  = 2048
	fatLength = 65536
	sysStart  = fatStart + fatLength
	sysLength = 98304
)

const (
	mbrCode   = "/usr/lib/syslinux/mbr/mbr.bin"
	efiLoader = "/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"
	efiModule = "/usr/lib/syslinux/modules/efi64/ldlinux.e64"
)

func (b *builder) makeImage(ctx context.Context, dir, kernel, agent string, source map[string][]byte) error {
	program, err := compileGuest(ctx, dir, source)
	if err != nil {
		return err
	}
	initrd, err := makeInitrd(ctx, program, kernel, agent)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd.img"), initrd, 0o644); err != nil {
		return err
	}
	if err := makeDisks(ctx, dir, kernel, b.cfg.DataSize); err != nil {
		return err
	}
	return errors.Join(os.Remove(filepath.Join(dir, "initrd.img")), os.Remove(filepath.Join(dir, "syslinux.cfg")))
}

func makeDisks(ctx context.Context, dir, kernel string, dataSize int64) error {
	if err := writeMBR(filepath.Join(dir, "boot.img")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "syslinux.cfg"), []byte(loaderConfig(nil)), 0o644); err != nil {
		return err
	}
	const fat = "boot.img@@1M"
	const ext4 = "lazy_itable_init=0,lazy_journal_init=0" // or the guest would write metadata in the background for minutes
	for _, args := range [][]string{
		{"mformat", "-i", fat, "-T", strconv.Itoa(fatLength), "-h", "255", "-s", "63", "-H", strconv.Itoa(fatStart), "::"},
		{"syslinux", "--install", "--offset", strconv.Itoa(fatStart * 512), "boot.img"},
		{"mmd", "-i", fat, "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", fat, filepath.Join(kernel, "vmlinuz"), "initrd.img", "syslinux.cfg", "::"},
		{"mcopy", "-i", fat, efiLoader, "::EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", fat, efiModule, "syslinux.cfg", "::EFI/BOOT"},
		{"mkfs.ext4", "-q", "-F", "-E", ext4 + ",offset=" + strconv.Itoa(sysStart*512), "-L", "sys", "-m", "0", "boot.img", strconv.Itoa(sysLength/2048) + "M"},
		{"mkfs.ext4", "-q", "-F", "-E", ext4, "-L", "data", "-m", "0", "data.img", strconv.FormatInt(dataSize>>20, 10) + "M"},
	} {
		if _, err := runIn(ctx, dir, args...); err != nil {
			return err
		}
	}
	return nil
}

func writeMBR(path string) error {
	code, err := os.ReadFile(mbrCode)
	if err != nil {
		return fmt.Errorf("read boot code (install package syslinux-common): %w", err)
	}
	if len(code) > 440 {
		return fmt.Errorf("boot code %s has %d bytes, at most 440 fit", mbrCode, len(code))
	}
	var mbr [512]byte
	copy(mbr[:], code)
	copy(mbr[440:], "HFLG")
	// Type 0xEF is what UEFI wants to see; BIOS boot code asks for the active flag only.
	putPartition(mbr[446:], 0x80, 0xEF, fatStart, fatLength)
	putPartition(mbr[462:], 0, 0x83, sysStart, sysLength)
	mbr[510], mbr[511] = 0x55, 0xAA
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(mbr[:])
	return errors.Join(err, f.Truncate(bootSize), f.Close())
}

func putPartition(e []byte, active, kind byte, start, length uint32) {
	e[0], e[4] = active, kind
	copy(e[1:4], "\xfe\xff\xff") // no CHS addressing
	copy(e[5:8], "\xfe\xff\xff")
	for i := range 4 {
		e[8+i], e[12+i] = byte(start>>(8*i)), byte(length>>(8*i))
	}
}

// loaderConfig renders syslinux.cfg, the same for both firmwares.
func loaderConfig(words []string) string {
	return "SERIAL 0 115200\nPROMPT 0\nTIMEOUT 0\nDEFAULT ledger\nLABEL ledger\n  KERNEL /vmlinuz\n  INITRD /initrd.img\n  APPEND " +
		strings.Join(append([]string{"console=ttyS0 quiet loglevel=3 panic=5 mitigations=off nokaslr no_timer_check tsc=reliable net.ifnames=0"}, words...), " ") + "\n"
}

// runIn runs a program in dir. Ordinary users often lack the system directories in PATH, so those are tried too.
func runIn(ctx context.Context, dir string, args ...string) (string, error) {
	path, err := exec.LookPath(args[0])
	for _, d := range []string{"/usr/sbin", "/sbin", "/bin", "/usr/bin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(d, args[0]))
	}
	if err != nil {
		return "", fmt.Errorf("find program %s (the package comment of guestimage lists the packages): %w", args[0], err)
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s: %s: %w", strings.Join(args, " "), strings.TrimSpace(stderr.String()+" "+string(out)), errors.Join(ctx.Err(), err))
	}
	return string(out), nil
}
