//go:build unix

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/file"
	"holdfast/internal/objstore/s3/s3test"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

type copied struct {
	CopiedObjects, PresentObjects, GoneObjects, Passes int
	CopiedBytes                                        int64
}

func TestStoreCopy(t *testing.T) {
	r, dir, key := replica(t)
	to, srv := s3Store(t, "copy")
	text := must(t, "store", "copy", "--from", dir, "--to", to, "-o", "json")
	documented(t, "store copy", text)
	v := decode[copied](t, text)
	if v.CopiedObjects != len(r.Keys()) || v.PresentObjects != 0 {
		t.Errorf("copied %+v of %d objects", v, len(r.Keys()))
	}
	// The copy is a store by itself, byte for byte.
	must(t, "recover", "verify", "--store", to, "--key", key)
	out := t.TempDir()
	must(t, "recover", "restore", "vm", "--store", to, "--key", key, "--out", out)
	if got, err := os.ReadFile(filepath.Join(out, "vda.raw")); err != nil || !bytes.Equal(got, r.Points[2].Flat[0]) {
		t.Errorf("the copy's disk differs from the source (%v)", err)
	}
	// Only what is missing is copied.
	puts := srv.Count(s3test.PutObject)
	r.Write(0, 0, []byte("later"))
	r.Cut()
	if v := decode[copied](t, must(t, "store", "copy", "--from", dir, "--to", to, "--reread", "-o", "json")); v.CopiedObjects != 1 || v.PresentObjects != len(r.Keys())-1 {
		t.Errorf("the second run copied %+v", v)
	}
	if n := srv.Count(s3test.PutObject) - puts; n > 2 { // one object, and one proof that the store is create-only
		t.Errorf("the second run made %d writes", n)
	}
	// And back, into a new directory.
	back := filepath.Join(t.TempDir(), "back")
	must(t, "store", "copy", "--from", to, "--to", back)
	if m := decode[[]storeMachine](t, must(t, "store", "ls", "--store", back, "--key", key, "-o", "json")); len(m) != 1 || len(m[0].Points) != 4 {
		t.Errorf("the copy of the copy has %+v", m)
	}
	got := cli(t, "store", "copy", "--from", dir, "--to", back)
	if got.code != 0 || !strings.Contains(got.err, "config.json") {
		t.Errorf("%+v", got)
	}
	fits(t, got.out+got.err)
}

