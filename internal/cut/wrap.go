package cut

import (
	"bytes"
	"context"
	"crypto/hpke"

	"holdfast/internal/dr"
)

// Layout of a sealed epoch key; see docs/store-format.md.
const (
	wrapMagic   = "HOLDFKEY"
	wrapVersion = 1
	wrapSuite   = 1 // HPKE base mode, MLKEM768-X25519, HKDF-SHA256, AES-256-GCM
	wrapFixed   = 52
	wrapPayload = 1120 + 32 + 16 // encapsulation, key, tag
	wrapSize    = wrapFixed + wrapPayload + 4
	wrapPurpose = "holdfast v1 epoch key"
)

// SealEpochKey seals an epoch key to the vault for one machine and epoch. The
// result is the content of KeyObject(machine, epoch).
func SealEpochKey(pub VaultPublicKey, machine dr.MachineID, epoch uint32, key EpochKey) ([]byte, error) {
	const op = "cut.SealEpochKey"
	id, ok := machineBytes(machine)
	if !ok {
		return nil, invalid(op, "machine id %q is not a lower-case UUID", machine)
	}
	if pub.k == nil {
		return nil, invalid(op, "there is no vault key to seal to")
	}
	w := make([]byte, wrapFixed, wrapSize)
	copy(w, wrapMagic)
	le.PutUint16(w[8:], wrapVersion)
	w[10] = wrapSuite
	le.PutUint32(w[12:], epoch)
	copy(w[16:], id[:])
	keyID := pub.KeyID()
	copy(w[32:], keyID[:])
	le.PutUint32(w[48:], wrapPayload)
	sealed, err := hpke.Seal(pub.k, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(w), key[:])
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "seal epoch key: %w", err)
	}
	if len(sealed) != wrapPayload {
		return nil, dr.Errorf(dr.KindInternal, op, "seal epoch key: got %d bytes, want %d", len(sealed), wrapPayload)
	}
	w = append(w, sealed...)
	return le.AppendUint32(w, crc(w)), nil
}

// wrapInfo binds the sealed key to the fields before it.
func wrapInfo(w []byte) []byte { return append([]byte(wrapPurpose), w[:wrapFixed]...) }

// KeyOpener opens epoch keys that are sealed to one vault key. VaultPrivateKey
// is one; another may ask a key store outside the process, so calls may take
// time and fail for a while. It is safe for concurrent use.
type KeyOpener interface {
	// ID is the fingerprint of the vault key.
	ID() KeyID
	// OpenEpochKey opens the content of KeyObject(machine, epoch) or of
	// WrapObject(machine, epoch, ID()), with the errors of the function OpenEpochKey.
	OpenEpochKey(ctx context.Context, machine dr.MachineID, epoch uint32, wrap []byte) (EpochKey, error)
}

var _ KeyOpener = VaultPrivateKey{}

// ID implements KeyOpener; it is KeyID.
func (p VaultPrivateKey) ID() KeyID { return p.KeyID() }

// OpenEpochKey implements KeyOpener.
func (p VaultPrivateKey) OpenEpochKey(_ context.Context, machine dr.MachineID, epoch uint32, wrap []byte) (EpochKey, error) {
	return OpenEpochKey(p, machine, epoch, wrap)
}

// RewrapEpochKey opens a sealed epoch key and seals it to another vault key, for
// a rotation or for escrow. The result is the content of
// WrapObject(machine, epoch, to.KeyID()), which is stored beside the old one.
func RewrapEpochKey(ctx context.Context, from KeyOpener, to VaultPublicKey, machine dr.MachineID, epoch uint32, wrap []byte) ([]byte, error) {
	key, err := from.OpenEpochKey(ctx, machine, epoch, wrap)
	if err != nil {
		return nil, err
	}
	return SealEpochKey(to, machine, epoch, key)
}

// WrapKeyID checks all of a sealed epoch key that can be checked without the
// vault's private key and returns the key that it is sealed to. name is where
// it is stored: the content of a WrapObject must be sealed to the key of its name.
func WrapKeyID(name ObjectName, wrap []byte) (KeyID, error) {
	const op = "cut.WrapKeyID"
	if name.Class != ClassKey {
		return KeyID{}, invalid(op, "%q is not the name of a sealed key", name.Key())
	}
	id, err := checkWrap(op, name.Key(), name.Machine, name.Epoch, wrap)
	if err == nil && name.KeyID != (KeyID{}) && id != name.KeyID {
		return KeyID{}, corrupt(op, name.Key(), "key id", 32, "it is sealed to vault key %s", id)
	}
	return id, err
}

// OpenEpochKey opens the content of KeyObject(machine, epoch). A key sealed to
// another vault key is dr.CodeKeyMismatch; a damaged object, or one that
// belongs under another name, is dr.CodeObjectCorrupt.
func OpenEpochKey(priv VaultPrivateKey, machine dr.MachineID, epoch uint32, wrap []byte) (EpochKey, error) {
	const op = "cut.OpenEpochKey"
	name := KeyObject(machine, epoch)
	if priv.k == nil {
		return EpochKey{}, invalid(op, "there is no vault private key to open %q with", name)
	}
	id, err := checkWrap(op, name, machine, epoch, wrap)
	if err != nil {
		return EpochKey{}, err
	}
	if have := priv.KeyID(); id != have {
		return EpochKey{}, dr.New(dr.KindForbidden, dr.CodeKeyMismatch, op, "object %q is sealed to vault key %s, the private key given is %s", name, id, have)
	}
	plain, err := hpke.Open(priv.k, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(wrap), wrap[wrapFixed:wrapFixed+wrapPayload])
	if err != nil || len(plain) != len(EpochKey{}) {
		return EpochKey{}, corrupt(op, name, "sealed key", wrapFixed, "it does not open with the vault key that it names")
	}
	return EpochKey(plain), nil
}

// checkWrap checks what is not sealed and returns the vault key.
func checkWrap(op, name string, machine dr.MachineID, epoch uint32, wrap []byte) (KeyID, error) {
	id, ok := machineBytes(machine)
	if !ok {
		return KeyID{}, invalid(op, "machine id %q is not a lower-case UUID", machine)
	}
	switch {
	case len(wrap) < wrapFixed+4:
		return KeyID{}, corrupt(op, name, "sealed key", 0, "%d bytes are too few", len(wrap))
	case string(wrap[:8]) != wrapMagic:
		return KeyID{}, corrupt(op, name, "magic", 0, "not a sealed key")
	case le.Uint32(wrap[len(wrap)-4:]) != crc(wrap[:len(wrap)-4]):
		return KeyID{}, corrupt(op, name, "sealed key", int64(len(wrap)-4), "checksum does not match")
	case le.Uint16(wrap[8:]) != wrapVersion || wrap[10] != wrapSuite:
		return KeyID{}, unsupported(op, name, "sealed key of version %d, suite %d; this program knows version %d, suite %d", le.Uint16(wrap[8:]), wrap[10], wrapVersion, wrapSuite)
	case len(wrap) != wrapSize || le.Uint32(wrap[48:]) != wrapPayload || wrap[11] != 0:
		return KeyID{}, corrupt(op, name, "sealed key", 48, "%d bytes in all, want %d", len(wrap), wrapSize)
	case !bytes.Equal(wrap[16:32], id[:]) || le.Uint32(wrap[12:]) != epoch:
		return KeyID{}, corrupt(op, name, "sealed key", 12, "it is the key of epoch %d of machine %s", le.Uint32(wrap[12:]), machineID([16]byte(wrap[16:32])))
	}
	return KeyID(wrap[32:48]), nil
}
