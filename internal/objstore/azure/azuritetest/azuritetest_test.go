package azuritetest_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/objstore/azure/azuritetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needsLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the emulator is started on Linux only")
	}
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
}

// TestServers runs two at once: each takes requests, knows nothing of the other
// and is gone after Close.
func TestServers(t *testing.T) {
	t.Parallel()
	needsLinux(t)
	plain, secure := azuritetest.Start(t), azuritetest.StartTLS(t)
	if plain.Endpoint == secure.Endpoint || !strings.HasPrefix(secure.Endpoint, "https://127.0.0.1:") || !strings.HasPrefix(plain.Endpoint, "http://127.0.0.1:") {
		t.Errorf("endpoints %s and %s", plain.Endpoint, secure.Endpoint)
	}
	if plain.Pool() != nil || secure.Pool() == nil {
		t.Error("the certificates are not those of the server")
	}
	for _, s := range []*azuritetest.Server{plain, secure} {
		s.NewContainer(t, "replicas")
		if err := s.CreateContainer(t.Context(), "replicas"); err == nil {
			t.Error("the container was created twice")
		}
	}
	plain.Close()
	plain.Close()
	u, err := url.Parse(plain.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", u.Host, 10*time.Second); err == nil {
		_ = c.Close()
		t.Error("somebody answers after Close")
	}
}

// TestPortIsTaken starts one server on the port of another, which answers: it
// must not be mistaken for the new one.
func TestPortIsTaken(t *testing.T) {
	t.Parallel()
	needsLinux(t)
	s := azuritetest.Start(t)
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.LookupPort("tcp", u.Port())
	if err != nil {
		t.Fatal(err)
	}
	if other, err := azuritetest.Run(t.Context(), azuritetest.Options{Port: port}); err == nil {
		other.Close()
		t.Error("two servers on one port")
	}
}

// TestRefuses looks at what must not be taken for a server or a cache.
func TestRefuses(t *testing.T) {
	t.Parallel()
	needsLinux(t)
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for name, cache := range map[string]string{"others can write": open, "a link": link, "not whole": "here", "no parent": filepath.Join(dir, "a", "b")} {
		if s, err := azuritetest.Run(t.Context(), azuritetest.Options{Cache: cache}); err == nil {
			s.Close()
			t.Errorf("%s: started", name)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := azuritetest.Run(ended, azuritetest.Options{}); err == nil {
		s.Close()
		t.Error("started in a context that had ended")
	}
}

// TestInstall installs into an empty cache, with an empty HOME, and finds it
// there the second time, without npm.
func TestInstall(t *testing.T) {
	if os.Getenv("HOLDFAST_AZURITE_INSTALL") == "" {
		t.Skip("asks the npm registry: set HOLDFAST_AZURITE_INSTALL=1 to run it")
	}
	needsLinux(t)
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	cache := filepath.Join(t.TempDir(), "cache")
	t.Setenv(azuritetest.CacheVariable, cache)
	first := azuritetest.Start(t)
	first.NewContainer(t, "replicas")
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	only := t.TempDir()
	if err := os.Symlink(node, filepath.Join(only, "node")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", only)
	second := azuritetest.Start(t)
	second.NewContainer(t, "replicas")
}
