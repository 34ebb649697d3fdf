package store_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const unit = cut.Unit

func block(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	switch rng.IntN(4) {
	case 0: // zeroes
	case 1: // compressible
		for i := range p {
			p[i] = byte(i / 100)
		}
	default:
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
	}
	return p
}

func scribble(r *storetest.Replica, rng *rand.Rand, writes int) {
	for range writes {
		d := rng.IntN(len(r.Disks))
		units := (r.Disks[d].Size + unit - 1) / unit
		first := rng.Int64N(units)
		count := min(1+rng.Int64N(40), units-first)
		n := min(count*unit, r.Disks[d].Size-first*unit)
		r.Write(d, first*unit, block(rng, n))
	}
}

// Promise 1: every point is the source at its cut, byte for byte.
func TestEveryPointIsItsSource(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := storetest.New(t, mem.New(), 3<<20, 1<<20+512)
		r.PartMax = []int{0, 64 << 10, 300 << 10}[seed%3]
		scribble(r, rng, 20)
		r.Base()
		for i := range 25 {
			scribble(r, rng, rng.IntN(6))
			if i == 12 {
				r.Base() // a second base inside the chain
			} else {
				r.Cut()
			}
			if rng.IntN(10) == 0 {
				r.Takeover(len(r.Points) - 1 - rng.IntN(2))
				r.Points = keepLive(r)
			}
		}
		s := r.Store()
		for _, p := range r.Points {
			if err := r.Compare(t.Context(), s, p); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		chain, err := s.Chain(t.Context(), r.Machine)
		if err != nil {
			t.Fatal(err)
		}
		if len(chain.Points) != len(r.Points) || len(chain.Refused) != 0 {
			t.Fatalf("seed %d: %d points and %d refused, want %d and 0", seed, len(chain.Points), len(chain.Refused), len(r.Points))
		}
		for i, c := range chain.Points {
			if c.Ref != r.Points[i].Ref {
				t.Fatalf("seed %d: point %d is %+v, want %+v", seed, i, c.Ref, r.Points[i].Ref)
			}
		}
		report, err := s.Verify(t.Context(), r.Machine, nil)
		if err != nil || !report.OK() {
			t.Fatalf("seed %d: verify: %v %+v", seed, err, report)
		}
	}
}

// keepLive drops the oracle's points that the takeover made dead.
func keepLive(r *storetest.Replica) []storetest.Point {
	gens, err := r.Store().Generations(r.T.Context(), r.Machine)
	if err != nil {
		r.T.Fatal(err)
	}
	base := gens[len(gens)-1].Base
	var live []storetest.Point
	for _, p := range r.Points {
		if p.Ref.N <= base.N {
			live = append(live, p)
		}
	}
	return live
}

// Promise 5: what a fenced generation writes after the takeover is dead.
func TestStaleGenerationIsDead(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	r := storetest.New(t, mem.New(), 1<<20)
	scribble(r, rng, 5)
	r.Base()
	scribble(r, rng, 5)
	first := r.Cut()
	stale := r.Clone() // the old agent, which has not heard of the takeover
	r.Takeover(-1)
	scribble(stale, rng, 5)
	late := stale.Cut()
	scribble(r, rng, 5)
	r.Points = r.Points[:2]
	good := r.Cut()
	s := r.Store()
	chain, err := s.Chain(t.Context(), r.Machine)
	if err != nil {
		t.Fatal(err)
	}
	if last, _ := chain.Last(); last.Ref != good.Ref || len(chain.Dead) != 1 || chain.Dead[0].Gen != late.Ref.Gen {
		t.Fatalf("last %+v dead %+v", last.Ref, chain.Dead)
	}
	if _, err := s.OpenPoint(t.Context(), r.Machine, late.Ref.Gen, late.Ref.N); dr.KindOf(err) != dr.KindNotFound {
		t.Fatalf("a dead cut opens: %v", err)
	}
	for _, p := range []storetest.Point{first, good} {
		if err := r.Compare(t.Context(), s, p); err != nil {
			t.Fatal(err)
		}
	}
}

