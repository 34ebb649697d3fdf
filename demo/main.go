// Command demo plays the main job of Holdfast on this machine with real
// programs: a vault, two KVM sites with an agent process each, and a running
// VM that keeps a ledger. It protects the VM, drills, kills it together with
// its agent, brings it back at the other site and proves by the guest's own
// ledger what survived. It uses the public REST API and the holdfast binary
// only, needs no root, and leaves nothing behind.
//
// HOLDFAST_DEMO_ONCE=1 ends after the story, exits 0 only if the proof held,
// and writes demo-report.json. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"holdfast/internal/ledger/sessionvirt"
)

func main() {
	os.Exit(run())
}

// binEnv names the holdfast binary to the copy of the demo that runs without root.
const (
	binEnv    = "HOLDFAST_DEMO_BIN"
	reportEnv = "HOLDFAST_DEMO_REPORT"
	stageEnv  = "HOLDFAST_DEMO_STAGE"
)

func run() int {
	bin := flag.String("bin", "bin/holdfast", "the holdfast binary")
	report := flag.String("report", "demo-report.json", "where the report goes")
	stage := flag.Bool("stage", false, "only set the stage (vault, sites, running VM), print where it is, and wait: for other programs that tell the story")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Geteuid() == 0 {
		if *stage {
			os.Setenv(stageEnv, "1")
		}
		// The copy gets the signals and ends in order: ctx would kill it instead.
		code, err := withoutRoot(context.WithoutCancel(ctx), *bin, *report)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return 1
		}
		return code
	}
	var err error
	if *bin, err = filepath.Abs(*bin); err != nil { // the programs run in a directory of their own
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	d := &demo{bin: *bin, report: *report, once: os.Getenv("HOLDFAST_DEMO_ONCE") == "1", stage: *stage || os.Getenv(stageEnv) != "", out: newScreen(os.Stdout)}
	if b := os.Getenv(binEnv); b != "" {
		d.bin, d.report = b, os.Getenv(reportEnv)
	}
	err = d.play(ctx)
	err = errors.Join(err, d.cleanUp())
	switch {
	case ctx.Err() != nil && (d.result.OK || d.stage):
		return 0 // it was over, and somebody pressed Ctrl-C
	case err != nil:
		d.out.fail(err)
		return 1
	case !d.result.OK:
		return 1
	}
	return 0
}

// withoutRoot runs the demo as user nobody, because root has no session
// libvirt: the binary and the report pass through a directory that nobody can reach.
func withoutRoot(ctx context.Context, bin, report string) (code int, err error) {
	dir, err := os.MkdirTemp("/tmp", "hfd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o777), copyFile(bin, filepath.Join(dir, "holdfast"))); err != nil {
		return 0, err
	}
	os.Setenv(binEnv, filepath.Join(dir, "holdfast"))
	os.Setenv(reportEnv, filepath.Join(dir, "report.json"))
	here, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	if err := os.Chdir(dir); err != nil {
		return 0, err
	}
	fmt.Println("Running as user nobody: a libvirt session of root's own does not exist.")
	code, _, err = sessionvirt.DropRoot(ctx, nil)
	if err := os.Chdir(here); err != nil {
		return code, err
	}
	if cerr := copyFile(filepath.Join(dir, "report.json"), report); cerr != nil && !errors.Is(cerr, os.ErrNotExist) {
		err = errors.Join(err, cerr)
	}
	return code, err
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm()|0o555)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
