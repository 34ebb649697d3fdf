package warm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/vhd"
)

// TestBoot: a guest that wrote a ledger was cut off; its point goes into page blobs, from
// there byte for byte into files, and these boot: everything that the guest had
// acknowledged is there, and it goes on writing.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest twice")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cache, err := guestimage.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := guestimage.Build(ctx, guestimage.Config{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disks, err := guestimage.Instantiate(ctx, img, dir, "g", guestimage.Raw, "rate=50")
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	boot, data := read(disks.Boot), read(disks.Data)
	w := newWorld(t, simulator(t), 40, int64(len(boot)), int64(len(data)))
	w.Flat[0], w.Flat[1] = boot, data
	w.mustApply(w.Base())
	first := power(ctx, t, "raw", 30, disks.Boot, disks.Data)
	changed := 0
	for i, path := range []string{disks.Boot, disks.Data} {
		now := read(path)
		for off := 0; off < len(now); off += cut.Unit {
			if p := now[off:min(off+cut.Unit, len(now))]; !bytes.Equal(p, w.Flat[i][off:off+len(p)]) {
				w.Write(i, int64(off), p)
				changed += len(p)
			}
		}
	}
	p := w.Cut()
	res := w.mustApply(p)
	t.Logf("acknowledged %d, %d bytes changed: %+v", first.Acked, changed, res)
	if len(res.Compared) > 0 || changed == 0 || res.Bytes > int64(changed) {
		t.Errorf("not incremental: %+v", res)
	}
	images, err := w.warm.Images(ctx, w.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for i, d := range p.Disks {
		path := filepath.Join(dir, d.ID+".vhd")
		if err := os.WriteFile(path, w.blob(images[d.ID]), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
		var info struct {
			Format string
			Size   int64 `json:"virtual-size"`
		}
		out, err := exec.CommandContext(ctx, "qemu-img", "info", "--output=json", path).Output()
		if err == nil {
			err = json.Unmarshal(out, &info)
		}
		if want := vhd.RoundAzure(int64(len(p.Flat[i]))); err != nil || info.Format != "raw" && info.Format != "vpc" {
			t.Errorf("%s, %v", out, err)
		} else if out, err = exec.CommandContext(ctx, "qemu-img", "info", "-f", "vpc", "--output=json", path).Output(); err != nil || json.Unmarshal(out, &info) != nil || info.Size != want {
			t.Errorf("qemu-img sees %s, %v; want %d bytes", out, err, want)
		}
		// A fixed VHD has no structure that could be checked; qemu-img says so by 63.
		var exit *exec.ExitError
		if out, err := exec.CommandContext(ctx, "qemu-img", "check", "-f", "vpc", path).CombinedOutput(); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 63) {
			t.Errorf("qemu-img check: %v\n%s", err, out)
		}
	}
	second := power(ctx, t, "vpc", first.Acked+30, files...)
	if second.Boots != 1 || !second.Order || !second.Chain || second.FoundA < first.Acked || second.FoundB < first.Acked || second.Stopped != "" {
		t.Errorf("acknowledged %d before, the recovered guest says %+v", first.Acked, second)
	}
	for i, path := range files { // without the footer it is the raw disk
		if err := os.Truncate(path, int64(len(p.Flat[i]))); err != nil {
			t.Fatal(err)
		}
	}
	v, err := ledger.VerifyImages(ctx, files[0], files[1])
	if err == nil {
		err = v.Covers(second.Acked)
	}
	if err != nil {
		t.Errorf("%+v, %v", v, err)
	}
	t.Logf("after the boot: acknowledged %d, %v", second.Acked, v)
}

// power boots a guest from these disks, and cuts it off once it has acknowledged a record.
func power(ctx context.Context, t *testing.T, format string, record uint64, disks ...string) ledger.Console {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	args := []string{"-nodefaults", "-accel", "tcg", "-machine", "q35", "-m", "192", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"}
	for _, d := range disks {
		args = append(args, "-drive", "if=virtio,format="+format+",file="+d)
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("QEMU is needed (Debian: qemu-system-x86): %v", err)
	}
	var console bytes.Buffer
	lines := bufio.NewScanner(io.TeeReader(out, &console))
	reached := false
	for !reached && lines.Scan() {
		l, ok := ledger.ParseLine(lines.Text())
		reached = ok && l.Kind == ledger.KindAck && l.Seq >= record
	}
	if reached {
		cancel() // as a power cut
	}
	_, _ = io.Copy(&console, out)
	err = cmd.Wait()
	c, cerr := ledger.ReadConsole(bytes.NewReader(console.Bytes()))
	if !reached || cerr != nil {
		text := console.String()
		t.Fatalf("the guest did not get to record %d: %+v, %v, %v\n%s\n%s", record, c, err, cerr, complaints.String(), text[max(0, len(text)-3000):])
	}
	return c
}