// A flipped bit in any object refuses the points that need it, by name, and no other.
func TestFlippedBitInEveryObject(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(2, 2))
	r := storetest.New(t, mem.New(), 1<<20, 512<<10)
	r.PartMax = 32 << 10
	scribble(r, rng, 8)
	r.Base()
	for range 4 {
		scribble(r, rng, 4)
		r.Cut()
	}
	flips := 6
	if testing.Short() {
		flips = 1
	}
	for _, key := range r.Keys() {
		o, err := cut.ParseObject(key)
		if err != nil {
			t.Fatal(err)
		}
		for range flips {
			var at int
			var old byte
			r.Replace(key, func(b []byte) []byte { at = rng.IntN(len(b)); old = b[at]; b[at] ^= 1 << rng.IntN(8); return b })
			report, err := r.Store().Verify(t.Context(), r.Machine, nil)
			switch {
			case o.Class == cut.ClassGeneration:
				// The first cut repeats what it says.
				if err != nil || !report.OK() {
					t.Fatalf("%s: %v %+v", key, err, report)
				}
			case o.Class == cut.ClassKey:
				if err == nil && report.OK() {
					t.Fatalf("%s byte %d: damage not noticed", key, at)
				}
			default:
				if err != nil {
					t.Fatalf("%s: %v", key, err)
				}
				firstBad := o.N
				for _, v := range report.Verdicts {
					bad := v.Point.N >= firstBad
					if bad != (v.Err != nil) {
						t.Fatalf("%s byte %d: verdict of %s is %v", key, at, v.Point.Name(), v.Err)
					}
					if bad && (!strings.Contains(v.Err.Error(), key) || dr.CodeOf(v.Err) != dr.CodePointRefused) && !strings.Contains(v.Err.Error(), "object") {
						t.Fatalf("%s: the refusal does not name the object: %v", key, v.Err)
					}
				}
				// The points before it still read, and the bad ones never give wrong bytes.
				for _, p := range r.Points {
					err := r.Compare(t.Context(), r.Store(), p)
					if p.Ref.N < firstBad && err != nil {
						t.Fatalf("%s: older point: %v", key, err)
					}
					if err != nil && !errorsIsDamage(err) {
						t.Fatalf("%s: %v", key, err)
					}
				}
			}
			r.Replace(key, func(b []byte) []byte { b[at] = old; return b })
		}
	}
}

func errorsIsDamage(err error) bool { return dr.KindOf(err) == dr.KindCorrupt }

func TestMissingObject(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 2))
	r := storetest.New(t, mem.New(), 1<<20)
	r.PartMax = 32 << 10
	r.Write(0, 0, block(rand.New(rand.NewPCG(9, 9)), 128<<10))
	r.Base()
	for range 3 {
		scribble(r, rng, 5)
		r.Cut()
	}
	for _, key := range r.Keys() {
		o, _ := cut.ParseObject(key)
		if o.Class != cut.ClassCut && o.Class != cut.ClassPart && o.Class != cut.ClassTile {
			continue
		}
		var saved []byte
		r.Replace(key, func(b []byte) []byte { saved = b; return nil })
		for _, p := range r.Points {
			v, err := r.Store().OpenPoint(t.Context(), r.Machine, p.Ref.Gen, p.Ref.N)
			if err == nil {
				v.Close()
			}
			if (p.Ref.N >= o.N) != (err != nil) {
				t.Errorf("without %s point %d: %v", key, p.Ref.N, err)
			}
		}
		if err := r.Bucket.PutNew(t.Context(), key, strings.NewReader(string(saved)), int64(len(saved)), nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrongKeyIsNotDamage(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 1<<20)
	r.Base()
	other, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(store.Config{Bucket: r.Bucket, Keys: store.NewKeyring(r.Bucket, other)})
	if _, err := s.Chain(t.Context(), r.Machine); dr.CodeOf(err) != dr.CodeKeyMismatch {
		t.Fatalf("got %v", err)
	}
}

// A store that can't be asked is never taken for an empty or damaged one.
func TestUnavailableIsNotAbsent(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 1<<20)
	r.Base()
	r.Cut()
	down := downBucket{r.Bucket}
	s := store.New(store.Config{Bucket: down, Keys: store.NewKeyring(r.Bucket, r.Private)})
	if _, err := s.Machines(t.Context()); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("Machines: %v", err)
	}
	if _, err := s.Chain(t.Context(), r.Machine); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("Chain: %v", err)
	}
	if _, err := s.OpenPoint(t.Context(), r.Machine, 1, 1); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("OpenPoint: %v", err)
	}
	if _, err := s.ReadCut(t.Context(), r.Machine, 1, 1); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("ReadCut: %v", err)
	}
	if _, err := s.VaultInfo(t.Context()); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("VaultInfo: %v", err)
	}
}

type downBucket struct{ objstore.Bucket }

func (downBucket) List(context.Context, string, func(objstore.Info) error) error {
	return &objstore.Error{Op: "list", Kind: objstore.ErrUnavailable}
}

