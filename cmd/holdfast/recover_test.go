//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/objstore/file"
	"holdfast/internal/objstore/s3"
	"holdfast/internal/objstore/s3/s3test"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// tool runs a program that is no part of the product.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestRecoverOverview(t *testing.T) {
	r, dir, key := replica(t)
	for range 4 {
		r.Write(0, 0, []byte("more"))
		r.Cut()
	}
	t.Setenv("HOLDFAST_STORE", "file://"+dir)
	t.Setenv("HOLDFAST_KEY", key)
	got := cli(t, "recover")
	if got.code != 0 || strings.Count(got.out, "c00000") != 5 || !strings.Contains(got.err, "2 older ones") {
		t.Errorf("the overview: %+v", got)
	}
	for _, word := range []string{"verify", "restore VM", "serve VM", "boot VM"} {
		if !strings.Contains(got.err, "holdfast recover "+word) {
			t.Errorf("it does not tell of %q: %s", word, got.err)
		}
	}
	fits(t, got.out+got.err)
	if all := must(t, "recover", "--all"); strings.Count(all, "c00000") != 7 {
		t.Errorf("--all: %s", all)
	}
	text := must(t, "recover", "-o", "json")
	documented(t, "store ls", text)
	if m := decode[[]storeMachine](t, text); len(m) != 1 || len(m[0].Points) != 7 {
		t.Errorf("%s", text)
	}
	if text := must(t, "recover", "verify", "vm", "-o", "json"); strings.Count(text, `"ok": true`) != 7 {
		t.Errorf("verify: %s", text)
	}
	t.Setenv("HOLDFAST_KEY", "")
	if got := cli(t, "recover"); got.code != console.ExitCode(dr.KindInvalid) || !strings.Contains(got.err, "--key") {
		t.Errorf("without a key: %+v", got)
	}
	if got := cli(t, "recover", "everything"); got.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("an unknown word: %+v", got)
	}
}

type restored struct {
	Point string
	Disks []struct{ Disk, Format, File string }
	Files []string
}

