package cut

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"holdfast/internal/dr"
)

// VaultInfo is the content of vault.json: which vault owns the store and to
// which key its data is sealed. It says nothing secret and proves nothing: an
// agent takes the vault's public key from its registration, never from here.
type VaultInfo struct {
	Version   int       `json:"version"` // set by Marshal
	VaultID   string    `json:"vaultId"`
	Name      string    `json:"name,omitempty"`
	KeyID     KeyID     `json:"keyId"`     // of PublicKey; set by Marshal
	PublicKey string    `json:"publicKey"` // VaultPublicKey.Text
	Created   time.Time `json:"created"`
	Software  string    `json:"software,omitempty"` // version of Holdfast that made the store
}

// Key parses the public key.
func (v VaultInfo) Key() (VaultPublicKey, error) { return ParseVaultPublicKey(v.PublicKey) }

// Marshal returns the bytes of vault.json. KeyID and Version are filled in.
func (v VaultInfo) Marshal() ([]byte, error) {
	const op = "cut.VaultInfo"
	key, err := v.Key()
	if err != nil {
		return nil, err
	}
	if v.VaultID == "" {
		return nil, invalid(op, "the vault has no id")
	}
	v.Version, v.KeyID, v.Created = recordVersion, key.KeyID(), v.Created.UTC()
	return marshalRecord(op, v)
}

// ParseVaultInfo parses vault.json.
func ParseVaultInfo(b []byte) (VaultInfo, error) {
	const op = "cut.ParseVaultInfo"
	var v VaultInfo
	if err := parseRecord(op, VaultObject(), b, &v); err != nil {
		return VaultInfo{}, err
	}
	key, err := v.Key()
	if err != nil {
		return VaultInfo{}, corrupt(op, VaultObject(), "public key", 0, "%v", err)
	}
	if key.KeyID() != v.KeyID || v.VaultID == "" {
		return VaultInfo{}, corrupt(op, VaultObject(), "key id", 0, "public key %s does not have the fingerprint %s", key.KeyID(), v.KeyID)
	}
	return v, nil
}

// GenInfo is the content of a generation object: who may write the generation
// and which cut it continues from.
type GenInfo struct {
	Version int           `json:"version"` // set by Marshal
	Machine dr.MachineID  `json:"machine"`
	Gen     dr.Generation `json:"gen"`
	Base    Ref           `json:"base"` // last cut of an older generation that stays valid; zero for a fresh start
	Agent   dr.AgentID    `json:"agent"`
	Reason  string        `json:"reason"` // protect, takeover, resync, failover, reverse, ...
	Time    time.Time     `json:"time"`
}

func (g GenInfo) problem() string {
	switch _, ok := machineBytes(g.Machine); {
	case !ok:
		return "the machine id is not a lower-case UUID"
	case g.Gen == 0:
		return "generation 0 does not exist"
	case !g.Base.IsZero() && (g.Base.Gen >= g.Gen || g.Base.Gen == 0):
		return "the base is not of an older generation"
	}
	return ""
}

// Marshal returns the bytes of GenObject(g.Machine, g.Gen). Version is filled in.
func (g GenInfo) Marshal() ([]byte, error) {
	const op = "cut.GenInfo"
	if p := g.problem(); p != "" {
		return nil, invalid(op, "generation %d of machine %q: %s", g.Gen, g.Machine, p)
	}
	g.Version, g.Time = recordVersion, g.Time.UTC()
	return marshalRecord(op, g)
}

// ParseGenInfo parses the generation object stored under name.
func ParseGenInfo(name ObjectName, b []byte) (GenInfo, error) {
	const op = "cut.ParseGenInfo"
	var g GenInfo
	key := name.Key()
	if name.Class != ClassGeneration {
		return GenInfo{}, invalid(op, "%q is not the name of a generation object", key)
	}
	if err := parseRecord(op, key, b, &g); err != nil {
		return GenInfo{}, err
	}
	if g.Machine != name.Machine || g.Gen != name.Gen {
		return GenInfo{}, corrupt(op, key, "identity", 0, "it is generation %d of machine %q", g.Gen, g.Machine)
	}
	if p := g.problem(); p != "" {
		return GenInfo{}, corrupt(op, key, "content", 0, "%s", p)
	}
	return g, nil
}

// A record is one line of JSON with a checksum over the exact bytes of its
// body, so that damage is told from intent without any canonical form:
//
//	{"holdfast":BODY,"sha256":"<64 hexadecimal digits>"}
const (
	recordVersion = 1
	recordMax     = 64 << 10
	recordHead    = `{"holdfast":`
	recordMiddle  = `,"sha256":"`
	recordTail    = "\"}\n"
)

func marshalRecord(op string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "encode: %w", err)
	}
	sum := sha256.Sum256(body)
	b := append([]byte(recordHead), body...)
	b = append(b, recordMiddle...)
	b = hex.AppendEncode(b, sum[:])
	if b = append(b, recordTail...); len(b) > recordMax {
		return nil, invalid(op, "the record has %d bytes, at most %d are allowed", len(b), recordMax)
	}
	return b, nil
}

func parseRecord(op, object string, b []byte, v any) error {
	const behind = len(recordMiddle) + 2*sha256.Size + len(recordTail)
	if len(b) > recordMax {
		return corrupt(op, object, "record", 0, "%d bytes are too many", len(b))
	}
	end := len(b) - behind
	if end < len(recordHead) || !bytes.HasPrefix(b, []byte(recordHead)) || !bytes.HasPrefix(b[end:], []byte(recordMiddle)) || !bytes.HasSuffix(b, []byte(recordTail)) {
		return corrupt(op, object, "record", 0, "not a record of this format, or cut short")
	}
	body := b[len(recordHead):end]
	sum := sha256.Sum256(body)
	if string(hex.AppendEncode(nil, sum[:])) != string(b[end+len(recordMiddle):len(b)-len(recordTail)]) {
		return corrupt(op, object, "record", int64(end), "checksum does not match")
	}
	var ver struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(body, &ver); err != nil {
		return corrupt(op, object, "record", int64(len(recordHead)), "%v", err)
	}
	if ver.Version != recordVersion {
		return unsupported(op, object, "record version %d; this program knows %d", ver.Version, recordVersion)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return corrupt(op, object, "record", int64(len(recordHead)), "%v", err)
	}
	return nil
}
