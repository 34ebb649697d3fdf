package rotation

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
)

// site is a store with the sealed keys of some machines, and what they hold.
type site struct {
	t      testing.TB
	bucket objstore.Bucket
	old    cut.VaultPrivateKey
	keys   map[dr.MachineID]map[uint32]cut.EpochKey
}

func newKey(t testing.TB) cut.VaultPrivateKey {
	t.Helper()
	key, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func wantCode(t testing.TB, err error, kind dr.Kind, code dr.Code) {
	t.Helper()
	if err == nil || dr.CodeOf(err) != code || dr.KindOf(err) != kind {
		t.Fatalf("error %v (kind %v, code %q), want kind %v, code %q", err, dr.KindOf(err), dr.CodeOf(err), kind, code)
	}
}

func machine(n int) dr.MachineID {
	return dr.MachineID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

func newSite(t testing.TB, machines, epochs int) *site {
	t.Helper()
	s := &site{t: t, bucket: mem.New(), old: newKey(t), keys: map[dr.MachineID]map[uint32]cut.EpochKey{}}
	b, err := cut.VaultInfo{VaultID: "v", Name: "Contoso", PublicKey: s.old.Public().Text(), Created: time.Unix(1e9, 0)}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	s.put(cut.VaultObject(), b)
	for m := range machines {
		for e := range epochs {
			s.epoch(machine(m), uint32(256+e), s.old.Public())
		}
		s.put(cut.MachinePrefix(machine(m))+"key/notes.txt", []byte("not ours"))
	}
	return s
}

func (s *site) put(key string, b []byte) {
	s.t.Helper()
	if err := s.bucket.PutNew(s.t.Context(), key, bytes.NewReader(b), int64(len(b)), nil); err != nil {
		s.t.Fatal(err)
	}
}

// epoch makes an epoch key as an agent does.
func (s *site) epoch(m dr.MachineID, epoch uint32, to cut.VaultPublicKey) {
	s.t.Helper()
	key := cut.NewEpochKey()
	if s.keys[m] == nil {
		s.keys[m] = map[uint32]cut.EpochKey{}
	}
	s.keys[m][epoch] = key
	s.put(cut.KeyObject(m, epoch), s.wrap(m, epoch, to, key))
}

func (s *site) wrap(m dr.MachineID, epoch uint32, to cut.VaultPublicKey, key cut.EpochKey) []byte {
	s.t.Helper()
	b, err := cut.SealEpochKey(to, m, epoch, key)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *site) damage(object string) {
	s.t.Helper()
	b, err := objstore.ReadAll(s.t.Context(), s.bucket, object, maxSmall)
	if err != nil {
		s.t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[100] ^= 1
	if err := s.bucket.Delete(s.t.Context(), object); err != nil {
		s.t.Fatal(err)
	}
	s.put(object, b)
}

func (s *site) objects() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	err := s.bucket.List(s.t.Context(), "", func(i objstore.Info) error {
		b, err := objstore.ReadAll(s.t.Context(), s.bucket, i.Key, maxSmall)
		all[i.Key] = string(b)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// opensAll proves that a key gives every epoch's very key.
func (s *site) opensAll(by cut.KeyOpener) {
	s.t.Helper()
	for m, epochs := range s.keys {
		r, err := Check(s.t.Context(), s.bucket, by, m)
		if err != nil || r.Err() != nil || len(r.Opened) != len(epochs) {
			s.t.Errorf("%v: %v, %v", r, err, r.Err())
		}
		list, err := listWraps(s.t.Context(), s.bucket, m)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range list {
			if key, ok, _, err := e.open(s.t.Context(), s.bucket, by); err != nil || !ok || key != epochs[e.epoch] {
				s.t.Errorf("epoch %d of %s: another key, %v", e.epoch, m, err)
			}
		}
	}
}

func unchanged(t testing.TB, before, after map[string]string) {
	t.Helper()
	for k, v := range before {
		if after[k] != v {
			t.Errorf("object %q was changed or deleted", k)
		}
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, 4)
	before := s.objects()
	next := newKey(t)
	var seen []Progress
	rot, err := Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next, Software: "9.9", Progress: func(p Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	if rot.Sealed != 12 || rot.Present != 0 || len(rot.Left) != 0 || rot.Machines != 3 || !rot.Changed() || rot.Vault.Seq != 1 || rot.Vault.Previous != s.old.KeyID() || rot.Vault.Software != "9.9" || rot.Vault.Name != "Contoso" {
		t.Errorf("%+v", rot)
	}
	if len(seen) != 6 || seen[2] != (Progress{Pass: 1, Machine: machine(2), Done: 3, Machines: 3, Sealed: 12}) || seen[5].Pass != 2 {
		t.Errorf("progress %+v", seen)
	}
	after := s.objects()
	unchanged(t, before, after)
	if len(after) != len(before)+13 {
		t.Errorf("%d objects became %d", len(before), len(after))
	}
	s.opensAll(next)
	s.opensAll(s.old)

	again, err := Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{})
	if err != nil || again.Sealed != 0 || again.Present != 12 || !again.Changed() {
		t.Errorf("again: %+v, %v", again, err)
	}
	if len(s.objects()) != len(after) {
		t.Error("a repeated rotation writes")
	}

	// On to a third key and back to the first: what the second key opens is sealed on.
	third := newKey(t)
	s.epoch(machine(0), 999, next.Public())
	if _, err := Rotate(t.Context(), s.bucket, next, third.Public(), Config{Prove: third}); err != nil {
		t.Fatal(err)
	}
	s.opensAll(third)
	_, err = Rotate(t.Context(), s.bucket, next, newKey(t).Public(), Config{})
	wantCode(t, err, dr.KindPrecondition, dr.CodeKeyRotation)
	back, err := Rotate(t.Context(), s.bucket, third, s.old.Public(), Config{Prove: s.old})
	if err != nil || back.Vault.Seq != 3 || back.Present != 12 || back.Sealed != 1 {
		t.Errorf("back: %+v, %v", back, err)
	}
	s.opensAll(s.old)
}

// TestRotateCrash lets the store go away for ever at every call, before and after
// the call had its effect, and then repeats the rotation.
func TestRotateCrash(t *testing.T) {
	t.Parallel()
	for _, kind := range []fault.Kind{fault.ErrorBefore, fault.ErrorAfter} {
		next := newKey(t)
		n := 1
		for ; ; n++ {
			s := newSite(t, 2, 2)
			before := s.objects()
			crash := fault.New(s.bucket, fault.Fault{Op: fault.Any, Nth: n, More: -1, Kind: kind})
			rot, err := Rotate(t.Context(), crash, s.old, next.Public(), Config{Prove: next, Parallel: 1})
			fired := len(crash.Unfired()) == 0
			if fired != (err != nil) {
				t.Fatalf("%v at call %d: %v", kind, n, err)
			}
			if err != nil && dr.KindOf(err) != dr.KindUnavailable {
				t.Fatalf("%v at call %d: %v", kind, n, err)
			}
			unchanged(t, before, s.objects())
			s.opensAll(s.old)
			described := s.objects()[cut.VaultKeyObject(1)] != ""
			if described { // then everything is sealed to the new key
				s.opensAll(next)
			}
			if rot.Changed() && !described {
				t.Fatalf("%v at call %d: reported as changed", kind, n)
			}
			rot, err = Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next})
			if err != nil || !rot.Changed() || rot.Sealed+rot.Present != 4 || rot.Vault.Seq != 1 {
				t.Fatalf("repeated after %v at call %d: %+v, %v", kind, n, rot, err)
			}
			s.opensAll(next)
			unchanged(t, before, s.objects())
			if !fired {
				break
			}
		}
		if n < 20 {
			t.Errorf("only %d calls were attacked", n)
		}
	}
}

// TestRotateLostAnswers loses the answer of single puts: the call settles them by itself.
func TestRotateLostAnswers(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 5; n++ { // 4 epoch keys and the description
		s, next := newSite(t, 2, 2), newKey(t)
		b := fault.New(s.bucket, fault.Fault{Op: fault.Put, Nth: n, Kind: fault.ErrorAfter})
		rot, err := Rotate(t.Context(), b, s.old, next.Public(), Config{Prove: next})
		if err != nil || rot.Sealed != 4 || !rot.Changed() {
			t.Errorf("put %d: %+v, %v", n, rot, err)
		}
		b.Verify(t)
		s.opensAll(next)
	}
}

// TestRotateLateAgent seals an epoch to the old key just before the description is written.
func TestRotateLateAgent(t *testing.T) {
	t.Parallel()
	s, next := newSite(t, 1, 2), newKey(t)
	b := fault.New(s.bucket, fault.Fault{Op: fault.Put, Key: cut.VaultKeysPrefix() + "*", Kind: fault.Call, Func: func(context.Context, fault.Op, string) error {
		s.epoch(machine(0), 700, s.old.Public())
		s.epoch(machine(7), 1, s.old.Public())
		return nil
	}})
	rot, err := Rotate(t.Context(), b, s.old, next.Public(), Config{})
	if err != nil || rot.Sealed != 4 {
		t.Errorf("%+v, %v", rot, err)
	}
	b.Verify(t)
	s.opensAll(next)
}

func TestRotateTwoAtOnce(t *testing.T) {
	t.Parallel()
	s, next := newSite(t, 2, 6), newKey(t)
	errs := make(chan error)
	for range 3 {
		go func() {
			_, err := Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next})
			errs <- err
		}()
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s.opensAll(next)

	// To another key at the same time: one of them learns of it, and nothing is lost.
	s, other := newSite(t, 1, 1), newKey(t)
	b := fault.New(s.bucket, fault.Fault{Op: fault.Put, Key: cut.VaultKeyObject(1), Kind: fault.Call, Func: func(ctx context.Context, _ fault.Op, _ string) error {
		_, err := Rotate(ctx, s.bucket, s.old, other.Public(), Config{})
		return err
	}})
	rot, err := Rotate(t.Context(), b, s.old, next.Public(), Config{})
	wantCode(t, err, dr.KindConflict, dr.CodeKeyRotation)
	b.Verify(t)
	if rot.Changed() || rot.Vault.KeyID != other.KeyID() {
		t.Errorf("%+v", rot)
	}
	s.opensAll(next)
	s.opensAll(other)
}

func TestRotateLeft(t *testing.T) {
	t.Parallel()
	third := newKey(t)
	for name, c := range map[string]struct {
		spoil func(s *site, next cut.VaultPublicKey)
		code  dr.Code
		names string
	}{
		"damaged":        {func(s *site, _ cut.VaultPublicKey) { s.damage(cut.KeyObject(machine(1), 257)) }, dr.CodeObjectCorrupt, "00000101.wrap"},
		"of another key": {func(s *site, _ cut.VaultPublicKey) { s.epoch(machine(1), 300, third.Public()) }, dr.CodeKeyMismatch, third.KeyID().String()},
		"damaged in the way": {func(s *site, next cut.VaultPublicKey) {
			s.put(cut.WrapObject(machine(1), 256, next.KeyID()), s.wrap(machine(1), 256, next, cut.NewEpochKey())[:900])
		}, dr.CodeObjectCorrupt, "in the way"},
		"planted": {func(s *site, next cut.VaultPublicKey) {
			s.put(cut.WrapObject(machine(1), 256, next.KeyID()), s.wrap(machine(1), 256, next, cut.NewEpochKey()))
		}, dr.CodeObjectCorrupt, "another key of epoch 256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, next := newSite(t, 2, 2), newKey(t)
			c.spoil(s, next.Public())
			before := s.objects()
			rot, err := Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next})
			if dr.KindOf(err) != dr.KindPrecondition || dr.CodeOf(err) != dr.CodeKeysLeft {
				t.Fatalf("error %v", err)
			}
			if rot.Changed() || len(rot.Left) != 1 || rot.Left[0].Machine != machine(1) || dr.CodeOf(rot.Left[0].Err) != c.code || !strings.Contains(rot.Left[0].Err.Error(), c.names) {
				t.Fatalf("%+v", rot)
			}
			if rot.Sealed < 3 {
				t.Errorf("only %d others were sealed", rot.Sealed)
			}
			rot, err = Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next, AcceptLeft: true})
			if err != nil || !rot.Changed() || len(rot.Left) != 1 {
				t.Fatalf("accepted: %+v, %v", rot, err)
			}
			unchanged(t, before, s.objects())
			r, err := Check(t.Context(), s.bucket, next, machine(1))
			if name != "planted" && (err != nil || len(r.Problems) == 0) {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
}

func TestRotateVerify(t *testing.T) {
	t.Parallel()
	s, next := newSite(t, 1, 2), newKey(t)
	right := func(_ context.Context, m dr.MachineID, epoch uint32, key cut.EpochKey) error {
		if key != s.keys[m][epoch] {
			return dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "test", "another key")
		}
		return nil
	}
	lying := liar{s.old}
	rot, err := Rotate(t.Context(), s.bucket, lying, next.Public(), Config{Verify: right})
	wantCode(t, err, dr.KindPrecondition, dr.CodeKeysLeft)
	if rot.Sealed != 0 || len(rot.Left) != 2 {
		t.Errorf("%+v", rot)
	}
	if rot, err = Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Verify: right}); err != nil || rot.Sealed != 2 {
		t.Errorf("%+v, %v", rot, err)
	}
	// A new key that does not open what is sealed to it is found out before anything is stored.
	s = newSite(t, 1, 1)
	_, err = Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: liar{next}})
	wantCode(t, err, dr.KindPrecondition, dr.CodeKeyRotation)
	if n := len(s.objects()); n != 3 {
		t.Errorf("%d objects", n)
	}
}