func TestRecoverRestore(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	at := []string{"--store", dir, "--key", key}
	name := func(i int) string { return dr.PointName(r.Points[i].Ref.Gen, r.Points[i].Ref.N) }
	second := time.Unix(1e9+1, 0)
	qemu := map[string]string{"vhd": "vpc", "vhdx": "vhdx", "qcow2": "qcow2"}
	for i, tc := range []struct {
		point  int
		format string
		args   []string
	}{
		{2, "raw", nil}, {1, "qcow2", []string{"--point", name(1)}}, {2, "vhd", []string{"--point", "latest"}}, {0, "vhdx", []string{"--before", "2001-09-09T01:46:40Z"}},
		{1, "raw", []string{"--before", second.Local().Format(time.DateTime)}},
	} {
		t.Run(fmt.Sprint(i, tc.format, tc.args), func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "new", "out")
			text := must(t, append(append([]string{"recover", "restore", "vm", "--out", out, "--format", tc.format, "-o", "json"}, tc.args...), at...)...)
			documented(t, "recover restore", text)
			v := decode[restored](t, text)
			if v.Point != name(tc.point) || len(v.Disks) != 2 || len(v.Files) != 1 || filepath.Base(v.Files[0]) != "domain.xml" {
				t.Fatalf("restored %+v", v)
			}
			if xml, err := os.ReadFile(v.Files[0]); err != nil || string(xml) != "<domain/>" {
				t.Errorf("the configuration is %q (%v)", xml, err)
			}
			for d, disk := range v.Disks {
				raw := disk.File
				if tc.format != "raw" {
					var info struct{ Format string }
					if err := json.Unmarshal([]byte(tool(t, "qemu-img", "info", "--output=json", disk.File)), &info); err != nil || info.Format != qemu[tc.format] && tc.format != "vhd" { // a fixed VHD is known by its footer only
						t.Errorf("%s is %+v (%v)", disk.File, info, err)
					}
					raw = filepath.Join(t.TempDir(), disk.Disk)
					tool(t, "qemu-img", "convert", "-f", qemu[tc.format], "-O", "raw", disk.File, raw)
				}
				got, err := os.ReadFile(raw)
				if err != nil || !bytes.Equal(got, r.Points[tc.point].Flat[d]) {
					t.Errorf("disk %s differs from the source (%v)", disk.Disk, err)
				}
			}
			again := cli(t, append([]string{"recover", "restore", "vm", "--out", out, "--format", tc.format}, at...)...)
			if again.code != console.ExitCode(dr.KindConflict) || !strings.Contains(again.err, "--disk") {
				t.Errorf("files were overwritten: %+v", again)
			}
		})
	}
	only := filepath.Join(t.TempDir(), "one")
	got := cli(t, append([]string{"recover", "restore", string(r.Machine), "--out", only, "--disk", "vdb"}, at...)...)
	if _, err := os.Stat(filepath.Join(only, "vda.raw")); got.code != 0 || err == nil {
		t.Errorf("--disk: %+v", got)
	}
	fits(t, got.out)
	for want, args := range map[dr.Kind][]string{
		dr.KindInvalid:  {"--before", "yesterday-ish"},
		dr.KindNotFound: {"--point", "latest-app"},
	} {
		if got := cli(t, append(append([]string{"recover", "restore", "vm", "--out", filepath.Join(t.TempDir(), "x")}, at...), args...)...); got.code != console.ExitCode(want) {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := cli(t, append([]string{"recover", "restore", "vm", "--out", only, "--before", "2001-09-09T01:46:39Z"}, at...)...); got.code != console.ExitCode(dr.KindNotFound) || !strings.Contains(got.err, "3 points") {
		t.Errorf("before all points: %+v", got)
	}
	if got := cli(t, append([]string{"recover", "restore", "other", "--out", only}, at...)...); got.code != console.ExitCode(dr.KindNotFound) || !strings.Contains(got.err, "The store has: vm") {
		t.Errorf("an unknown VM: %+v", got)
	}
}

// A VM whose configuration files and disks have hostile names stays in the directory.
func TestRestoreStaysInside(t *testing.T) {
	t.Parallel()
	dir, key := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "key")
	b, err := file.Open(t.Context(), file.Config{Dir: dir, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := storetest.New(t, b, 1<<20)
	r.VM.Config = map[string][]byte{"../../evil": []byte("x"), "/etc/evil": []byte("y"), "..": []byte("z")}
	r.Base()
	text, err := r.Private.Text()
	if err == nil {
		err = os.WriteFile(key, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	v := decode[restored](t, must(t, "recover", "restore", "vm", "--store", dir, "--key", key, "--out", filepath.Join(parent, "a", "b"), "-o", "json"))
	for _, f := range v.Files {
		if filepath.Dir(f) != filepath.Join(parent, "a", "b") {
			t.Errorf("%s is outside of the directory", f)
		}
	}
	if len(v.Files) != 3 {
		t.Errorf("files %v", v.Files)
	}
}

func TestRecoverServe(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	short, err := os.MkdirTemp("/tmp", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) }) // the system cleans it up otherwise
	socket := filepath.Join(short, "s")
	cmd := program("recover", "serve", "vm", "--store", dir, "--key", key, "--socket", socket, "-o", "json")
	var errs buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended already
	})
	type served struct {
		Point, Socket string
		Disks         []struct {
			Disk, URI string
			SizeBytes int64
		}
	}
	var raw bytes.Buffer
	var v served
	if err := json.NewDecoder(io.TeeReader(out, &raw)).Decode(&v); err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	documented(t, "recover serve", raw.String())
	go func() {
		_, _ = io.Copy(io.Discard, out)
		ended <- cmd.Wait()
	}()
	if len(v.Disks) != 2 || v.Disks[0].Disk != "vda" || v.Socket != socket {
		t.Fatalf("served %+v", v)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", info, err)
	}
	for i, d := range v.Disks {
		if info := tool(t, "nbdinfo", d.URI); !strings.Contains(info, "is_read_only: true") {
			t.Errorf("nbdinfo says %s", info)
		}
		copyTo := filepath.Join(t.TempDir(), d.Disk)
		tool(t, "nbdcopy", d.URI, copyTo)
		if got, err := os.ReadFile(copyTo); err != nil || !bytes.Equal(got, r.Points[2].Flat[i]) {
			t.Errorf("nbdcopy of %s differs from the source (%v)", d.Disk, err)
		}
		tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", d.URI, copyTo)
		if got, err := os.ReadFile(copyTo); err != nil || !bytes.Equal(got, r.Points[2].Flat[i]) {
			t.Errorf("qemu-img's copy of %s differs from the source (%v)", d.Disk, err)
		}
	}
	if got := cli(t, "recover", "serve", "vm", "--store", dir, "--key", key, "--socket", socket); got.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a socket in use was taken: %+v", got)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Ctrl-C ended it with %v\n%s", err, &errs)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Ctrl-C did not end it")
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket was left behind")
	}
	if got := cli(t, "recover", "serve", "vm", "--store", dir, "--key", key, "--socket", "/tmp/"+strings.Repeat("x", 100)); got.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("too long a path: %+v", got)
	}
	notSocket := filepath.Join(short, "f")
	if err := os.WriteFile(notSocket, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := cli(t, "recover", "serve", "vm", "--store", dir, "--key", key, "--socket", notSocket); got.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a file was taken for a socket: %+v", got)
	}
}

