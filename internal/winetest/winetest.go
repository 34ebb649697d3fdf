// Package winetest runs Windows programs of this module under Wine: test binaries
// of packages, and programs.
//
// It promises: nothing is skipped silently (a missing wine64 or compiler fails the
// test); every test has a private prefix below its temporary directory, and all of Wine that the test started is
// gone after it; nothing outlives its deadline. Debian packages: wine64, gcc-mingw-w64-x86-64.
//
// What Wine proves: that a program loads, that calls are made with the right
// arguments, that errors are told. It is no Windows: virtdisk.dll is a stub there,
// and of WMI only root\cimv2 and root\default answer.
package winetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Prefix is a private Windows installation of Wine.
type Prefix struct {
	dir    string // of the prefix
	wine   string
	server string
}

// limit bounds one program under Wine.
const limit = 3 * time.Minute

// prng is the one function of bcryptprimitives.dll that Go's runtime needs and Wine 8 lacks, on top of the
// function that RtlGenRandom really is.
const prng = `#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T n)
{
	return SystemFunction036(data, (ULONG)n);
}
`

// New makes a prefix that ends with the test.
func New(t testing.TB) *Prefix {
	t.Helper()
	p := &Prefix{wine: find(t, "wine64", "/usr/lib/wine/wine64"), server: find(t, "wineserver", "/usr/lib/wine/wineserver64", "/usr/lib/wine/wineserver")}
	dir, err := os.MkdirTemp("", "winetest-")
	if err != nil {
		t.Fatal(err)
	}
	p.dir = filepath.Join(dir, "prefix")
	t.Cleanup(func() {
		p.end(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("winetest: remove %s: %v", dir, err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if out, err := p.command(ctx, "wineboot", "-i").CombinedOutput(); err != nil {
		t.Fatalf("winetest: make a prefix: %v\n%s", err, out)
	}
	// The first server must be done with writing the registry before programs come.
	if out, err := p.serverCommand(ctx, "-w").CombinedOutput(); err != nil {
		t.Fatalf("winetest: wait for the new prefix: %v\n%s", err, out)
	}
	Compile(t, prng, filepath.Join(p.dir, "drive_c/windows/system32/bcryptprimitives.dll"), "-shared", "-ladvapi32")
	return p
}

// end ends what the prefix's server runs: this server's processes only.
func (p *Prefix) end(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = p.serverCommand(ctx, "-k").Run() // fails if none runs
	if out, err := p.serverCommand(ctx, "-w").CombinedOutput(); err != nil {
		t.Errorf("winetest: Wine's server did not end: %v\n%s", err, out)
	}
}

// Stay keeps Wine's session open until the test ends. Without it a session ends
// with its last program, and the next one begins by starting the services
// that start by themselves, beside whatever that program does.
func (p *Prefix) Stay(t testing.TB) {
	t.Helper()
	exe := filepath.Join(p.Drive(), "stay.exe")
	Compile(t, "#include <stdio.h>\nint main(void) { puts(\"here\"); fflush(stdout); return getchar() == EOF; }\n", exe)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.command(ctx, exe)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("winetest: keep the session open: %v", err)
	}
	t.Cleanup(func() { // before the prefix ends
		_ = stdin.Close()
		cancel()
		_ = cmd.Wait() // killed or ended
	})
	if _, err := stdout.Read(make([]byte, 4)); err != nil {
		t.Fatalf("winetest: keep the session open: %v", err)
	}
}

// Drive returns the directory that is the prefix's drive C.
func (p *Prefix) Drive() string { return filepath.Join(p.dir, "drive_c") }

// Start runs a program of the prefix or of this machine and returns its output (both streams) and how it ended.
func (p *Prefix) Start(t testing.TB, exe string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := p.command(ctx, append([]string{exe}, args...)...)
	cmd.Dir = p.Drive()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Programs of Wine go on holding the pipes; the result counts once the program itself has ended.
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("ended after %v: %w", limit, err)
	}
	return out.String(), err
}

// Exec runs a program, fails the test if it fails, and returns its output.
func (p *Prefix) Exec(t testing.TB, exe string, args ...string) string {
	t.Helper()
	out, err := p.Start(t, exe, args...)
	if err != nil {
		t.Fatalf("winetest: %s %s: %v\n%s", exe, strings.Join(args, " "), err, out)
	}
	return out
}

// Run builds the test binary of a package of this module for Windows, runs it, and fails if a test of
// it failed or none ran. args are flags of test binaries, such as -test.run=….
func (p *Prefix) Run(t testing.TB, pkg string, args ...string) string {
	t.Helper()
	exe := filepath.Join(p.Drive(), "test.exe")
	build(t, "test", "-c", "-o", exe, pkg)
	out := p.Exec(t, exe, append([]string{"-test.v", "-test.timeout=150s"}, args...)...)
	if !strings.Contains(out, "--- PASS") || strings.Contains(out, "--- FAIL") || strings.Contains(out, "no tests to run") {
		t.Fatalf("winetest: no test of %s passed:\n%s", pkg, out)
	}
	return out
}

// Build builds a program of this module for Windows into drive C and returns its file.
func (p *Prefix) Build(t testing.TB, pkg, name string) string {
	t.Helper()
	exe := filepath.Join(p.Drive(), name)
	build(t, "build", "-o", exe, pkg)
	return exe
}

// Run is Prefix.Run in a prefix of its own.
func Run(t testing.TB, pkg string, args ...string) string {
	t.Helper()
	return New(t).Run(t, pkg, args...)
}

// Exec is Prefix.Exec in a prefix of its own.
func Exec(t testing.TB, exe string, args ...string) string {
	t.Helper()
	return New(t).Exec(t, exe, args...)
}

// Compile compiles C with mingw-w64's compiler; a missing compiler fails the test.
func Compile(t testing.TB, source, out string, flags ...string) {
	t.Helper()
	if text, err := TryCompile(t, source, out, flags...); err != nil {
		t.Fatalf("winetest: compile: %v\n%s", err, text)
	}
}

// TryCompile is Compile that returns the compiler's words and its refusal.
func TryCompile(t testing.TB, source, out string, flags ...string) (string, error) {
	t.Helper()
	gcc := find(t, "x86_64-w64-mingw32-gcc")
	file := filepath.Join(t.TempDir(), "source.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	text, err := exec.CommandContext(ctx, gcc, append([]string{"-O1", "-o", out, file}, flags...)...).CombinedOutput()
	return string(text), err
}

func build(t testing.TB, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(t, "go"), args...)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -buildvcs=false"))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("winetest: go %s: %v\n%s", strings.Join(args, " "), err, text)
	}
}

func find(t testing.TB, names ...string) string {
	t.Helper()
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			return path
		}
	}
	t.Fatalf("winetest: this test needs %s (Debian packages wine64, gcc-mingw-w64-x86-64)", names[0])
	return ""
}

func (p *Prefix) command(ctx context.Context, args ...string) *exec.Cmd {
	return p.env(exec.CommandContext(ctx, p.wine, args...))
}

func (p *Prefix) serverCommand(ctx context.Context, arg string) *exec.Cmd {
	return p.env(exec.CommandContext(ctx, p.server, arg))
}

// env gives Wine its prefix and no display, no debugger and no browser to be installed.
func (p *Prefix) env(cmd *exec.Cmd) *exec.Cmd {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != "DISPLAY" && !strings.HasPrefix(name, "WINE") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "WINEPREFIX="+p.dir, "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=,winedbg.exe=d", "WINEARCH=win64")
	return cmd
}
