package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const (
	testSysStart = 1 << 20
	testSysSize  = 8 << 20
)

// images makes a boot and a data image with the given ledgers; nil = no file.
func images(t *testing.T, a, b []byte) (boot, data string) {
	t.Helper()
	dir := t.TempDir()
	boot, data = filepath.Join(dir, "boot.img"), filepath.Join(dir, "data.img")
	sys := filepath.Join(dir, "sys.fs")
	for path, c := range map[string][]byte{data: a, sys: b} {
		src := filepath.Join(dir, "src")
		if err := os.Mkdir(src, 0o700); err != nil {
			t.Fatal(err)
		}
		name := FileB
		if path == data {
			name = FileA
		}
		if c != nil {
			if err := os.WriteFile(filepath.Join(src, name), c, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		mkfs := "mkfs.ext4"
		if _, err := exec.LookPath(mkfs); err != nil {
			mkfs = "/usr/sbin/mkfs.ext4"
		}
		if out, err := exec.Command(mkfs, "-q", "-F", "-d", src, path, "8M").CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4 (package e2fsprogs): %s %v", out, err)
		}
		os.RemoveAll(src)
	}
	fs, err := os.ReadFile(sys)
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, testSysStart+testSysSize)
	e := img[446+16:]
	e[4] = 0x83
	binary.LittleEndian.PutUint32(e[8:], testSysStart/512)
	binary.LittleEndian.PutUint32(e[12:], testSysSize/512)
	img[510], img[511] = 0x55, 0xAA
	copy(img[testSysStart:], fs)
	if err := os.WriteFile(boot, img, 0o400); err != nil {
		t.Fatal(err)
	}
	return boot, data
}

func TestVerifyImages(t *testing.T) {
	t.Parallel()
	t.Run("sound", func(t *testing.T) {
		boot, data := images(t, chain(41), chain(40))
		before, _ := os.ReadFile(data)
		v, err := VerifyImages(t.Context(), boot, data)
		if err != nil || !v.OK() || v.LastA != 41 || v.LastB != 40 || v.Valid != 40 || v.JournalReplayed {
			t.Fatalf("%s %v", v, err)
		}
		if after, _ := os.ReadFile(data); !bytes.Equal(before, after) {
			t.Error("the image was changed")
		}
	})
	t.Run("disks of two instants", func(t *testing.T) {
		boot, data := images(t, chain(45), chain(40))
		if v, err := VerifyImages(t.Context(), boot, data); err != nil || v.OrderOK || !v.ChainOK {
			t.Fatalf("%s %v", v, err)
		}
	})
	t.Run("no ledger", func(t *testing.T) {
		boot, data := images(t, chain(1), nil)
		if _, err := VerifyImages(t.Context(), boot, data); !errors.Is(err, ErrNoLedger) {
			t.Fatal(err)
		}
	})
	t.Run("file system gone", func(t *testing.T) {
		boot, _ := images(t, chain(1), chain(1))
		data := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(data, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyImages(t.Context(), boot, data); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
	t.Run("partition table gone", func(t *testing.T) {
		_, data := images(t, chain(1), chain(1))
		if _, err := VerifyImages(t.Context(), data, data); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
	t.Run("missing image is not damage", func(t *testing.T) {
		_, err := VerifyImages(t.Context(), "/nonexistent/boot", "/nonexistent/data")
		if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}