// TestRecoverBoot boots the ledger guest from nothing but a store and a key.
func TestRecoverBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	t.Parallel()
	cache, err := guestimage.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := guestimage.Build(t.Context(), guestimage.Config{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile(img.Boot)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(img.Data)
	if err != nil {
		t.Fatal(err)
	}
	dir, key := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "key")
	b, err := file.Open(t.Context(), file.Config{Dir: dir, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := storetest.New(t, b, int64(len(boot)), int64(len(data)))
	r.Flat[0], r.Flat[1] = boot, data
	r.Base()
	text, err := r.Private.Text()
	if err == nil {
		err = os.WriteFile(key, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	before := len(r.Keys())
	cmd := program("recover", "boot", "vm", "--store", dir, "--key", key, "--memory", "128M", "--cpus", "1", "--accel", "tcg")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // QEMU ends with it if it has to be killed
	var errs buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // may have ended already
	t.Cleanup(kill)
	watchdog := time.AfterFunc(150*time.Second, kill)
	defer watchdog.Stop()
	alive := false
	var screen []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		screen = append(screen, lines.Text())
		if l, ok := ledger.ParseLine(lines.Text()); ok && l.Kind == ledger.KindBoot {
			alive = true
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	if !alive || err != nil {
		t.Fatalf("alive: %v, ended with %v\n%s\n%s", alive, err, &errs, strings.Join(screen[max(0, len(screen)-30):], "\n"))
	}
	for _, word := range []string{"no network", "not changed", "Ctrl-C", "Nothing was changed"} {
		if !strings.Contains(errs.String(), word) {
			t.Errorf("it does not say %q: %s", word, &errs)
		}
	}
	if after := len(r.Keys()); after != before {
		t.Errorf("the store had %d objects, now %d", before, after)
	}
	for _, args := range [][]string{{"--memory", "1K"}, {"--accel", "magic"}, {"--vnc", "x,y:1"}, {"--vnc", "screen"}} {
		if got := cli(t, append([]string{"recover", "boot", "vm", "--store", dir, "--key", key}, args...)...); got.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

// TestKeysEverywhere opens a store with every kind of key.
func TestKeysEverywhere(t *testing.T) {
	r, dir, key := replica(t)
	tmp := t.TempDir()
	pass := filepath.Join(tmp, "passphrase")
	if err := os.WriteFile(pass, []byte("five words chosen at random\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sealed := filepath.Join(tmp, "sealed.key")
	must(t, "vault", "key", "seal", "--key", key, "--out", sealed, "--passphrase-from", "file:"+pass)
	t.Setenv("CREDENTIALS_DIRECTORY", tmp)
	t.Setenv("HF_PASS", "five words chosen at random")
	raw, err := os.ReadFile(key)
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "plain"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"--key " + sealed + " --passphrase-from file:" + pass, "--key " + sealed + " --passphrase-from env:HF_PASS", "--key credential:plain",
		"--key credential:sealed.key --passphrase-from credential:passphrase"} {
		if m := decode[[]storeMachine](t, must(t, append([]string{"recover", "-o", "json", "--store", dir}, strings.Fields(args)...)...)); len(m) != 1 || len(m[0].Points) != len(r.Points) {
			t.Errorf("%s: %+v", args, m)
		}
	}
	for args, code := range map[string]dr.Code{"--key " + sealed: dr.CodeKeySealed, "--key " + sealed + " --passphrase-from env:PATH": dr.CodePassphraseWrong} {
		got := cli(t, append([]string{"recover", "-o", "json", "--store", dir}, strings.Fields(args)...)...)
		if !strings.Contains(got.err, string(code)) {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := cli(t, "recover", "--store", dir, "--key", key); got.code == 0 || !strings.Contains(got.err, "chmod 600") {
		t.Errorf("a key that others can read: %+v", got)
	}
}

// s3Store runs an S3 store in memory, with credentials in the environment, and
// returns the address of a place in it.
func s3Store(t *testing.T, prefix string) (string, *s3test.Server) {
	t.Helper()
	srv := s3test.Start(t, s3test.Config{})
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=%s&path-style=true", srv.Bucket(), prefix, srv.URL(), srv.Region()), srv
}

func TestRecoverFromS3(t *testing.T) {
	at, srv := s3Store(t, "contoso")
	cfg, err := s3.ParseURL(at)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := storetest.New(t, b, 2<<20)
	r.Write(0, 4096, []byte(strings.Repeat("data", 1024)))
	r.Base()
	if err := store.InitVault(t.Context(), b, cut.VaultInfo{VaultID: "v", Name: "vault1", PublicKey: r.Private.Public().Text(), Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	text, err := r.Private.Text()
	if err == nil {
		err = os.WriteFile(key, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	puts := srv.Count(s3test.PutObject)
	must(t, "recover", "--store", at, "--key", key)
	must(t, "recover", "verify", "--store", at, "--key", key)
	out := t.TempDir()
	must(t, "recover", "restore", "vm", "--store", at, "--key", key, "--out", out)
	if got, err := os.ReadFile(filepath.Join(out, "vda.raw")); err != nil || !bytes.Equal(got, r.Points[0].Flat[0]) {
		t.Errorf("the disk differs from the source (%v)", err)
	}
	if n := srv.Count(s3test.PutObject); n != puts {
		t.Errorf("a recovery wrote %d objects to the store", n-puts)
	}
	bad := strings.Replace(at, "s3://", "s3://user:secretpass@", 1)
	if got := cli(t, "recover", "--store", bad, "--key", key); got.code != console.ExitCode(dr.KindInvalid) || strings.Contains(got.err, "secretpass") || !strings.Contains(got.err, "AWS_ACCESS_KEY_ID") {
		t.Errorf("credentials in an address: %+v", got)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if got := cli(t, "recover", "--store", at, "--key", key); got.code != console.ExitCode(dr.KindForbidden) || !strings.Contains(got.err, "credentials") {
		t.Errorf("wrong credentials: %+v", got)
	}
	for _, a := range []string{"ftp://x/y", "file://host/x", "s3://", "file:///x?y=z"} {
		if got := cli(t, "recover", "--store", a, "--key", key); got.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("%s: %+v", a, got)
		}
	}
}
