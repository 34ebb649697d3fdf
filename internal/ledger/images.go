package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Where the guest keeps its ledgers: A in the root of the data disk, B in the
// root of the boot disk's second partition, both ext4.
const (
	FileA = "ledger"
	FileB = "ledgerB"
	// SystemPartition is the primary MBR partition of the boot disk that holds B, 1 for the first.
	SystemPartition = 2
)

var (
	// ErrNoLedger says that the file system is sound and has no ledger file.
	ErrNoLedger = errors.New("the disk image holds no ledger file")
	// ErrDamaged says that a disk image does not hold what a guest's disk must: partition or file system.
	ErrDamaged = errors.New("the disk image is damaged")
)

// VerifyImages verifies a guest's two raw disk images without booting them and
// without privileges. It works on private sparse copies in the temporary
// directory, so the images may be read-only and are never changed. The copies'
// journals are replayed, as the next boot would do.
//
// It needs e2fsck and debugfs (Debian package e2fsprogs). Errors wrap
// ErrDamaged or ErrNoLedger where the images are at fault.
func VerifyImages(ctx context.Context, bootImg, dataImg string) (Verdict, error) {
	dir, err := os.MkdirTemp("", "ledger-verify-")
	if err != nil {
		return Verdict{}, fmt.Errorf("make a place for private copies: %w", err)
	}
	defer os.RemoveAll(dir)
	start, size, err := partition(bootImg, SystemPartition)
	if err != nil {
		return Verdict{}, err
	}
	replayedB, err := extractFile(ctx, dir, bootImg, start, size, FileB)
	if err != nil {
		return Verdict{}, err
	}
	st, err := os.Stat(dataImg)
	if err != nil {
		return Verdict{}, fmt.Errorf("verify data disk: %w", err)
	}
	replayedA, err := extractFile(ctx, dir, dataImg, 0, st.Size(), FileA)
	if err != nil {
		return Verdict{}, err
	}
	v, err := verifyFiles(filepath.Join(dir, FileA), filepath.Join(dir, FileB))
	v.JournalReplayed = replayedA || replayedB
	return v, err
}

func verifyFiles(a, b string) (Verdict, error) {
	fa, err := os.Open(a)
	if err != nil {
		return Verdict{}, fmt.Errorf("verify ledger A: %w", err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return Verdict{}, fmt.Errorf("verify ledger B: %w", err)
	}
	defer fb.Close()
	return Verify(fa, fb)
}

// partition returns offset and length, in bytes, of a primary MBR partition.
func partition(img string, number int) (start, size int64, err error) {
	f, err := os.Open(img)
	if err != nil {
		return 0, 0, fmt.Errorf("verify boot disk: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("verify boot disk: %w", err)
	}
	var mbr [512]byte
	if _, err := io.ReadFull(f, mbr[:]); err != nil {
		return 0, 0, fmt.Errorf("read partition table of %s (%w): %w", img, err, ErrDamaged)
	}
	e := mbr[446+16*(number-1):][:16]
	start = int64(binary.LittleEndian.Uint32(e[8:])) * 512
	size = int64(binary.LittleEndian.Uint32(e[12:])) * 512
	if mbr[510] != 0x55 || mbr[511] != 0xAA || e[4] == 0 || start == 0 || size == 0 || start+size > st.Size() {
		return 0, 0, fmt.Errorf("find partition %d of %s (%d bytes): %w", number, img, st.Size(), ErrDamaged)
	}
	return start, size, nil
}

// extractFile copies the file system at [start, start+size) of img, repairs
// the copy as a boot would, and leaves the file name in dir.
func extractFile(ctx context.Context, dir, img string, start, size int64, name string) (replayed bool, err error) {
	fsName := name + ".fs"
	if err := copySparse(filepath.Join(dir, fsName), img, start, size); err != nil {
		return false, err
	}
	defer os.Remove(filepath.Join(dir, fsName))
	out, code, err := runTool(ctx, dir, "e2fsck", "-fp", fsName)
	if err != nil {
		return false, fmt.Errorf("check file system in %s: %w", img, err)
	}
	if code >= 4 {
		return false, fmt.Errorf("check file system in %s: e2fsck exit code %d: %s: %w", img, code, out, ErrDamaged)
	}
	replayed = strings.Contains(out, "recovering journal")
	out, code, err = runTool(ctx, dir, "debugfs", "-R", "dump /"+name+" "+name, fsName)
	if err != nil {
		return replayed, fmt.Errorf("read /%s from %s: %w", name, img, err)
	}
	if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) && strings.Contains(out, "File not found") {
		return replayed, fmt.Errorf("read /%s from %s: %w", name, img, ErrNoLedger)
	} else if err != nil || code != 0 {
		return replayed, fmt.Errorf("read /%s from %s: debugfs exit code %d: %s: %w", name, img, code, out, ErrDamaged)
	}
	return replayed, nil
}

// runTool runs a program of e2fsprogs in dir. Ordinary users often lack the
// system directories in PATH, so those are tried too.
func runTool(ctx context.Context, dir, name string, args ...string) (string, int, error) {
	path, err := exec.LookPath(name)
	for _, d := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(d, name))
	}
	if err != nil {
		return "", 0, fmt.Errorf("find program %s (install package e2fsprogs): %w", name, err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 && ctx.Err() == nil {
		return text, exit.ExitCode(), nil
	}
	if err != nil {
		return text, 0, fmt.Errorf("run %s: %s: %w", name, text, errors.Join(ctx.Err(), err))
	}
	return text, 0, nil
}

func copySparse(dst, src string, start, size int64) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("copy image: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return fmt.Errorf("copy image %s: %w", src, err)
	}
	const chunk = 64 << 10
	buf, zero := make([]byte, 1<<20), make([]byte, chunk)
	for off := int64(0); off < size; {
		n := min(int64(len(buf)), size-off)
		if _, err := in.ReadAt(buf[:n], start+off); err != nil {
			return fmt.Errorf("copy image %s at byte %d: %w", src, start+off, err)
		}
		for p := int64(0); p < n; p += chunk {
			b := buf[p:min(p+chunk, n)]
			if bytes.Equal(b, zero[:len(b)]) {
				continue
			}
			if _, err := out.WriteAt(b, off+p); err != nil {
				return fmt.Errorf("copy image %s: %w", src, err)
			}
		}
		off += n
	}
	return nil
}
