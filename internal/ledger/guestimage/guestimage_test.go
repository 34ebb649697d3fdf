package guestimage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/ledger"
)

// seededCache is an empty cache with the packages of the usual one, so that a
// build takes seconds and no download.
func seededCache(t *testing.T) (dir string, img Image) {
	t.Helper()
	usual, err := DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err = Build(t.Context(), Config{CacheDir: usual})
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, pattern := range []string{"kernel-*", "agent-*"} {
		parts, _ := filepath.Glob(filepath.Join(usual, pattern))
		if len(parts) == 0 {
			t.Fatalf("no %s in %s", pattern, usual)
		}
		last := parts[len(parts)-1]
		if err := os.CopyFS(filepath.Join(dir, filepath.Base(last)), os.DirFS(last)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, img
}

// Builds at the same time in one cache, one of them killed before by a
// cancelled context, give one whole image and leave nothing else.
func TestConcurrentBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: builds two images")
	}
	dir, _ := seededCache(t)
	early, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Build(early, Config{CacheDir: dir}); err == nil {
		t.Error("a build in 20 ms: the cancelled context had no effect")
	}
	type result struct {
		img Image
		err error
	}
	results := make(chan result)
	for range 3 {
		go func() {
			img, err := Build(t.Context(), Config{CacheDir: dir})
			results <- result{img, err}
		}()
	}
	var first Image
	for i := range 3 {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		if i == 0 {
			first = r.img
		}
		if r.img != first {
			t.Errorf("%+v and %+v", first, r.img)
		}
	}
	start := time.Now()
	if again, err := Build(t.Context(), Config{CacheDir: dir}); err != nil || again != first {
		t.Errorf("%+v %v", again, err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("a build from the cache took %s", d)
	}
	other, err := Build(t.Context(), Config{CacheDir: dir, DataSize: 32 << 20})
	if err != nil || other.Data == first.Data {
		t.Fatalf("%+v %v: another size is another image", other, err)
	}
	if st, err := os.Stat(other.Data); err != nil || st.Size() != 32<<20 {
		t.Errorf("data disk: %v %v", st, err)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, strings.SplitN(e.Name(), "-", 2)[0])
	}
	if want := []string{"agent", "image", "image", "kernel", "lock"}; !slices.Equal(names, want) {
		t.Errorf("cache holds %v, want %v", names, want)
	}
}

// A fresh image has file systems in the places where the verifier looks.
func TestImageLayout(t *testing.T) {
	_, img := seededCache(t)
	if _, err := ledger.VerifyImages(t.Context(), img.Boot, img.Data); !errors.Is(err, ledger.ErrNoLedger) {
		t.Fatalf("verify a guest that never ran: %v", err)
	}
}

func TestInstantiateSetsWords(t *testing.T) {
	_, img := seededCache(t)
	dir := t.TempDir()
	before, err := os.ReadFile(img.Boot)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Instantiate(t.Context(), img, dir, "g", Raw, "rate=7", "churn=3")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"::syslinux.cfg", "::EFI/BOOT/syslinux.cfg"} {
		cmd := exec.Command("mtype", "-i", d.Boot+"@@1M", name)
		cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), " rate=7 churn=3\n") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if after, _ := os.ReadFile(img.Boot); !bytes.Equal(before, after) {
		t.Error("the template was written")
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 2 {
		t.Errorf("%v, want the two disks only", names)
	}
	if _, err := Instantiate(t.Context(), img, dir, "h", Raw, "rate=7 init=/bin/sh"); err == nil {
		t.Error("a word with a space is accepted")
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cfg Config
		ok  bool
	}{
		{Config{CacheDir: "/x"}, true},
		{Config{CacheDir: "/x", DataSize: 16 << 20}, true},
		{Config{CacheDir: "x"}, false},
		{Config{}, false},
		{Config{CacheDir: "/x", DataSize: 1 << 20}, false},
		{Config{CacheDir: "/x", DataSize: 16<<20 + 1}, false},
		{Config{CacheDir: "/x", DataSize: -1}, false},
	} {
		if err := c.cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}

// cpio itself must read what archive writes.
func TestArchive(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	a := newArchive(&b)
	a.file("a/b/odd", []byte("12345"), 0o755)
	a.link("l", "/a/b/odd")
	a.device("a/console", 5, 1)
	a.file("empty", nil, 0o644)
	if err := a.finish(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-itv", "--quiet", "-n")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio (package cpio): %s %v", out, err)
	}
	for _, want := range []string{" a\n", " a/b\n", "-rwxr-xr-x", " a/b/odd\n", "l -> /a/b/odd\n", "5,   1", " empty\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	_, img := seededCache(t)
	usual, _ := DefaultCacheDir()
	b, err := os.ReadFile(filepath.Join(usual, "kernel-"+img.Kernel, "core"))
	if err != nil {
		t.Fatal(err)
	}
	order := strings.Fields(string(b))
	pos := func(n string) int { return slices.Index(order, n+".ko") }
	for _, pair := range [][2]string{{"virtio_ring", "virtio"}, {"virtio", "virtio_blk"}, {"failover", "net_failover"}, {"net_failover", "virtio_net"}} {
		if pos(pair[0]) < 0 || pos(pair[0]) > pos(pair[1]) {
			t.Errorf("%s must come before %s: %v", pair[0], pair[1], order)
		}
	}
	if _, err := loadOrder(map[string][]byte{"m": []byte("not a module")}, []string{"m"}); err == nil {
		t.Error("a module that is not ELF is accepted")
	}
}