func (downBucket) Head(context.Context, string) (objstore.Info, error) {
	return objstore.Info{}, &objstore.Error{Op: "head", Kind: objstore.ErrUnavailable}
}

func (downBucket) Get(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return nil, &objstore.Error{Op: "get", Kind: objstore.ErrUnavailable}
}

func TestMachines(t *testing.T) {
	t.Parallel()
	b := mem.New()
	want := map[dr.MachineID]bool{}
	for range 5 {
		r := storetest.New(t, b, 64<<10)
		r.Base()
		want[r.Machine] = true
	}
	got, err := store.New(store.Config{Bucket: b}).Machines(t.Context())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v %v", got, err)
	}
	for _, m := range got {
		if !want[m] {
			t.Errorf("unknown machine %s", m)
		}
	}
}

func TestGenerationIsCreatedOnce(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 64<<10)
	g := cut.GenInfo{Machine: r.Machine, Gen: 2, Agent: "a", Reason: "takeover"}
	for range 2 {
		if err := store.WriteGeneration(t.Context(), r.Bucket, g); err != nil {
			t.Fatal(err)
		}
	}
	g.Agent = "b"
	if err := store.WriteGeneration(t.Context(), r.Bucket, g); dr.CodeOf(err) != dr.CodeObjectConflict {
		t.Fatalf("a second owner of a generation: %v", err)
	}
}

func TestVaultBelongsToOneKey(t *testing.T) {
	t.Parallel()
	b := mem.New()
	key, _ := cut.GenerateVaultKey()
	info := cut.VaultInfo{VaultID: "2b0f1f0e-52ee-4f3c-9d50-08d90e6f6a01", KeyID: key.KeyID(), PublicKey: key.Public().Text()}
	for range 2 {
		if err := store.InitVault(t.Context(), b, info); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := cut.GenerateVaultKey()
	info.KeyID, info.PublicKey = other.KeyID(), other.Public().Text()
	if err := store.InitVault(t.Context(), b, info); dr.CodeOf(err) != dr.CodeKeyMismatch {
		t.Fatalf("another vault took the store: %v", err)
	}
}

// The budget ends a check early and says what is left; damage is found within it.
func TestCheckBudget(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(4, 2))
	r := storetest.New(t, mem.New(), 1<<20)
	scribble(r, rng, 20)
	r.Base()
	p := r.Cut()
	v, err := r.Store().OpenPoint(t.Context(), r.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	res, err := v.Check(t.Context(), t.Context(), nil)
	if err != nil || res.ObjectsLeft != 0 || res.Objects != 3 {
		t.Fatalf("%+v %v", res, err)
	}
	spent, cancel := context.WithCancel(t.Context())
	cancel()
	res, err = v.Check(t.Context(), spent, nil)
	if err != nil || res.Objects != 0 || res.ObjectsLeft != 3 {
		t.Fatalf("%+v %v", res, err)
	}
}

// A read that fails once because the store was away succeeds the next time: failures are not cached.
func TestReadRecovers(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 2))
	r := storetest.New(t, mem.New(), 1<<20)
	r.Write(0, 0, block(rng, 1<<20))
	p := r.Base()
	f := fault.New(r.Bucket)
	s := store.New(store.Config{Bucket: f, Keys: store.NewKeyring(r.Bucket, r.Private)})
	v, err := s.OpenPoint(t.Context(), r.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	f.Add(fault.Fault{Op: fault.Get, Kind: fault.ErrorBefore})
	buf := make([]byte, 4096)
	if err := v.ReadAt(t.Context(), "vda", buf, 8192); dr.KindOf(err) != dr.KindUnavailable {
		t.Fatalf("the injected fault did not show: %v", err)
	}
	if err := v.ReadAt(t.Context(), "vda", buf, 8192); err != nil || string(buf) != string(p.Flat[0][8192:8192+4096]) {
		t.Fatalf("after the store came back: %v", err)
	}
	if u := f.Unfired(); len(u) != 0 {
		t.Fatalf("unfired: %v", u)
	}
	if err := v.ReadAt(t.Context(), "vda", buf, 1<<20-100); dr.KindOf(err) != dr.KindInvalid {
		t.Fatalf("read beyond the end: %v", err)
	}
	if err := v.ReadAt(t.Context(), "vdz", buf, 0); dr.KindOf(err) != dr.KindNotFound {
		t.Fatalf("unknown disk: %v", err)
	}
	if errors.Is(err, context.Canceled) {
		t.Fatal("unreachable")
	}
}
