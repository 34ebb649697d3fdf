package reach_test

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/reach"
)

// TestBlackHole: a port whose queue is full drops what asks for a connection.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := sa.(*syscall.SockaddrInet4).Port
	full := false
	for range 8 { // fill the queue
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", at), 500*time.Millisecond)
		if err != nil {
			full = true
			break
		}
		defer c.Close()
	}
	if !full {
		t.Fatal("the queue does not get full")
	}
	began := time.Now()
	r := reach.Test(t.Context(), blob(at), reach.Options{Resolver: here, Hop: 500 * time.Millisecond})
	shows(t, r, "name=warning connection=failed")
	tells(t, r, reach.HopConnection, "no answer in time", "Open outbound TCP")
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("it took %s", d)
	}
}

// TestTinyproxy goes through a proxy that others wrote, without and with sign-in.
func TestTinyproxy(t *testing.T) {
	t.Parallel()
	exe, err := exec.LookPath("tinyproxy")
	if err != nil {
		t.Fatal("this test needs tinyproxy (Debian package tinyproxy-bin)")
	}
	ca := newAuthority(t, "DigiCert Inc")
	at := serve(t, ca.good(t, "localhost"), azure)
	e := blob(at)
	e.Host = "localhost"
	for name, c := range map[string]struct {
		conf string
		user *url.Userinfo
		want string
		word string
	}{
		"plain":          {"", nil, "proxy=ok tunnel=ok tls=ok answer=ok clock=ok", "opens it"},
		"sign-in":        {"BasicAuth anna geheim1\n", url.UserPassword("anna", "geheim1"), "proxy=ok tunnel=ok tls=ok answer=ok clock=ok", "with sign-in"},
		"no sign-in":     {"BasicAuth anna geheim1\n", nil, "proxy=ok tunnel=failed", "407"},
		"wrong password": {"BasicAuth anna geheim1\n", url.UserPassword("anna", "geheim2"), "proxy=ok tunnel=failed", "refuses user and password"},
		"port forbidden": {"ConnectPort 443\n", nil, "proxy=ok tunnel=failed", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := &url.URL{Scheme: "http", Host: startTinyproxy(t, exe, c.conf), User: c.user}
			r := reach.Test(t.Context(), e, reach.Options{Proxy: always(u), Roots: ca.pool(), Hop: hop})
			shows(t, r, c.want)
			tells(t, r, reach.HopTunnel, c.word)
		})
	}
}

func startTinyproxy(t *testing.T, exe, more string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	_ = ln.Close()
	host, port, _ := net.SplitHostPort(at)
	conf := filepath.Join(t.TempDir(), "tinyproxy.conf")
	text := fmt.Sprintf("Listen %s\nPort %s\nTimeout 60\nMaxClients 10\nLogLevel Critical\n%s", host, port, more)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-d", "-c", conf)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err == nil {
			_ = c.Close()
			return at
		}
		if time.Now().After(end) {
			t.Fatalf("tinyproxy does not listen: %v", err)
		}
	}
}
