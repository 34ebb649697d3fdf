package file

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/objstore"
)

const (
	crashEnv = "HOLDFAST_FILE_TEST_CRASH" // label:directory
	mountEnv = "HOLDFAST_FILE_TEST_MOUNT" // directory to mount on
)

// TestMain also plays the subprocesses of the tests below.
func TestMain(m *testing.M) {
	if spec := os.Getenv(crashEnv); spec != "" {
		label, dir, _ := strings.Cut(spec, ":")
		fmt.Println("writer:", crashingWriter(label, dir)) // reached only if it did not die
		os.Exit(3)
	}
	if dir := os.Getenv(mountEnv); dir != "" {
		if err := onSmallDisk(dir); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const crashSize = 3*copyBuffer + 5

func crashContent() string { return strings.Repeat("0123456789abcde\n", crashSize/16+1)[:crashSize] }

// crashingWriter kills its process at a step of a put.
func crashingWriter(label, dir string) error {
	b, err := Open(tctx, Config{Dir: dir})
	if err != nil {
		return err
	}
	b.hooks.step = func(l string) error {
		if l == label {
			return errors.Join(syscall.Kill(os.Getpid(), syscall.SIGKILL), errors.New("survived"))
		}
		return nil
	}
	return put(tctx, b, "v1/m/a/1/cut/1", crashContent())
}

func TestKilledWriter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		label   string
		visible bool
		temps   int
	}{
		{"created", false, 1}, {"writing", false, 1}, {"written", false, 1}, {"synced", false, 1}, {"settled", false, 1},
		{"linked", true, 1}, {"done", true, 0},
	} {
		t.Run(tt.label, func(t *testing.T) {
			t.Parallel()
			b := openNew(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), crashEnv+"="+tt.label+":"+b.dir)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the writer was not killed at %s: %v\n%s", tt.label, err, out)
			}
			left := temps(t, b.dir)
			if len(left) != tt.temps {
				t.Errorf("%d files in tmp, want %d", len(left), tt.temps)
			}
			old := time.Now().Add(-2 * time.Hour)
			for _, name := range left {
				if err := os.Chtimes(name, old, old); err != nil {
					t.Fatal(err)
				}
			}

			b = open(t, Config{Dir: b.dir})
			if left := temps(t, b.dir); len(left) != 0 {
				t.Errorf("left in tmp after open: %q", left)
			}
			if got := keys(t, b); (len(got) == 1) != tt.visible {
				t.Errorf("list shows %q", got)
			}
			err = put(t.Context(), b, "v1/m/a/1/cut/1", crashContent())
			if tt.visible && !errors.Is(err, objstore.ErrExists) || !tt.visible && err != nil {
				t.Errorf("put again: %v", err)
			}
			got, err := objstore.ReadAll(t.Context(), b, "v1/m/a/1/cut/1", crashSize)
			if err != nil || string(got) != crashContent() {
				t.Errorf("content: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := put(t.Context(), b, "m/k", "x"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{".": 0o700, "tmp": 0o700, "objects": 0o700, "objects/m": 0o700, "objects/m/k": 0o600, "bucket.json": 0o600} {
		info, err := os.Stat(filepath.Join(b.dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode().Perm(), err, want)
		}
	}
}

// TestNoPermission needs a user to whom permissions apply.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		// Root passes every permission check; kindOf is all that is left.
		for op, want := range map[string]error{"put": objstore.ErrReadOnly, "delete": objstore.ErrReadOnly, "get": objstore.ErrDenied, "list": objstore.ErrDenied} {
			err := wrap(op, "k", &os.PathError{Op: "open", Path: "k", Err: syscall.EACCES})
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", op, err, want)
			}
		}
		return
	}
	b := openNew(t)
	if err := put(t.Context(), b, "m/k", "x"); err != nil {
		t.Fatal(err)
	}
	chmod := func(name string, mode os.FileMode) {
		if err := os.Chmod(filepath.Join(b.dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("objects/m", 0o500)
	t.Cleanup(func() { chmod("objects/m", 0o700) })
	if err := put(t.Context(), b, "m/new", "x"); !errors.Is(err, objstore.ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
	chmod("objects/m/k", 0)
	if _, err := b.Get(t.Context(), "m/k", 0, -1); !errors.Is(err, objstore.ErrDenied) {
		t.Errorf("get: %v", err)
	}
}

func TestNamedPipe(t *testing.T) {
	t.Parallel()
	b := openNew(t)
	if err := syscall.Mkfifo(filepath.Join(b.dir, objectsDir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "pipe", 0, -1); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if got := keys(t, b); len(got) != 0 {
		t.Errorf("list shows %q", got)
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		op   string
		err  error
		want error
	}{
		{"put", syscall.ENOSPC, objstore.ErrNoSpace}, {"put", syscall.EDQUOT, objstore.ErrNoSpace}, {"put", syscall.EROFS, objstore.ErrReadOnly},
		{"delete", syscall.EROFS, objstore.ErrReadOnly}, {"put", syscall.EIO, objstore.ErrUnavailable}, {"get", syscall.EIO, objstore.ErrUnavailable},
		{"get", syscall.ESTALE, objstore.ErrUnavailable}, {"head", syscall.EMFILE, objstore.ErrUnavailable}, {"put", syscall.ENOENT, objstore.ErrUnavailable},
		{"list", syscall.ENOENT, objstore.ErrUnavailable}, {"open", syscall.ENOENT, objstore.ErrUnavailable}, {"get", syscall.ENOENT, objstore.ErrNotExist},
		{"put", &bodyError{syscall.ENOSPC}, nil},
	} {
		err := wrap(tt.op, "some/key", tt.err)
		if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "some/key") {
			t.Errorf("%s, %v: %v, want %v", tt.op, tt.err, err, tt.want)
		}
		if tt.want == nil && errors.Is(err, objstore.ErrNoSpace) {
			t.Errorf("a full disk of the source is taken for a full store: %v", err)
		}
		if !errors.Is(tt.want, objstore.ErrNotExist) && errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%s, %v: claims absence", tt.op, tt.err)
		}
	}
}
