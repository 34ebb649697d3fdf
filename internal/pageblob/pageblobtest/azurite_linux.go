package pageblobtest

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// azurite is Microsoft's emulator of the storage service, an npm package. It
// needs node and npm (Debian: nodejs, npm).
const azurite = "azurite@3.35.0"

// The emulator's account, as its documentation gives it.
const (
	Account = "devstoreaccount1"
	Key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Emulator is a running Azurite with one container.
type Emulator struct {
	Container string // its address
	Key       *azblob.SharedKeyCredential
	Transport *http.Transport
}

// installAzurite returns the path of the program, from the cache if it is there.
func installAzurite(t testing.TB) string {
	t.Helper()
	base := "/var/tmp/holdfast-cache-azurite-" + strconv.Itoa(os.Getuid())
	if err := os.MkdirAll(base, 0o700); err != nil {
		t.Fatal(err)
	}
	// What is run must not have been put there by somebody else.
	info, err := os.Lstat(base)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		t.Fatalf("%s is not a directory of this user alone", base)
	}
	// Only one process installs, and half an installation is never used: it is
	// made beside and renamed.
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, strings.ReplaceAll(azurite, "@", "-"))
	program := filepath.Join(dir, "node_modules", ".bin", "azurite-blob")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	half := dir + ".half"
	if err := os.RemoveAll(half); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "install", "--prefix", half, "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", azurite)
	install.Dir = half
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("install %s: %v\n%s", azurite, err, out)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, dir); err != nil {
		t.Fatal(err)
	}
	return program
}

// StartAzurite runs the emulator until the test ends.
func StartAzurite(t testing.TB) *Emulator {
	t.Helper()
	program := installAzurite(t)
	dir := t.TempDir()
	// The emulator cannot tell which port it was given, so one is chosen. If somebody
	// else takes it in between, another is tried.
	for attempt := 1; ; attempt++ {
		e, said := tryAzurite(t, program, dir)
		if e != nil {
			return e
		}
		if attempt == 3 {
			t.Fatalf("the emulator does not answer; it said:\n%s", said)
		}
	}
}

func tryAzurite(t testing.TB, program, dir string) (*Emulator, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	e := &Emulator{Container: "http://127.0.0.1:" + port + "/" + Account + "/disks", Transport: http.DefaultTransport.(*http.Transport).Clone()}
	e.Transport.MaxIdleConnsPerHost = 32
	e.Transport.DisableCompression = true
	if e.Key, err = azblob.NewSharedKeyCredential(Account, Key); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "--blobHost", "127.0.0.1", "--blobPort", port, "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed: its status says only that
		close(exited)
	}()
	stop := func() {
		e.Transport.CloseIdleConnections()
		_ = cmd.Process.Kill()
		<-exited
	}
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: e.Transport}
	o.Retry.MaxRetries = -1
	cl, err := container.NewClientWithSharedKeyCredential(e.Container, e.Key, o)
	if err != nil {
		stop()
		t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		if _, err = cl.Create(t.Context(), nil); err == nil {
			t.Cleanup(func() {
				stop()
				if t.Failed() {
					t.Logf("the emulator said:\n%s", log.String())
				}
			})
			return e, ""
		}
		select {
		case <-exited:
			e.Transport.CloseIdleConnections()
			return nil, log.String()
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	return nil, log.String() + "\n" + err.Error()
}