// liar is a key store with a defect.
type liar struct{ cut.VaultPrivateKey }

func (l liar) OpenEpochKey(ctx context.Context, m dr.MachineID, epoch uint32, wrap []byte) (cut.EpochKey, error) {
	key, err := l.VaultPrivateKey.OpenEpochKey(ctx, m, epoch, wrap)
	key[3] ^= 1
	return key, err
}

func TestRotateRefuses(t *testing.T) {
	t.Parallel()
	s, next := newSite(t, 1, 1), newKey(t)
	for name, c := range map[string]struct {
		old cut.VaultPrivateKey
		to  cut.VaultPublicKey
		cfg Config
	}{
		"no key":             {s.old, cut.VaultPublicKey{}, Config{}},
		"the same key":       {s.old, s.old.Public(), Config{}},
		"proof by other":     {s.old, next.Public(), Config{Prove: s.old}},
		"too many at a time": {s.old, next.Public(), Config{Parallel: 65}},
	} {
		if _, err := Rotate(t.Context(), s.bucket, c.old, c.to, c.cfg); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Rotate(t.Context(), mem.New(), s.old, next.Public(), Config{})
	if err == nil || len(s.objects()) != 3 {
		t.Errorf("empty store: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Rotate(ctx, s.bucket, s.old, next.Public(), Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestRewrap is escrow by a second key: the vault's key stays.
func TestRewrap(t *testing.T) {
	t.Parallel()
	s, escrow := newSite(t, 2, 2), newKey(t)
	rot, err := Rewrap(t.Context(), s.bucket, s.old, escrow.Public(), Config{Prove: escrow})
	if err != nil || rot.Sealed != 4 || rot.Changed() || rot.Vault.KeyID != s.old.KeyID() {
		t.Errorf("%+v, %v", rot, err)
	}
	s.opensAll(escrow)
	// A later rotation does not mind.
	next := newKey(t)
	if _, err := Rotate(t.Context(), s.bucket, s.old, next.Public(), Config{Prove: next}); err != nil {
		t.Fatal(err)
	}
	s.opensAll(next)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 3)
	stranger := newKey(t)
	r, err := Check(t.Context(), s.bucket, s.old, machine(0))
	if err != nil || r.Err() != nil || !slices.Equal(r.Opened, []uint32{256, 257, 258}) {
		t.Errorf("%v, %v", r, err)
	}
	r, err = Check(t.Context(), s.bucket, stranger, machine(0))
	if err != nil || len(r.Opened) != 0 || len(r.Problems) != 3 {
		t.Errorf("%v, %v", r, err)
	}
	if dr.CodeOf(r.Err()) != dr.CodeKeyOpensNotAll || !strings.Contains(r.Err().Error(), s.old.KeyID().String()) {
		t.Errorf("%v", r.Err())
	}
	_, err = Check(t.Context(), s.bucket, s.old, machine(9))
	wantCode(t, err, dr.KindNotFound, "")
	_, err = Check(t.Context(), fault.New(s.bucket, fault.Fault{Op: fault.Get, Nth: 2, Kind: fault.ErrorBefore}), s.old, machine(0))
	wantCode(t, err, dr.KindUnavailable, dr.CodeStoreUnreachable)

	// Two objects for one key and epoch have to agree.
	s.put(cut.WrapObject(machine(0), 256, s.old.KeyID()), s.wrap(machine(0), 256, s.old.Public(), cut.NewEpochKey()))
	s.damage(cut.KeyObject(machine(0), 258))
	r, err = Check(t.Context(), s.bucket, s.old, machine(0))
	if err != nil || len(r.Problems) != 2 || r.Problems[0].Epoch != 256 || r.Problems[1].Epoch != 258 || !slices.Equal(r.Opened, []uint32{256, 257}) {
		t.Errorf("%+v, %v", r, err)
	}
	// Wrong, but whole from outside: only opening finds it.
	b := s.wrap(machine(1), 401, s.old.Public(), cut.NewEpochKey())
	b[len(b)-10] ^= 1
	binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli)))
	s.put(cut.KeyObject(machine(1), 401), b)
	r, err = Check(t.Context(), s.bucket, s.old, machine(1))
	if err != nil || len(r.Problems) != 1 || r.Problems[0].Epoch != 401 {
		t.Errorf("%+v, %v", r, err)
	}
}
