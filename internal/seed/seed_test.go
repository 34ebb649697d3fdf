package seed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/seed"
	"holdfast/internal/store"
)

// disk makes content with data here and there, zeroes elsewhere, and an odd end.
func disk(n uint64, size int64) []byte {
	rng := rand.New(rand.NewPCG(n, 7))
	b := make([]byte, size)
	for range 40 {
		off := rng.Int64N(size)
		for i := off; i < min(off+rng.Int64N(90<<10), size); i++ {
			b[i] = byte(rng.Uint32())
		}
	}
	copy(b[size-100:], "the last bytes")
	return b
}

// sparse writes content as a file with holes.
func sparse(t *testing.T, path string, content []byte) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(content); off += 4096 {
		p := content[off:min(off+4096, len(content))]
		if len(bytes.Trim(p, "\x00")) == 0 {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func convert(t *testing.T, raw, to, format string, options ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := append([]string{"convert", "-f", "raw", "-O", format}, options...)
	if out, err := exec.CommandContext(ctx, "qemu-img", append(args, raw, to)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	return to
}

type fixture struct {
	bucket *mem.Bucket
	key    cut.VaultPrivateKey
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	key, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	return fixture{mem.New(), key}
}

func (f fixture) store() *store.Store {
	return store.New(store.Config{Bucket: f.bucket, Keys: store.NewKeyring(f.bucket, f.key)})
}

// compare is the oracle: the seed is the images, and no recovery point.
func (f fixture) compare(t *testing.T, r seed.Result, want map[string][]byte) {
	t.Helper()
	st := f.store()
	v, err := st.OpenPosition(t.Context(), r.Machine, r.Ref.Gen, r.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if len(v.Disks()) != len(want) {
		t.Errorf("the seed has %d disks, want %d", len(v.Disks()), len(want))
	}
	for _, d := range v.Disks() {
		got := make([]byte, d.Size)
		if err := v.ReadAt(t.Context(), d.ID, got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[d.ID]) {
			t.Errorf("disk %s of the seed differs from its image (%d bytes, want %d)", d.ID, len(got), len(want[d.ID]))
		}
	}
	if _, err := v.Check(t.Context(), t.Context(), nil); err != nil {
		t.Error(err)
	}
	chain, err := st.Chain(t.Context(), r.Machine)
	if err != nil || len(chain.Points) != 0 || len(chain.Refused) != 0 || len(chain.Path) != 1 || !chain.Path[0].Commit.Seed || chain.Path[0].Ref != r.Ref {
		t.Errorf("the seed's history is %+v (%v)", chain, err)
	}
	if _, err := st.OpenPoint(t.Context(), r.Machine, r.Ref.Gen, r.Ref.N); dr.CodeOf(err) != dr.CodeNoRecoveryPoint {
		t.Errorf("a seed was opened as a recovery point: %v", err)
	}
	epochs, err := st.Epochs(t.Context(), r.Machine)
	if err != nil || len(epochs) != 1 || epochs[0]>>12 != uint32(r.Ref.Gen) {
		t.Errorf("the data keys are %v (%v), and do not carry the generation", epochs, err)
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, tc := range []struct {
		name string
		size int64
		make func(t *testing.T, raw string) string // the disk argument
	}{
		{"raw", 130*mib + 12345, func(_ *testing.T, raw string) string { return raw }},
		{"qcow2", 70 * mib, func(t *testing.T, raw string) string { return convert(t, raw, raw+".qcow2", "qcow2", "-c") }},
		{"qcow2 without its ending", 2 * mib, func(t *testing.T, raw string) string { return "qcow2:" + convert(t, raw, raw+",odd", "qcow2") }},
		{"vhd fixed", 66 * mib, func(t *testing.T, raw string) string {
			return convert(t, raw, raw+".vhd", "vpc", "-o", "subformat=fixed,force_size=on")
		}},
		{"vhd dynamic", 66 * mib, func(t *testing.T, raw string) string {
			return convert(t, raw, raw+".vhd", "vpc", "-o", "subformat=dynamic,force_size=on")
		}},
		{"vhdx", 66 * mib, func(t *testing.T, raw string) string { return convert(t, raw, raw+".VHDX", "vhdx") }},
		{"raw that looks like something else", 1 * mib, func(t *testing.T, raw string) string {
			f, err := os.OpenFile(raw, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("QFI\xfb"), 0)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := seed.ParseDisk("vda=raw:" + raw); err != nil {
				t.Error(err)
			}
			fx := newFixture(t)
			cfg := seed.Config{Bucket: fx.bucket, VaultKey: fx.key.Public(), Dir: filepath.Join(t.TempDir(), "s"), VM: "web01", Disks: []seed.Disk{{ID: "vda", Path: raw}}}
			if _, err := seed.Make(t.Context(), cfg); dr.KindOf(err) != dr.KindInvalid || !strings.Contains(dr.HintOf(err), "raw:") {
				t.Errorf("a raw image whose content looks like qcow2 was taken without a word: %v", err)
			}
			return "raw:" + raw
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			content := disk(uint64(tc.size), tc.size)
			path := sparse(t, filepath.Join(t.TempDir(), "image"), content)
			d, err := seed.ParseDisk("vda=" + tc.make(t, path))
			if err != nil {
				t.Fatal(err)
			}
			if raw, err := os.ReadFile(path); err == nil {
				content = raw // a case may have changed it
			}
			var last int64
			dir := filepath.Join(t.TempDir(), "state")
			r, err := seed.Make(t.Context(), seed.Config{Bucket: f.bucket, VaultKey: f.key.Public(), Dir: dir, VM: "web01", Disks: []seed.Disk{d},
				Progress: func(done, total int64) {
					if done < last || total != tc.size {
						t.Errorf("progress went from %d to %d of %d", last, done, total)
					}
					last = done
				}})
			if err != nil {
				t.Fatal(err)
			}
			if last != tc.size || r.Resumed || r.Tiles == 0 || r.Stored == 0 {
				t.Errorf("progress ended at %d; result %+v", last, r)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the state directory with the data key is still there (%v)", err)
			}
			f.compare(t, r, map[string][]byte{"vda": content})
		})
	}
}

// TestCrashAtEveryStep kills a seed at each step, every time one step later, and
// goes on with it.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	a, b := disk(1, 70<<20), make([]byte, 9<<20)
	copy(b[5<<20:], "data")
	dir := t.TempDir()
	disks := []seed.Disk{{ID: "vda", Path: sparse(t, filepath.Join(dir, "a"), a)}, {ID: "vdb", Path: sparse(t, filepath.Join(dir, "b"), b)}}
	for _, label := range seed.Steps() {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			crash := errors.New("crash")
			fired := false
			cfg := seed.Config{Bucket: f.bucket, VaultKey: f.key.Public(), Dir: filepath.Join(t.TempDir(), "state"), VM: "web01", Disks: disks, Parallel: 1,
				Step: func(l string) error {
					if l == label {
						fired = true
						return crash
					}
					return nil
				}}
			if _, err := seed.Make(t.Context(), cfg); !errors.Is(err, crash) || !fired {
				t.Fatalf("the crash did not happen: %v", err)
			}
			machines, err := f.store().Machines(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range machines {
				chain, err := f.store().Chain(t.Context(), m)
				if err != nil || len(chain.Points) > 0 || len(chain.Path) > 0 && label != "committed" {
					t.Errorf("after the crash there is %+v (%v)", chain, err)
				}
			}
			cfg.Step = nil
			r, err := seed.Make(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Resumed {
				t.Error("the second run did not go on with the first")
			}
			f.compare(t, r, map[string][]byte{"vda": a, "vdb": b})
			if machines, _ = f.store().Machines(t.Context()); len(machines) != 1 {
				t.Errorf("%d machines were made", len(machines))
			}
		})
	}
}

// TestStoreFails lets every write fail in turn, with and without effect.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	content := disk(3, 65<<20)
	path := sparse(t, filepath.Join(t.TempDir(), "a"), content)
	for i := range 5 {
		for _, effect := range []fault.Kind{fault.ErrorBefore, fault.ErrorAfter} {
			t.Run(fmt.Sprint(i, effect), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				b := fault.New(f.bucket, fault.Fault{Op: fault.Put, Nth: i + 1, Kind: effect})
				cfg := seed.Config{Bucket: b, VaultKey: f.key.Public(), Dir: filepath.Join(t.TempDir(), "state"), VM: "web01", Disks: []seed.Disk{{ID: "vda", Path: path}}, Parallel: 1}
				_, err := seed.Make(t.Context(), cfg)
				b.Verify(t)
				if err == nil || dr.KindOf(err) != dr.KindUnavailable {
					t.Errorf("a store that fails: %v", err)
				}
				r, err := seed.Make(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				f.compare(t, r, map[string][]byte{"vda": content})
			})
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dir := t.TempDir()
	path := sparse(t, filepath.Join(dir, "a"), disk(4, 1<<20))
	bad := filepath.Join(dir, "bad.qcow2")
	if err := os.WriteFile(bad, []byte("not an image"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := func(disks ...seed.Disk) seed.Config {
		return seed.Config{Bucket: f.bucket, VaultKey: f.key.Public(), Dir: filepath.Join(dir, "state"), VM: "web01", Disks: disks}
	}
	for name, tc := range map[string]struct {
		cfg  seed.Config
		kind dr.Kind
	}{
		"no image":        {cfg(seed.Disk{ID: "vda", Path: filepath.Join(dir, "none")}), dr.KindNotFound},
		"no qcow2":        {cfg(seed.Disk{ID: "vda", Path: bad}), dr.KindInvalid},
		"a directory":     {cfg(seed.Disk{ID: "vda", Path: dir}), dr.KindInvalid},
		"no disk":         {cfg(), dr.KindInvalid},
		"the same twice":  {cfg(seed.Disk{ID: "vda", Path: path}, seed.Disk{ID: "vda", Path: path}), dr.KindInvalid},
		"unknown format":  {cfg(seed.Disk{ID: "vda", Path: path, Format: "vmdk"}), dr.KindInvalid},
		"an empty image":  {cfg(seed.Disk{ID: "vda", Path: sparse(t, filepath.Join(dir, "empty"), nil)}), dr.KindInvalid},
		"no vault's key":  {seed.Config{Bucket: f.bucket, Dir: dir, VM: "x", Disks: []seed.Disk{{ID: "vda", Path: path}}}, dr.KindInvalid},
		"no VM":           {seed.Config{Bucket: f.bucket, VaultKey: f.key.Public(), Dir: dir, Disks: []seed.Disk{{ID: "vda", Path: path}}}, dr.KindInvalid},
		"no such program": {cfg(seed.Disk{ID: "vda", Path: filepath.Join(dir, "none.vhdx")}), dr.KindNotFound},
	} {
		if _, err := seed.Make(t.Context(), tc.cfg); err == nil || dr.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if machines, err := f.store().Machines(t.Context()); err != nil || len(machines) != 0 {
		t.Errorf("refused seeds left %v (%v)", machines, err)
	}

	// Something else than what was begun with is not mixed in.
	begun := cfg(seed.Disk{ID: "vda", Path: path})
	begun.Step = func(l string) error {
		if l == "key" {
			return errors.New("stop")
		}
		return nil
	}
	if _, err := seed.Make(t.Context(), begun); err == nil {
		t.Fatal("it did not stop")
	}
	begun.Step = nil
	for name, change := range map[string]func(*seed.Config){
		"another VM": func(c *seed.Config) { c.VM = "web02" },
		"another size": func(c *seed.Config) {
			c.Disks = []seed.Disk{{ID: "vda", Path: sparse(t, filepath.Join(dir, "b"), disk(5, 2<<20))}}
		},
		"another disk":    func(c *seed.Config) { c.Disks = []seed.Disk{{ID: "vdb", Path: path}} },
		"a further disk":  func(c *seed.Config) { c.Disks = append(c.Disks, seed.Disk{ID: "vdb", Path: path}) },
		"another vault's": func(c *seed.Config) { c.VaultKey = newFixture(t).key.Public() },
	} {
		other := begun
		change(&other)
		if _, err := seed.Make(t.Context(), other); dr.CodeOf(err) != dr.CodeSeedMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := seed.Make(t.Context(), begun); err != nil {
		t.Error(err)
	}
}

// TestCancelled leaves no process and no directory behind, and goes on later.
func TestCancelled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	content := disk(6, 200<<20)
	path := convert(t, sparse(t, filepath.Join(t.TempDir(), "a"), content), filepath.Join(t.TempDir(), "a.qcow2"), "qcow2")
	ctx, cancel := context.WithCancel(t.Context())
	cfg := seed.Config{Bucket: f.bucket, VaultKey: f.key.Public(), Dir: filepath.Join(t.TempDir(), "state"), VM: "web01", Disks: []seed.Disk{{ID: "vda", Path: path}}, Parallel: 1,
		Progress: func(done, _ int64) {
			if done > 0 {
				cancel()
			}
		}}
	if _, err := seed.Make(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	cfg.Progress = nil
	r, err := seed.Make(t.Context(), cfg)
	if err != nil || !r.Resumed {
		t.Fatalf("%+v, %v", r, err)
	}
	f.compare(t, r, map[string][]byte{"vda": content})
}
