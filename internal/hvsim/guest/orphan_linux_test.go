package guest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/hvsim/guest"
	"holdfast/internal/hvsim/model"
)

// childEnv makes the test program start a guest, say so and wait to be killed.
const childEnv = "HOLDFAST_TEST_GUEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Println(beSimulator(dir))
		time.Sleep(time.Minute) // longer than the test waits
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func bare(dir string) model.VMRun {
	return model.VMRun{ID: "12345678-0000-4000-8000-000000000000", Name: "orphan", Generation: 1, CPUs: 1, MemoryMB: 64, Dir: dir, Serial: filepath.Join(dir, "serial.log")}
}

func beSimulator(dir string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := guest.New(guest.Config{}).Start(ctx, bare(dir)); err != nil {
		return "failed: " + err.Error()
	}
	return "runs"
}

// children lists the processes that a process started.
func children(t *testing.T, pid int) (list []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		for _, s := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(s)
			must(t, err)
			list = append(list, n)
		}
	}
	return list
}

// TestKilledSimulatorTakesQEMUAlong kills the program that runs a guest as kill -9 does.
func TestKilledSimulatorTakesQEMUAlong(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-test.run=^$")
	dir := t.TempDir() // also of the sockets that a killed program leaves
	cmd.Env = append(os.Environ(), childEnv+"="+dir, "TMPDIR="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var once bool
	kill := func() {
		if !once {
			once = true
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
			}
			_ = cmd.Wait() // it was killed
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if line != "runs\n" {
		t.Fatalf("the guest does not start: %s", line)
	}
	pids := children(t, cmd.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("processes of the simulator: %v", pids)
	}
	kill()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && strings.Contains(string(b), ") Z ") {
			return // gone, or only waiting for init to notice
		}
		if time.Now().After(end) {
			p, err := os.FindProcess(pids[0])
			must(t, err)
			t.Fatalf("QEMU outlives the simulator (killed now: %v)", p.Kill())
		}
	}
}

// TestGuestOutlivesTheStartingThread: many goroutines and threads come and go beside a guest.
func TestGuestOutlivesTheStartingThread(t *testing.T) {
	t.Parallel()
	var g model.Running
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		g, err = guest.New(guest.Config{}).Start(t.Context(), bare(t.TempDir()))
	}()
	<-done
	must(t, err)
	select {
	case <-g.Done():
		t.Error("the guest ended with the thread that asked for it")
	case <-time.After(300 * time.Millisecond):
	}
	must(t, g.Kill())
	must(t, g.Kill())
}
