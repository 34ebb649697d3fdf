package store_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// After a rotation the new key opens what was sealed to the old one.
func TestKeyringFindsRotatedKeys(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 1<<20)
	r.Write(0, 0, bytes.Repeat([]byte{7}, 4096))
	pt := r.Base()
	next, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(store.Config{Bucket: r.Bucket, Keys: store.NewKeyring(r.Bucket, next)})
	if err := r.Compare(t.Context(), s, pt); dr.CodeOf(err) != dr.CodeKeyMismatch {
		t.Fatalf("before the rotation: %v", err)
	}
	wrap, err := cut.SealEpochKey(next.Public(), r.Machine, 1, r.Key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(wrap)
	if err := r.Bucket.PutNew(t.Context(), cut.WrapObject(r.Machine, 1, next.KeyID()), bytes.NewReader(wrap), int64(len(wrap)), &sum); err != nil {
		t.Fatal(err)
	}
	for _, key := range []cut.VaultPrivateKey{next, r.Private} {
		s := store.New(store.Config{Bucket: r.Bucket, Keys: store.NewKeyring(r.Bucket, key)})
		if err := r.Compare(t.Context(), s, pt); err != nil {
			t.Errorf("key %s: %v", key.KeyID(), err)
		}
		if epochs, err := s.Epochs(t.Context(), r.Machine); err != nil || len(epochs) != 1 {
			t.Errorf("epochs %v, %v", epochs, err)
		}
	}
}
