package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/file"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// replica makes a store with one machine of two disks and three points, and the key file for it.
func replica(t *testing.T) (r *storetest.Replica, dir, key string) {
	t.Helper()
	dir, key = filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "vault.key")
	b, err := file.Open(t.Context(), file.Config{Dir: dir, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	r = storetest.New(t, b, 3<<20, 1<<20)
	if err := store.InitVault(t.Context(), b, cut.VaultInfo{VaultID: "v", Name: "vault1", PublicKey: r.Private.Public().Text(), Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	text, err := r.Private.Text()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Write(0, 0, bytes.Repeat([]byte("base"), 64<<10))
	r.Write(1, 8192, bytes.Repeat([]byte("data"), 2<<10))
	r.Base()
	for _, word := range []string{"one!", "two!"} {
		r.Write(0, 1<<20, bytes.Repeat([]byte(word), 4<<10))
		r.Cut()
	}
	return r, dir, key
}

type storeMachine struct {
	Machine, VM string
	Disks       []string
	Points      []struct{ Name string }
	Refused     []struct{ Point, Reason string }
	Error       string
}

func TestStoreTools(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	at := []string{"--store", dir, "--key", key}
	with := func(args ...string) []string { return append(append([]string{"store"}, args...), at...) }
	name := func(i int) string { return dr.PointName(r.Points[i].Ref.Gen, r.Points[i].Ref.N) }

	documented(t, "store ls", must(t, with("ls", "-o", "json")...))
	machines := decode[[]storeMachine](t, must(t, with("ls", "-o", "json")...))
	if len(machines) != 1 || machines[0].Machine != string(r.Machine) || machines[0].VM != "vm" || len(machines[0].Points) != 3 || machines[0].Points[2].Name != name(2) ||
		strings.Join(machines[0].Disks, ",") != "vda,vdb" || len(machines[0].Refused) != 0 {
		t.Errorf("ls shows %+v", machines)
	}
	fits(t, must(t, with("ls")...))
	fits(t, must(t, with("ls", "--machine", "vm")...))
	fits(t, must(t, with("verify")...))
	if got := cli(t, with("ls", "--machine", "other")...); got.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("an unknown machine: %+v", got)
	}

	out := filepath.Join(t.TempDir(), "disk.raw")
	for _, tc := range []struct {
		point int
		disk  string
		n     int
		args  []string
	}{
		{2, "vda", 0, nil}, {1, "vda", 0, []string{"--point", name(1)}}, {2, "vdb", 1, []string{"--machine", "vm"}},
	} {
		args := with(append([]string{"restore", "-o", "json", "--machine", string(r.Machine), "--disk", tc.disk, "--out", out}, tc.args...)...)
		documented(t, "store restore", must(t, args...))
		got, err := os.ReadFile(out)
		if err != nil || !bytes.Equal(got, r.Points[tc.point].Flat[tc.n]) {
			t.Errorf("%v: the restored disk differs from the source (%v)", tc, err)
		}
		if again := cli(t, args...); again.code != console.ExitCode(dr.KindConflict) {
			t.Errorf("a file was overwritten: %+v", again)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
	for want, args := range map[dr.Kind][]string{
		dr.KindInvalid:  {"restore", "--machine", "vm", "--out", out}, // which disk?
		dr.KindNotFound: {"restore", "--machine", "vm", "--disk", "vdz", "--out", out},
	} {
		if got := cli(t, with(args...)...); got.code != console.ExitCode(want) {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestStoreDamage(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	object := cut.CutObject(r.Machine, r.Points[1].Ref.Gen, r.Points[1].Ref.N)
	r.Replace(object, func(b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	})
	got := cli(t, "store", "verify", "--store", dir, "--key", key)
	if got.code != console.ExitCode(dr.KindCorrupt) || !strings.Contains(strings.Join(strings.Fields(got.out), ""), object[strings.LastIndexByte(object, '/')+1:]) {
		t.Errorf("verify of a damaged store: %+v", got)
	}
	fits(t, got.out)
	type verdict struct {
		Point, Problem string
		OK             bool
	}
	got = cli(t, "store", "verify", "--store", dir, "--key", key, "-o", "json")
	documented(t, "store verify", got.out)
	verdicts := decode[[]verdict](t, got.out)
	if len(verdicts) != 3 || !verdicts[0].OK || verdicts[1].OK || verdicts[2].OK || !strings.Contains(verdicts[1].Problem, object) {
		t.Errorf("verdicts %+v", verdicts)
	}
	// The point before the damage is still there for the worst day.
	out := filepath.Join(t.TempDir(), "disk.raw")
	must(t, "store", "restore", "--store", dir, "--key", key, "--machine", "vm", "--disk", "vda", "--out", out, "--point", dr.PointName(r.Points[0].Ref.Gen, r.Points[0].Ref.N))
	if b, err := os.ReadFile(out); err != nil || !bytes.Equal(b, r.Points[0].Flat[0]) {
		t.Errorf("the point before the damage differs (%v)", err)
	}

	// A missing cut is refused by the listing too, with its reason.
	r.Replace(object, func([]byte) []byte { return nil })
	text := must(t, "store", "ls", "--store", dir, "--key", key, "-o", "json")
	documented(t, "store ls", text)
	machines := decode[[]storeMachine](t, text)
	if len(machines) != 1 || len(machines[0].Points) != 1 || len(machines[0].Refused) == 0 || machines[0].Refused[0].Reason == "" {
		t.Errorf("ls of a store with a missing cut: %+v", machines)
	}
	fits(t, must(t, "store", "ls", "--store", dir, "--key", key, "--machine", "vm"))
}

func TestStoreRefusals(t *testing.T) {
	t.Parallel()
	_, dir, key := replica(t)
	_, _, otherKey := replica(t)
	if got := cli(t, "store", "ls", "--store", dir, "--key", otherKey); got.code != console.ExitCode(dr.KindForbidden) {
		t.Errorf("another vault's key: %+v", got)
	}
	if err := os.WriteFile(otherKey, []byte("not a key, but perhaps a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := cli(t, "store", "ls", "--store", dir, "--key", otherKey); got.code == 0 || strings.Contains(got.err, "perhaps a secret") {
		t.Errorf("a file that is no key: %+v", got)
	}
	if got := cli(t, "store", "ls", "--store", dir, "--key", filepath.Join(dir, "none")); got.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("a missing key: %+v", got)
	}
	for _, d := range []string{t.TempDir(), filepath.Join(dir, "none"), key} {
		got := cli(t, "store", "ls", "--store", d, "--key", key)
		if got.code == 0 || !strings.Contains(got.err, "bucket.json") {
			t.Errorf("%s as a store: %+v", d, got)
		}
	}
}
