//go:build unix

package keyfile

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// sample builds testdata/keystore once per run of the tests.
func sample(t testing.TB) string {
	t.Helper()
	path, err := buildSample()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var sampleDir string

var buildSample = sync.OnceValues(func() (string, error) {
	path := filepath.Join(sampleDir, "keystore")
	out, err := exec.Command("go", "build", "-o", path, "./testdata/keystore").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the sample: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "keystore-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		sampleDir = dir
		return m.Run()
	}())
}

func machine(n int) dr.MachineID {
	return dr.MachineID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

// script is a key store in shell. It is run by /bin/sh, so that it need not be executable.
func script(t testing.TB, text string) string {
	t.Helper()
	return "exec:/bin/sh \"" + write(t, 0o600, []byte(text)) + "\""
}

func TestSampleStore(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	file := write(t, 0o600, []byte(keyText(t, key)))
	opener, err := Open(t.Context(), "exec:"+sample(t)+" "+file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if opener.ID() != key.KeyID() {
		t.Error("another key")
	}
	store := opener.(*Store)
	if store.Public().Text() != key.Public().Text() {
		t.Error("another public key")
	}
	if text := fmt.Sprint(store); strings.Contains(text, file) || !strings.Contains(text, key.KeyID().String()) {
		t.Errorf("shown as %s", text)
	}
	m := machine(5)
	wrap := func(epoch uint32, to cut.VaultPublicKey, key cut.EpochKey) []byte {
		b, err := cut.SealEpochKey(to, m, epoch, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := cut.NewEpochKey()
	for _, epoch := range []uint32{0, 1, 1 << 31} {
		if got, err := store.OpenEpochKey(t.Context(), m, epoch, wrap(epoch, key.Public(), want)); err != nil || got != want {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	_, err = store.OpenEpochKey(t.Context(), m, 1, wrap(1, newKey(t).Public(), want))
	wantCode(t, err, dr.KindForbidden, dr.CodeKeyMismatch)
	_, err = store.OpenEpochKey(t.Context(), m, 2, wrap(1, key.Public(), want))
	wantCode(t, err, dr.KindCorrupt, dr.CodeObjectCorrupt)
	for _, size := range []int{0, maxWrap + 1} {
		_, err = store.OpenEpochKey(t.Context(), m, 2, make([]byte, size))
		wantCode(t, err, dr.KindCorrupt, dr.CodeObjectCorrupt)
	}
	if _, err = store.OpenEpochKey(t.Context(), "no machine", 1, wrap(1, key.Public(), want)); err == nil {
		t.Error("a machine that is none")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	_, err = store.OpenEpochKey(t.Context(), m, 1, wrap(1, key.Public(), want))
	wantCode(t, err, dr.KindUnavailable, dr.CodeKeyStoreFailed)
}

const goodID = `{"version":1,"keyId":"00112233445566778899aabbccddeeff"}`

func TestStoreFailures(t *testing.T) {
	t.Parallel()
	secretKey := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	for _, c := range []struct {
		name string
		text string // after the id has been answered
		kind dr.Kind
		code dr.Code
		says string
	}{
		{"nothing", "", dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a JSON object"},
		{"garbage", "echo " + secretKey, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a JSON object"},
		{"two objects", `echo '{"version":1}{"version":1}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a JSON object"},
		{"later version", `echo '{"version":2,"epochKey":"` + secretKey + `"}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "version 2"},
		{"no key", `echo '{"version":1}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a key"},
		{"short key", `echo '{"version":1,"epochKey":"MDEy"}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a key"},
		{"key of zeros", `echo '{"version":1,"epochKey":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `"}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "zeros"},
		{"no base64", `echo '{"version":1,"epochKey":"` + secretKey + `!"}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a JSON object"},
		{"number", `echo '{"version":1,"epochKey":7}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "not a JSON object"},
		{"exit code", "exit 3", dr.KindUnavailable, dr.CodeKeyStoreFailed, "exit status 3"},
		{"answer and exit code", `echo '{"version":1,"epochKey":"` + secretKey + `"}'; exit 3`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "exit status 3"},
		{"killed", "kill -9 $$", dr.KindUnavailable, dr.CodeKeyStoreFailed, "killed"},
		{"only on standard error", "echo " + secretKey + " >&2; exit 1", dr.KindUnavailable, dr.CodeKeyStoreFailed, "no answer"},
		{"denied", `echo '{"version":1,"error":{"code":"denied","message":"not you"}}'`, dr.KindForbidden, dr.CodeKeyStoreFailed, "not you"},
		{"wrong key", `echo '{"version":1,"error":{"code":"wrongKey","message":"another"}}'; exit 1`, dr.KindForbidden, dr.CodeKeyMismatch, "another"},
		{"damaged", `echo '{"version":1,"error":{"code":"damaged","message":"broken"}}'`, dr.KindCorrupt, dr.CodeObjectCorrupt, "broken"},
		{"its own failure", `printf '{"version":1,"error":{"code":"unavailable","message":"HSM\\nis off\\u001b[31m"}}'`, dr.KindUnavailable, dr.CodeKeyStoreFailed, "HSM is off [31m"},
		{"flood", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", dr.KindUnavailable, dr.CodeKeyStoreFailed, "more than 65536 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			store, err := Open(t.Context(), script(t, "read -r q\ncase $q in *'\"id\"'*) echo '"+goodID+"'; exit;; esac\n"+c.text+"\n"), Options{Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			key, err := store.OpenEpochKey(t.Context(), machine(1), 1, []byte("wrap"))
			wantCode(t, err, c.kind, c.code)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
			if strings.Contains(err.Error()+dr.HintOf(err), secretKey[:20]) || key != (cut.EpochKey{}) {
				t.Error("the error shows what the program wrote, or there is a key")
			}
		})
	}
}

// TestStoreHangs proves that the program and its children are ended at the
// deadline, and that a cancelled caller does not wait for it.
func TestStoreHangs(t *testing.T) {
	t.Parallel()
	pids := filepath.Join(t.TempDir(), "pids")
	text := "read -r q\ncase $q in *'\"id\"'*) echo '" + goodID + "'; exit;; esac\nsleep 300 & echo $$ $! >" + pids + ".new; mv " + pids + ".new " + pids + "\nwait\n"
	open := func() *Store {
		o, err := Open(t.Context(), script(t, text), Options{Timeout: 2 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return o.(*Store)
	}
	quick := open()
	quick.timeout = 50 * time.Millisecond
	_, err := quick.OpenEpochKey(t.Context(), machine(1), 1, []byte("wrap"))
	wantCode(t, err, dr.KindUnavailable, dr.CodeKeyStoreFailed)
	if !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Error(err)
	}
	if err := os.Remove(pids); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(pids); err == nil || ctx.Err() != nil {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	defer cancel()
	if _, err = open().OpenEpochKey(ctx, machine(1), 1, []byte("wrap")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ended(t, pids)
}

// ended waits until the processes named in a file are gone, and removes it.
func ended(t *testing.T, pids string) {
	t.Helper()
	for _, f := range strings.Fields(string(readFile(t, pids))) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || strings.Contains(string(stat), ") Z ") {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("process %d is still there", pid)
				break
			}
		}
	}
	if err := os.Remove(pids); err != nil {
		t.Fatal(err)
	}
}

func TestOpenStoreRefuses(t *testing.T) {
	t.Parallel()
	exposedProgram := write(t, 0o777, []byte("#!/bin/sh\n"))
	for _, c := range []struct {
		name, source string
		kind         dr.Kind
		code         dr.Code
	}{
		{"nothing", "exec:", dr.KindInvalid, ""},
		{"not absolute", "exec:keystore", dr.KindInvalid, ""},
		{"open quote", `exec:/bin/sh "x`, dr.KindInvalid, ""},
		{"missing", "exec:/nowhere/at/all", dr.KindNotFound, ""},
		{"folder", "exec:/tmp", dr.KindInvalid, ""},
		{"not executable", "exec:" + write(t, 0o600, nil), dr.KindPrecondition, ""},
		{"others can change it", "exec:" + exposedProgram, dr.KindForbidden, dr.CodeKeyFileExposed},
		{"no id", script(t, `echo '{"version":1}'`), dr.KindUnavailable, dr.CodeKeyStoreFailed},
		{"other public key", script(t, `echo '{"version":1,"keyId":"00112233445566778899aabbccddeeff","publicKey":"`+newKey(t).Public().Text()+`"}'`), dr.KindUnavailable, dr.CodeKeyStoreFailed},
		{"says why", script(t, `echo '{"version":1,"error":{"code":"denied","message":"m"}}'`), dr.KindForbidden, dr.CodeKeyStoreFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), c.source, Options{})
			wantCode(t, err, c.kind, c.code)
		})
	}
	if _, err := Open(t.Context(), "exec:/bin/true", Options{Timeout: time.Hour}); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("time limit: %v", err)
	}
}

func TestSplitCommand(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"":                      nil,
		"  ":                    nil,
		"/a b  c ":              {"/a", "b", "c"},
		`"/a b" c"d e"f ""`:     {"/a b", "cd ef", ""},
		`/a $(rm) 'x y' \n |;&`: {"/a", "$(rm)", "'x", "y'", `\n`, "|;&"},
	} {
		if got, err := splitCommand(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func FuzzStoreAnswer(f *testing.F) {
	f.Add([]byte(goodID))
	f.Add([]byte(`{"version":1,"epochKey":"AAAA"}`))
	f.Add([]byte(`{"version":1,"epochKey":null,"error":{"code":"x","message":"y"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a storeAnswer
		if err := decodeAnswer(b, &a); err == nil && a.Version != storeProtocol {
			t.Fatal("another version")
		} else if err != nil && len(err.Error()) > 100 {
			t.Fatalf("the error quotes: %v", err)
		}
		if a.Error != nil && len([]rune(printable(a.Error.Message))) > maxStoreText+1 {
			t.Fatal("too long")
		}
	})
}

func FuzzSplitCommand(f *testing.F) {
	f.Add(`/a "b c" d`)
	f.Fuzz(func(t *testing.T, s string) {
		if argv, err := splitCommand(s); err == nil && len(strings.Join(argv, "")) > len(s)*3 {
			t.Fatal("more came out than went in")
		}
	})
}