func TestStoreCopyRefusals(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	to := filepath.Join(t.TempDir(), "to")
	must(t, "store", "copy", "--from", dir, "--to", to)
	b, err := file.Open(t.Context(), file.Config{Dir: to})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	object := cut.CutObject(r.Machine, r.Points[1].Ref.Gen, r.Points[1].Ref.N)
	at := &storetest.Replica{T: t, Bucket: b}

	// A copy that lacks an object gets it.
	at.Replace(object, func([]byte) []byte { return nil })
	if v := decode[copied](t, must(t, "store", "copy", "--from", dir, "--to", to, "-o", "json")); v.CopiedObjects != 1 {
		t.Errorf("%+v", v)
	}
	// Damage with the same size is found by --reread, other sizes always; neither is repaired.
	at.Replace(object, func(p []byte) []byte { p[3] ^= 1; return p })
	must(t, "store", "copy", "--from", dir, "--to", to)
	if got := cli(t, "store", "copy", "--from", dir, "--to", to, "--reread"); got.code != console.ExitCode(dr.KindConflict) || !strings.Contains(got.err, object) {
		t.Errorf("another object under the name: %+v", got)
	}
	at.Replace(object, func(p []byte) []byte { return p[:len(p)-1] })
	if got := cli(t, "store", "copy", "--from", dir, "--to", to); got.code != console.ExitCode(dr.KindConflict) || !strings.Contains(got.err, object) {
		t.Errorf("an object of another size: %+v", got)
	}
	_, other, _ := replica(t)
	for what, args := range map[string][]string{"another vault's store": {"--from", dir, "--to", other}, "no store": {"--from", t.TempDir(), "--to", to}, "itself": {"--from", dir, "--to", "file://" + dir},
		"a directory with other things": {"--from", dir, "--to", filepath.Dir(key)}} {
		if got := cli(t, append([]string{"store", "copy"}, args...)...); got.code == 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

type scrubbed struct {
	OK                    bool
	WholeUpTo, NewestGood string
	Damaged               []struct{ Point, Problem string }
	Orphans               []struct{ Object string }
	Advice                []string
}

func TestStoreScrub(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	at := []string{"store", "scrub", "--store", dir, "--key", key}
	got := cli(t, at...)
	if got.code != 0 || !strings.Contains(got.out, "good") {
		t.Errorf("a whole store: %+v", got)
	}
	fits(t, got.out)
	// A part that nobody refers to is an orphan; what is referred to never is.
	orphan := cut.PartObject(r.Machine, 1, 9, 7, 0)
	put(t, r, orphan, []byte("left behind"))
	object := cut.CutObject(r.Machine, r.Points[1].Ref.Gen, r.Points[1].Ref.N)
	v := decode[[]scrubbed](t, must(t, append(at, "-o", "json")...))
	if len(v) != 1 || !v[0].OK || len(v[0].Orphans) != 1 || v[0].Orphans[0].Object != orphan || len(v[0].Advice) != 1 {
		t.Errorf("%+v", v)
	}
	r.Replace(object, func(p []byte) []byte { p[len(p)/2] ^= 1; return p })
	got = cli(t, append(at, "-o", "json")...)
	documented(t, "store scrub", got.out)
	v = decode[[]scrubbed](t, got.out)
	first := dr.PointName(r.Points[0].Ref.Gen, r.Points[0].Ref.N)
	if got.code != console.ExitCode(dr.KindCorrupt) || v[0].OK || v[0].WholeUpTo != first || v[0].NewestGood != first || len(v[0].Damaged) != 2 ||
		!strings.Contains(strings.Join(v[0].Advice, "\n"), "item resync vm") || !strings.Contains(strings.Join(v[0].Advice, "\n"), first) {
		t.Errorf("a damaged store: %d %+v", got.code, v)
	}
	got = cli(t, at...)
	if !strings.Contains(got.out, "DAMAGED: 2 of 3") || !strings.Contains(got.err, "StoreDamaged") && got.code != console.ExitCode(dr.KindCorrupt) {
		t.Errorf("%+v", got)
	}
	fits(t, got.out)
}

func put(t *testing.T, r *storetest.Replica, key string, raw []byte) {
	t.Helper()
	if err := r.Bucket.PutNew(t.Context(), key, bytes.NewReader(raw), int64(len(raw)), nil); err != nil {
		t.Fatal(err)
	}
}

type maintained struct {
	Keep, Expire []struct{ Point, Why string }
	Done         bool
}

func TestStoreMaintain(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t) // one point a second
	for range 3 {
		r.Write(0, 4096, []byte("more"))
		r.Cut()
	}
	at := []string{"store", "maintain", "--store", dir, "--key", key, "--keep", "2s"}
	before := len(r.Keys())
	text := must(t, append(at, "--plan", "-o", "json")...)
	documented(t, "store maintain", text)
	plan := decode[[]maintained](t, text)
	if len(plan) != 1 || len(plan[0].Keep) != 3 || len(plan[0].Expire) != 3 || plan[0].Done || len(r.Keys()) != before {
		t.Fatalf("the plan is %+v", plan)
	}
	got := cli(t, append(at, "--plan")...)
	fits(t, got.out)
	if got := cli(t, at...); got.code != console.ExitCode(dr.KindInvalid) || !strings.Contains(got.err, "--yes") || len(r.Keys()) != before {
		t.Errorf("it did not ask: %+v", got)
	}
	text = must(t, append(at, "--yes", "-o", "json")...)
	documented(t, "store maintain", text)
	done := decode[[]maintained](t, text)
	if len(done) != 1 || !done[0].Done {
		t.Errorf("%s", text)
	}
	st := r.Store()
	chain, err := st.Chain(t.Context(), r.Machine)
	if err != nil || len(chain.Points) != 3 {
		t.Fatalf("%d points are left (%v)", len(chain.Points), err)
	}
	for i, p := range chain.Points {
		if p.Ref != r.Points[3+i].Ref || plan[0].Keep[i].Point != dr.PointName(p.Gen, p.N) {
			t.Errorf("point %d is %+v, planned %+v", i, p.Ref, plan[0].Keep[i])
		}
		if err := r.Compare(t.Context(), st, r.Points[3+i]); err != nil {
			t.Error(err)
		}
	}
	got = cli(t, append(at, "--yes")...)
	if got.code != 0 {
		t.Errorf("a second run: %+v", got)
	}
	fits(t, got.out)
	for _, args := range []string{"--hourly 1s", "--hourly 2h --daily 1h", "--keep soon"} {
		if got := cli(t, append(at, strings.Fields(args)...)...); got.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if got := cli(t, "store", "maintain", "--store", dir, "--key", key); got.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("without --keep: %+v", got)
	}
	// Damage stops it.
	r.Replace(cut.CutObject(r.Machine, r.Points[4].Ref.Gen, r.Points[4].Ref.N), func([]byte) []byte { return nil })
	now := len(r.Keys())
	got = cli(t, "store", "maintain", "--store", dir, "--key", key, "--keep", "0s", "--yes")
	if len(r.Keys()) < now {
		t.Errorf("objects of a damaged store were deleted: %+v", got)
	}
}

func TestStoreSeed(t *testing.T) {
	_, dir, key := replica(t)
	tmp := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(tmp, "cache"))
	content := bytes.Repeat([]byte("an older copy of a disk."), 1<<18)
	raw := filepath.Join(tmp, "old.img")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", raw, filepath.Join(tmp, "b.vhdx"))
	text := must(t, "store", "seed", "--store", dir, "--key", key, "--vm", "db01", "--disk", "vda="+raw, "--disk", "vdb="+filepath.Join(tmp, "b.vhdx"), "-o", "json")
	documented(t, "store seed", text)
	v := decode[struct {
		Machine string
		Disks   []struct {
			Disk      string
			SizeBytes int64
		}
	}](t, text)
	if len(v.Disks) != 2 || v.Disks[0].SizeBytes != int64(len(content)) {
		t.Fatalf("%s", text)
	}
	b, err := file.Open(t.Context(), file.Config{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	private, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := cut.ParseVaultPrivateKey(string(private))
	if err != nil {
		t.Fatal(err)
	}
	view, err := store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, k)}).OpenPosition(t.Context(), dr.MachineID(v.Machine), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for _, d := range view.Disks() {
		got := make([]byte, d.Size)
		if err := view.ReadAt(t.Context(), d.ID, got, 0); err != nil || !bytes.Equal(got[:len(content)], content) {
			t.Errorf("disk %s of the seed is not its image (%v)", d.ID, err)
		}
	}
	// It is never a recovery point.
	for _, m := range decode[[]storeMachine](t, must(t, "store", "ls", "--store", dir, "--key", key, "-o", "json")) {
		if m.VM == "db01" && len(m.Points) != 0 {
			t.Errorf("the seed is listed as a point: %+v", m)
		}
	}
	fits(t, must(t, "recover", "--store", dir, "--key", key))
	if got := cli(t, "recover", "restore", "db01", "--store", dir, "--key", key, "--out", tmp+"/x"); got.code != console.ExitCode(dr.KindPrecondition) || !strings.Contains(got.err, "seed") {
		t.Errorf("a seed was restored: %+v", got)
	}
	id := k.KeyID().String()
	got := cli(t, "store", "seed", "--store", dir, "--vault-key-id", id, "--vm", "db02", "--disk", "vda="+raw)
	if got.code != 0 || !strings.Contains(got.err, "item enable db02 --seed") {
		t.Errorf("%+v", got)
	}
	fits(t, got.out+got.err)
	for args, kind := range map[string]dr.Kind{
		"--vault-key-id " + strings.Repeat("0", 32) + " --disk vda=" + raw: dr.KindForbidden,
		"--vault-key-id 12 --disk vda=" + raw:                              dr.KindInvalid,
		"--disk vda=" + raw:                                                dr.KindInvalid,
		"--vault-key-id " + id + " --disk " + raw:                          dr.KindInvalid,
		"--vault-key-id " + id + " --disk vda=" + raw + "none":             dr.KindNotFound,
	} {
		if got := cli(t, append([]string{"store", "seed", "--store", dir, "--vm", "x"}, strings.Fields(args)...)...); got.code != console.ExitCode(kind) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestStoreValidate(t *testing.T) {
	if testing.Short() {
		t.Skip("moves hundreds of megabytes")
	}
	_, dir, _ := replica(t)
	text := must(t, "store", "validate", "file://"+dir, "-o", "json")
	documented(t, "store validate", text)
	if strings.Contains(text, `"ok": false`) || !strings.Contains(text, `"ok": true`) {
		t.Errorf("%s", text)
	}
	// A store that overwrites is found out.
	srv := s3test.Start(t, s3test.Config{IgnoreIfNoneMatch: true})
	at, _ := s3Store(t, "x")
	_, query, _ := strings.Cut(at, "?")
	endpoint := query[strings.Index(query, "endpoint=")+len("endpoint="):]
	endpoint = endpoint[:strings.IndexByte(endpoint, '&')]
	if got := cli(t, "store", "validate", strings.Replace(at, endpoint, srv.URL(), 1)); got.code == 0 || !strings.Contains(got.err, "If-None-Match") {
		t.Errorf("a store that overwrites: %+v", got)
	}
}
