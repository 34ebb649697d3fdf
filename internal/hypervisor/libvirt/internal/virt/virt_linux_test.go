package virt

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"go.uber.org/goleak"

	"holdfast/internal/dr"
)

// TestSilentDaemon: a daemon that accepts and never answers is left at the deadline, without a trace.
func TestSilentDaemon(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "virt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := Config{URI: URISession, Sockets: []string{filepath.Join(dir, "absent"), socket}, CallTimeout: time.Minute}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := Open(ctx, cfg); dr.CodeOf(err) != dr.CodeHypervisorTimeout {
		t.Errorf("open: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Open(cancelled, cfg); dr.KindOf(err) != dr.KindCanceled {
		t.Errorf("open with a cancelled context: %v", err)
	}
	if _, err := Open(t.Context(), Config{URI: URISession, Sockets: cfg.Sockets[:1]}); dr.CodeOf(err) != dr.CodeHypervisorDown {
		t.Errorf("open without a daemon: %v", err)
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	lv := func(n golibvirt.ErrorNumber, msg string) error { return golibvirt.Error{Code: uint32(n), Message: msg} }
	for name, c := range map[string]struct {
		err  error
		kind dr.Kind
		code dr.Code
	}{
		"no domain":     {lv(golibvirt.ErrNoDomain, "x"), dr.KindNotFound, dr.CodeVMNotFound},
		"no checkpoint": {lv(golibvirt.ErrNoDomainCheckpoint, "x"), dr.KindPrecondition, dr.CodeTrackingLost},
		"inconsistent":  {lv(golibvirt.ErrCheckpointInconsistent, "checkpoint inconsistent: missing or broken bitmap 'a' for disk 'vda'"), dr.KindPrecondition, dr.CodeTrackingLost},
		"broken bitmap": {lv(golibvirt.ErrOperationFailed, "missing or broken bitmap"), dr.KindPrecondition, dr.CodeTrackingLost},
		"lock":          {lv(golibvirt.ErrOperationTimeout, "cannot acquire state change lock (held by x)"), dr.KindUnavailable, dr.CodeHypervisorTimeout},
		"off":           {lv(golibvirt.ErrOperationInvalid, "Requested operation is not valid: domain is not running"), dr.KindPrecondition, dr.CodeVMNotRunning},
		"space":         {lv(golibvirt.ErrSystemError, "No space left on device"), dr.KindExhausted, dr.CodeNoSpace},
		"rights":        {lv(golibvirt.ErrAuthFailed, "x"), dr.KindForbidden, ""},
		"exists":        {lv(golibvirt.ErrDomExist, "x"), dr.KindConflict, dr.CodeAlreadyExists},
		"unsupported":   {lv(golibvirt.ErrConfigUnsupported, "x"), dr.KindUnsupported, ""},
		"other":         {lv(golibvirt.ErrInternalError, "x"), dr.KindUnavailable, ""},
		"deadline":      {context.DeadlineExceeded, dr.KindUnavailable, dr.CodeHypervisorTimeout},
		"cancelled":     {context.Canceled, dr.KindCanceled, ""},
		"lost":          {golibvirt.ErrInterrupted, dr.KindUnavailable, dr.CodeHypervisorDown},
		"refused":       {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, dr.KindUnavailable, dr.CodeHypervisorDown},
		"unknown":       {errors.New("x"), dr.KindInternal, ""},
	} {
		got := Wrap("Op", "do 100% of it", c.err)
		if dr.KindOf(got) != c.kind || dr.CodeOf(got) != c.code || !errors.Is(got, c.err) {
			t.Errorf("%s: %v, kind %v, code %q", name, got, dr.KindOf(got), dr.CodeOf(got))
		}
		if want := "do 100% of it: " + c.err.Error(); got.Error() != want {
			t.Errorf("%s: text %q, want %q", name, got, want)
		}
	}
	own := dr.Errorf(dr.KindConflict, "x", "mine")
	if Wrap("Op", "w", own) != error(own) || Wrap("Op", "w", nil) != nil {
		t.Error("own errors and nil must pass")
	}
}

func TestUUID(t *testing.T) {
	t.Parallel()
	u, err := ParseUUID("6F3C1D5E-0000-4000-8000-00000000ABCD")
	if err != nil || ID(u) != "6f3c1d5e-0000-4000-8000-00000000abcd" {
		t.Errorf("%s, %v", ID(u), err)
	}
	for _, s := range []string{"", "x", "6f3c1d5e000040008000000000000abcd", "6f3c1d5e-0000-4000-8000-00000000abcg", "6f3c1d5e-0000-4000-8000-00000000abcd0"} {
		if _, err := ParseUUID(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func header(version, bits uint32, size uint64) []byte {
	b := make([]byte, 104)
	copy(b, "QFI\xfb")
	binary.BigEndian.PutUint32(b[4:], version)
	binary.BigEndian.PutUint32(b[20:], bits)
	binary.BigEndian.PutUint64(b[24:], size)
	return b
}

func TestReadQCOW2(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "i")
	read := func(b []byte) (QCOW2, error) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadQCOW2(path)
	}
	if q, err := read(header(3, 16, 5<<30)); err != nil || q != (QCOW2{3, 65536, 5 << 30}) {
		t.Errorf("%+v, %v", q, err)
	}
	for name, b := range map[string][]byte{"short": header(3, 16, 1)[:20], "magic": make([]byte, 104), "bits": header(3, 40, 1), "size": header(3, 16, 1<<63)} {
		if q, err := read(b); err == nil {
			t.Errorf("%s: %+v", name, q)
		}
	}
	if _, err := ReadQCOW2(t.TempDir()); err == nil {
		t.Error("a directory is an image")
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadQCOW2(fifo); err == nil {
		t.Error("a pipe is an image")
	}
}
