// Package guesttest is the test harness for real virtual machines: private
// libvirt sessions and ledger guests that end with their test.
//
// It promises: nothing is skipped silently (a missing program fails the test),
// every process, socket and file of a test is gone after it, and a failed test logs
// the end of its guests' consoles.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { guesttest.Main(m) }
//
// because root cannot have libvirt sessions: Main then runs the whole test
// program as user nobody. So files that such tests read must be readable by everybody, and fuzz
// tests belong into another package, since a fuzz worker's pipes don't pass this change.
//
// What a guest is and how it is driven: packages sessionvirt, guestimage and guest below internal/ledger.
package guesttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/ledger/sessionvirt"
)

// Main runs the tests, as user nobody if root started them, and exits.
func Main(m *testing.M) {
	args, restore, err := portableArgs(os.Args[1:])
	remove := func() error { return nil }
	if err == nil {
		remove, err = mountSmall()
	}
	if err == nil {
		var code int
		var ran bool
		code, ran, err = sessionvirt.DropRoot(context.Background(), args)
		err = errors.Join(err, remove())
		if ran && err == nil {
			if err = restore(); err == nil {
				os.Exit(code)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guesttest:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// portableArgs adapts the arguments that go test gives: it lets the test
// program write into private directories of root. The cover profile is written
// elsewhere first, and restore puts it into place; the log that only decides about caching is dropped.
func portableArgs(in []string) (out []string, restore func() error, err error) {
	restore = func() error { return nil }
	if os.Geteuid() != 0 {
		return in, restore, nil
	}
	for _, a := range in {
		name, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch name {
		case "test.testlogfile", "test.gocoverdir":
			continue
		case "test.coverprofile":
			dir, err := os.MkdirTemp("", "guesttest-cover-")
			if err != nil {
				return nil, nil, err
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				return nil, nil, err
			}
			tmp := filepath.Join(dir, "cover.out")
			restore = func() error { return errors.Join(copyFile(value, tmp), os.RemoveAll(dir)) }
			a = "-test.coverprofile=" + tmp
		}
		out = append(out, a)
	}
	return out, restore, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the tests failed before they had a profile
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Image returns the ledger guest's image, building it if the cache lacks it.
func Image(t testing.TB) guestimage.Image {
	t.Helper()
	dir, err := guestimage.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	img, err := guestimage.Build(ctx, guestimage.Config{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// StartInstance starts a private libvirt session that ends with the test. Two of them are two sites.
func StartInstance(t testing.TB) *sessionvirt.Instance {
	t.Helper()
	i, err := sessionvirt.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Stop(); err != nil {
			t.Errorf("stop libvirt session: %v", err)
		}
	})
	return i
}

// Guest is a sessionvirt.Guest whose failures end the test. UUID, Disks,
// Console (a path), Control and the other fields are those of the embedded guest.
type Guest struct {
	*sessionvirt.Guest
	t testing.TB
}

// StartGuest defines and starts a ledger guest and waits, at most 120 s, until
// its ledger is running. The zero configuration is a BIOS machine under emulation without network.
func StartGuest(t testing.TB, inst *sessionvirt.Instance, name string, cfg sessionvirt.GuestConfig) *Guest {
	t.Helper()
	g := NewGuest(t, inst, name, cfg)
	g.Start()
	return g
}

// NewGuest is StartGuest without the start.
func NewGuest(t testing.TB, inst *sessionvirt.Instance, name string, cfg sessionvirt.GuestConfig) *Guest {
	t.Helper()
	sg, err := sessionvirt.NewGuest(t.Context(), inst, Image(t), name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{Guest: sg, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			s := g.Serial()
			t.Logf("console of guest %s ends:\n%s", name, s[max(0, len(s)-2000):])
		}
	})
	return g
}

func (g *Guest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// Start starts the guest again and waits until its ledger is running and found itself sound.
func (g *Guest) Start() {
	g.t.Helper()
	g.must(g.Guest.Start(g.t.Context()))
}

// Acks returns the last acknowledged record, 0 if none.
func (g *Guest) Acks() uint64 {
	g.t.Helper()
	n, err := g.Guest.Acked()
	g.must(err)
	return n
}

// WaitAck waits, at most 120 s, until record n is acknowledged.
func (g *Guest) WaitAck(n uint64) {
	g.t.Helper()
	g.must(g.Guest.WaitAck(g.t.Context(), n))
}

// WaitMore waits until n further records are acknowledged and returns the last one.
func (g *Guest) WaitMore(n uint64) uint64 {
	g.t.Helper()
	g.WaitAck(g.Acks() + n)
	return g.Acks()
}

// Report returns what the console tells so far.
func (g *Guest) Report() ledger.Console {
	g.t.Helper()
	c, err := g.Guest.Read()
	g.must(err)
	return c
}

// Serial returns everything the guest printed, over all of its boots.
func (g *Guest) Serial() string {
	b, err := os.ReadFile(g.Console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		g.t.Errorf("read console of guest %s: %v", g.Name, err)
	}
	return string(b)
}

// Kill ends the guest as a power cut would (kill -9 of QEMU).
func (g *Guest) Kill() {
	g.t.Helper()
	g.must(g.Guest.Kill(g.t.Context()))
}

// Shutdown presses the power button and waits until the guest is off.
func (g *Guest) Shutdown() {
	g.t.Helper()
	g.must(g.Guest.Shutdown(g.t.Context()))
}

// Fill lets the guest write n random 4 KiB blocks durably.
func (g *Guest) Fill(n int) {
	g.t.Helper()
	g.must(g.Guest.Fill(g.t.Context(), n))
}

// Request sends a request to the guest program ("rate 50", "churn 20", "status") and returns its answer.
func (g *Guest) Request(req string) string {
	g.t.Helper()
	ans, err := g.Guest.Request(g.t.Context(), req)
	g.must(err)
	return ans
}

// Exec runs a program in the guest through the guest agent and returns its output.
func (g *Guest) Exec(path string, args ...string) string {
	g.t.Helper()
	out, err := g.Guest.Exec(g.t.Context(), path, args...)
	g.must(err)
	return out
}

// Verify checks the disks of a guest that is off, without booting them.
func (g *Guest) Verify() ledger.Verdict {
	g.t.Helper()
	v, err := g.Guest.Verify(g.t.Context())
	g.must(err)
	return v
}
