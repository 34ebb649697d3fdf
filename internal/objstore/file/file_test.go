package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/objstoretest"
)

func openNew(t *testing.T) *Bucket {
	t.Helper()
	return open(t, Config{Dir: filepath.Join(t.TempDir(), "deep", "bucket"), Create: true})
}

func open(t *testing.T, c Config) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

func put(ctx context.Context, b objstore.Bucket, key, content string) error {
	return b.PutNew(ctx, key, strings.NewReader(content), int64(len(content)), nil)
}

func keys(t *testing.T, b objstore.Reader) []string {
	t.Helper()
	var list []string
	if err := b.List(t.Context(), "", func(i objstore.Info) error { list = append(list, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	return list
}

func temps(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, tmpDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestConformance(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return openNew(t) })
}

// TestTwoHandles races writers that share nothing but the directory, as two
// processes do.
func TestTwoHandles(t *testing.T) {
	t.Parallel()
	a := openNew(t)
	b := open(t, Config{Dir: a.dir})
	for round := range 200 {
		key := fmt.Sprintf("d-%d/cut", round%20) + fmt.Sprint(round)
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, h := range []*Bucket{a, b} {
			wg.Go(func() { errs[i] = put(t.Context(), h, key, fmt.Sprint("writer ", i)) })
		}
		wg.Wait()
		winner := slices.Index(errs, nil)
		if winner < 0 || !errors.Is(errs[1-winner], objstore.ErrExists) {
			t.Fatalf("round %d: %v", round, errs)
		}
		if got, err := objstore.ReadAll(t.Context(), a, key, 100); err != nil || string(got) != fmt.Sprint("writer ", winner) {
			t.Fatalf("round %d: %q, %v; writer %d won", round, got, err, winner)
		}
	}
	if left := temps(t, a.dir); len(left) != 0 {
		t.Errorf("left in tmp: %q", left)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		setUp func(dir string)
		c     Config
		want  string // part of the error, or empty
	}{
		{"missing directory", func(dir string) { _ = os.Remove(dir) }, Config{}, "no such file"},
		{"unmounted disk", func(string) {}, Config{}, "mount the disk"},
		{"create in an empty directory", func(string) {}, Config{Create: true}, ""},
		{"create after a crash of create", func(dir string) {
			_ = os.MkdirAll(filepath.Join(dir, tmpDir), 0o700)
			write(dir, "tmp/x", "half")
		}, Config{Create: true}, ""},
		{"create on a fresh file system", func(dir string) { _ = os.Mkdir(filepath.Join(dir, "lost+found"), 0o700) }, Config{Create: true}, ""},
		{"create among other things", func(dir string) { write(dir, "thesis.doc", "x") }, Config{Create: true}, "not empty"},
		{"later version", func(dir string) { write(dir, markerName, `{"format":"holdfast-file-bucket","version":2}`) }, Config{}, "version 2"},
		{"garbage marker", func(dir string) { write(dir, markerName, `{"format":"other"}`) }, Config{Create: true}, "not the marker"},
		{"torn marker", func(dir string) { write(dir, markerName, `{"for`) }, Config{Create: true}, "not the marker"},
		{"a file", func(dir string) {
			_ = os.Remove(dir)
			write(filepath.Dir(dir), filepath.Base(dir), "x")
		}, Config{Create: true}, "not a directory"},
		{"create read-only", func(string) {}, Config{Create: true, ReadOnly: true}, "cannot both"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.setUp(dir)
			tt.c.Dir = dir
			b, err := Open(ctx, tt.c)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				_ = b.Close()
				b = open(t, Config{Dir: dir}) // a second time, without Create
				if err := put(ctx, b, "k", "x"); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := Open(ctx, Config{}); err == nil {
		t.Error("opened a bucket without a directory")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Open(ended, Config{Dir: t.TempDir(), Create: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("open with an ended context: %v", err)
	}
}

func TestStaleTemps(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	for name, age := range map[string]time.Duration{"old": 61 * time.Minute, "fresh": 59 * time.Minute} {
		p := filepath.Join(b.dir, tmpDir, name)
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Chtimes(p, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Config{Dir: b.dir, ReadOnly: true})
	if got := temps(t, b.dir); len(got) != 2 {
		t.Errorf("a read-only open deleted temporary files; left: %q", got)
	}
	open(t, Config{Dir: b.dir})
	if got := temps(t, b.dir); len(got) != 1 || filepath.Base(got[0]) != "fresh" {
		t.Errorf("left in tmp: %q, want only the fresh one", got)
	}
}

func TestReadOnlyConfig(t *testing.T) {
	t.Parallel()
	w := openNew(t)
	if err := put(t.Context(), w, "a/k", "x"); err != nil {
		t.Fatal(err)
	}
	b := open(t, Config{Dir: w.dir, ReadOnly: true})
	for op, err := range map[string]error{"put": put(t.Context(), b, "a/new", "x"), "delete": b.Delete(t.Context(), "a/k")} {
		if !errors.Is(err, objstore.ErrReadOnly) || !strings.Contains(err.Error(), `"a/`) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if _, err := b.Head(t.Context(), "a/k"); err != nil {
		t.Error(err)
	}
}

// TestVanishedBucket: a bucket that is no longer there says nothing about its
// objects.
func TestVanishedBucket(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"", objectsDir, markerName} {
		t.Run("without "+what, func(t *testing.T) {
			b := openNew(t)
			if err := put(t.Context(), b, "k/a", "x"); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(b.dir, what)); err != nil {
				t.Fatal(err)
			}
			_, headErr := b.Head(t.Context(), "k/b")
			_, getErr := b.Get(t.Context(), "k/b", 0, -1)
			errs := map[string]error{
				"head": headErr, "get": getErr, "delete": b.Delete(t.Context(), "k/b"), "put": put(t.Context(), b, "k/b", "x"),
			}
			if what != markerName { // the objects are still listed
				errs["list"] = b.List(t.Context(), "", func(objstore.Info) error { return nil })
			}
			for op, err := range errs {
				if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) || errors.Is(err, fs.ErrNotExist) && op != "put" {
					t.Errorf("%s: %v, want ErrUnavailable only", op, err)
				}
			}
		})
	}
	b := openNew(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("head after close: %v", err)
	}
}

// TestOperatorRemovedFolder: a folder that is deleted by hand is made again.
func TestOperatorRemovedFolder(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	for range 2 {
		if err := put(t.Context(), b, "m/a/cut/1", "x"); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(b.dir, objectsDir, "m")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Head(t.Context(), "m/a/cut/1"); !errors.Is(err, objstore.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func TestForeignFiles(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "m/k", "x"); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(b.dir, objectsDir, name) }
	if err := errors.Join(
		os.WriteFile(at("Thumbs.DB"), nil, 0o600),
		os.WriteFile(at("m/two words"), nil, 0o600),
		os.WriteFile(at("m/dot."), nil, 0o600),
		os.Mkdir(at("m/Upper"), 0o700),
		os.WriteFile(at("m/Upper/x"), nil, 0o600),
		os.Symlink("/etc/passwd", at("m/link")),
		os.Symlink("/etc", at("m/dir")),
	); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, b); !slices.Equal(got, []string{"m/k"}) {
		t.Errorf("list shows %q", got)
	}
	for _, key := range []string{"m/link", "m/dir/passwd"} {
		if body, err := b.Get(t.Context(), key, 0, -1); err == nil {
			_ = body.Close()
			t.Errorf("get followed %s out of the bucket", key)
		} else if errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("get of %s: %v; a foreign thing in the way is not absence", key, err)
		}
	}
}

func TestKeyAndFolderConflict(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := errors.Join(put(t.Context(), b, "a", "x"), put(t.Context(), b, "f/x", "x")); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a/b", "a/b/c", "f"} {
		if err := put(t.Context(), b, key, "y"); !errors.Is(err, objstore.ErrInvalidKey) || errors.Is(err, objstore.ErrExists) {
			t.Errorf("put %q: %v, want ErrInvalidKey", key, err)
		}
	}
	if got := keys(t, b); !slices.Equal(got, []string{"a", "f/x"}) {
		t.Errorf("list shows %q", got)
	}
	if left := temps(t, b.dir); len(left) != 0 {
		t.Errorf("left in tmp: %q", left)
	}
}

// TestShrunkFile: damage by hand is an error, not a short object.
func TestShrunkFile(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "k", strings.Repeat("x", 1000)); err != nil {
		t.Fatal(err)
	}
	body, err := b.Get(t.Context(), "k", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := os.Truncate(filepath.Join(b.dir, objectsDir, "k"), 400); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(body)
	if len(got) != 400 || !errors.Is(err, objstore.ErrUnavailable) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// disk is a model of what survives a power cut: a file's content from its sync
// on, a directory's entries as they were at its last sync.
type disk struct {
	dir     string
	content map[string]bool            // temporary names whose content is safe
	entries map[string]map[string]bool // directory → names in it that are safe
	linked  bool
	early   []string // labels at which the content was not yet safe but should be
}

func (d *disk) sync(name string) error {
	full := filepath.Join(d.dir, name)
	info, err := os.Stat(full)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		d.content[name] = true
		return nil
	}
	list, err := os.ReadDir(full)
	if err != nil {
		return err
	}
	names := make(map[string]bool)
	for _, e := range list {
		names[e.Name()] = true
	}
	d.entries[name] = names
	return nil
}

func (d *disk) step(label string) error {
	if label == "linked" && len(d.content) == 0 {
		d.early = append(d.early, label)
	}
	return nil
}

// safe reports whether every name on the way to key is durable.
func (d *disk) safe(key string) error {
	for name := objectPath(key); name != "."; name = path.Dir(name) {
		if !d.entries[path.Dir(name)][path.Base(name)] {
			return fmt.Errorf("%s would be lost in a power cut", name)
		}
	}
	return nil
}

func TestDurableBeforeReturn(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	other := open(t, Config{Dir: b.dir}) // makes folders that b did not sync
	d := &disk{dir: b.dir, content: make(map[string]bool), entries: make(map[string]map[string]bool)}
	b.hooks = hooks{step: d.step, sync: d.sync}
	check := func(what, key string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
		if err := d.safe(key); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
	}
	for i, key := range []string{"v1/m/a/1/cut/1", "v1/m/a/1/cut/2", "v1/m/a/2/cut/1", "v1/vault.json", "v1/m/b/1/cut/1", "top"} {
		clear(d.content)
		check("put", key, put(t.Context(), b, key, "x"), nil)
		if len(d.content) != 1 || len(d.early) > 0 {
			t.Errorf("put %d: the content was not synced before the link", i)
		}
	}
	for i, key := range []string{"v1/m/c/1/cut/1", "v1/m/a/3/cut/1", "v2/x"} {
		if err := put(t.Context(), other, key, "x"); err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			_, err := b.Head(t.Context(), key)
			check("head", key, err, nil)
		case 1:
			check("put of a neighbour", key+"-", put(t.Context(), b, key+"-", "x"), nil)
		case 2:
			_, err := b.Head(t.Context(), key)
			check("head", key, err, nil)
		}
	}
	// The object of a writer that was killed after its link.
	if err := put(t.Context(), other, "v1/m/a/1/cut/3", "x"); err != nil {
		t.Fatal(err)
	}
	check("put of a taken key", "v1/m/a/1/cut/3", put(t.Context(), b, "v1/m/a/1/cut/3", "x"), objstore.ErrExists)
	// Later syncs in a known folder are only the file and that folder.
	var syncs []string
	b.hooks.sync = func(name string) error { syncs = append(syncs, name); return nil }
	if err := put(t.Context(), b, "v1/m/a/1/cut/4", "x"); err != nil || len(syncs) != 2 || syncs[1] != "objects/v1/m/a/1/cut" {
		t.Errorf("syncs of a later put: %q, %v", syncs, err)
	}
}

// TestInvisibleUntilDurable holds a put between its link and its sync.
func TestInvisibleUntilDurable(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "d/before", "x"); err != nil {
		t.Fatal(err)
	}
	linked, release := make(chan struct{}), make(chan struct{})
	b.hooks.step = func(label string) error {
		if label == "linked" {
			close(linked)
			<-release
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- put(t.Context(), b, "d/new", "new") }()
	<-linked
	if _, err := os.Stat(filepath.Join(b.dir, objectsDir, "d/new")); err != nil {
		t.Fatalf("the link is not there, the test proves nothing: %v", err)
	}
	if got := keys(t, b); !slices.Equal(got, []string{"d/before"}) {
		t.Errorf("list shows %q before the sync", got)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, headErr := b.Head(short, "d/new")
	_, getErr := b.Get(short, "d/new", 0, -1)
	for op, err := range map[string]error{"head": headErr, "get": getErr, "put": put(short, b, "d/new", "other")} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s did not wait for the sync: %v", op, err)
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := b.Head(t.Context(), "d/new"); err != nil {
		t.Error(err)
	}
}

func TestFailedSync(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "d/old", "old"); err != nil {
		t.Fatal(err)
	}
	var isLinked, fired bool
	broken := errors.New("input/output error")
	b.hooks = hooks{
		step: func(label string) error { isLinked = isLinked || label == "linked"; return nil },
		sync: func(string) error {
			if isLinked {
				fired = true
				return broken
			}
			return nil
		},
	}
	err := put(t.Context(), b, "d/new", "new")
	if !fired || !errors.Is(err, objstore.ErrUnavailable) || !errors.Is(err, broken) {
		t.Errorf("put: %v (fired %v)", err, fired)
	}
	b.hooks = hooks{}
	if got := keys(t, b); !slices.Equal(got, []string{"d/old"}) {
		t.Errorf("list shows %q", got)
	}
	if err := put(t.Context(), b, "e/x", "x"); !errors.Is(err, objstore.ErrUnavailable) || !errors.Is(err, broken) {
		t.Errorf("a put after the failed sync: %v, want ErrUnavailable", err)
	}
	if got, err := objstore.ReadAll(t.Context(), b, "d/old", 10); err != nil || string(got) != "old" {
		t.Errorf("reads must go on: %q, %v", got, err)
	}
	b = open(t, Config{Dir: b.dir})
	if err := put(t.Context(), b, "d/new", "new"); err != nil {
		t.Errorf("put after opening again: %v", err)
	}
}

// TestStepErrors fails the write at each step before the link.
func TestStepErrors(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"created", "writing", "written", "synced", "settled"} {
		t.Run(label, func(t *testing.T) {
			b := openNew(t)
			fired := 0
			b.hooks.step = func(l string) error {
				if l == label {
					fired++
					return syscall.ENOSPC
				}
				return nil
			}
			err := put(t.Context(), b, "m/k", "content")
			if fired != 1 || !errors.Is(err, objstore.ErrNoSpace) || !strings.Contains(err.Error(), `"m/k"`) {
				t.Errorf("put: %v (fired %d times)", err, fired)
			}
			b.hooks.step = nil
			if len(keys(t, b)) != 0 || len(temps(t, b.dir)) != 0 {
				t.Errorf("left: %q %q", keys(t, b), temps(t, b.dir))
			}
			if err := put(t.Context(), b, "m/k", "content"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOwnLinkReportedAsTaken is NFS repeating a request whose answer was lost.
func TestOwnLinkReportedAsTaken(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	fired := false
	b.hooks.step = func(label string) error {
		if label != "settled" {
			return nil
		}
		fired = true
		return os.Link(temps(t, b.dir)[0], filepath.Join(b.dir, objectsDir, "k"))
	}
	if err := put(t.Context(), b, "k", "x"); err != nil || !fired {
		t.Errorf("put: %v (fired %v)", err, fired)
	}
}

func TestDigestOfFile(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "k", "hello"); err != nil {
		t.Fatal(err)
	}
	info, err := b.Head(t.Context(), "k")
	if err != nil || info.SHA256 != [32]byte{} {
		t.Errorf("head: %+v, %v", info, err)
	}
	if info, err = objstore.Digest(t.Context(), b, "k"); err != nil || info.SHA256 != sha256.Sum256([]byte("hello")) {
		t.Errorf("digest: %+v, %v", info, err)
	}
}

func TestEndlessEmptyReads(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	err := b.PutNew(t.Context(), "k", emptyReads{}, 1, nil)
	if !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("put: %v", err)
	}
}

type emptyReads struct{}

func (emptyReads) Read([]byte) (int, error) { return 0, nil }

func BenchmarkPutNew(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20, 32 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			bucket, err := Open(b.Context(), Config{Dir: b.TempDir(), Create: true})
			if err != nil {
				b.Fatal(err)
			}
			defer bucket.Close()
			data := bytes.Repeat([]byte{1}, size)
			b.SetBytes(int64(size))
			i := 0
			for b.Loop() {
				i++
				key := fmt.Sprintf("m/a/1/part/%016x.seg", i)
				if err := bucket.PutNew(b.Context(), key, bytes.NewReader(data), int64(size), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	bucket, err := Open(b.Context(), Config{Dir: b.TempDir(), Create: true})
	if err != nil {
		b.Fatal(err)
	}
	defer bucket.Close()
	const n = 20_000
	if err := bucket.root.MkdirAll("objects/m/a/1/cut", 0o700); err != nil {
		b.Fatal(err)
	}
	for i := range n {
		if err := bucket.root.WriteFile(fmt.Sprintf("objects/m/a/1/cut/%016x.cut", i), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		got := 0
		if err := bucket.List(b.Context(), "m/a/1/cut/", func(objstore.Info) error { got++; return nil }); err != nil || got != n {
			b.Fatal(got, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/object")
}
