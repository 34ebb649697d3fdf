package cut

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/dr"
)

// VaultInfo is the content of vault.json: which vault owns the store and to
// which key its data is sealed. It says nothing secret and proves nothing: an
// agent takes the vault's public key from its registration, never from here.
//
// When the key is rotated, a further description with the next Seq is written
// beside it, under VaultKeyObject(Seq); see NewestVault.
type VaultInfo struct {
	Version   int       `json:"version"` // set by Marshal
	VaultID   string    `json:"vaultId"`
	Name      string    `json:"name,omitempty"`
	KeyID     KeyID     `json:"keyId"`     // of PublicKey; set by Marshal
	PublicKey string    `json:"publicKey"` // VaultPublicKey.Text
	Created   time.Time `json:"created"`
	Software  string    `json:"software,omitempty"` // version of Holdfast that made the store
	Seq       uint32    `json:"seq,omitempty"`      // 0 in vault.json, then 1, 2, ...
	Previous  KeyID     `json:"previous,omitzero"`  // key of description Seq-1; zero in vault.json
}

// Object is the key under which the description is stored.
func (v VaultInfo) Object() string {
	if v.Seq == 0 {
		return VaultObject()
	}
	return VaultKeyObject(v.Seq)
}

func (v VaultInfo) problem(key VaultPublicKey) string {
	switch {
	case v.VaultID == "":
		return "the vault has no id"
	case (v.Seq == 0) != (v.Previous == KeyID{}):
		return "every description but the first names the key before it"
	case v.Previous == key.KeyID():
		return "the key before it is the same key"
	}
	return ""
}

// Key parses the public key.
func (v VaultInfo) Key() (VaultPublicKey, error) { return ParseVaultPublicKey(v.PublicKey) }

// Marshal returns the bytes of v.Object(). KeyID and Version are filled in.
func (v VaultInfo) Marshal() ([]byte, error) {
	const op = "cut.VaultInfo"
	key, err := v.Key()
	if err != nil {
		return nil, err
	}
	if p := v.problem(key); p != "" {
		return nil, invalid(op, "%s: %s", v.Object(), p)
	}
	v.Version, v.KeyID, v.Created = recordVersion, key.KeyID(), v.Created.UTC()
	return marshalRecord(op, v, recordMax)
}

// ParseVaultInfo parses vault.json.
func ParseVaultInfo(b []byte) (VaultInfo, error) {
	return ParseVaultKey(ObjectName{Class: ClassVault}, b)
}

// ParseVaultKey parses the description of the vault stored under name, which is
// of ClassVault or ClassVaultKey.
func ParseVaultKey(name ObjectName, b []byte) (VaultInfo, error) {
	const op = "cut.ParseVaultInfo"
	object := name.Key()
	if name.Class != ClassVault && name.Class != ClassVaultKey {
		return VaultInfo{}, invalid(op, "%q is not the name of a description of the vault", object)
	}
	var v VaultInfo
	if err := parseRecord(op, object, b, &v, recordMax); err != nil {
		return VaultInfo{}, err
	}
	key, err := v.Key()
	if err != nil {
		return VaultInfo{}, corrupt(op, object, "public key", 0, "%v", err)
	}
	if key.KeyID() != v.KeyID {
		return VaultInfo{}, corrupt(op, object, "key id", 0, "public key %s does not have the fingerprint %s", key.KeyID(), v.KeyID)
	}
	if uint64(v.Seq) != name.Seq {
		return VaultInfo{}, corrupt(op, object, "identity", 0, "it is description %d of the vault", v.Seq)
	}
	if p := v.problem(key); p != "" {
		return VaultInfo{}, corrupt(op, object, "content", 0, "%s", p)
	}
	return v, nil
}

// NewestVault returns the newest of the descriptions of a vault, given in any
// order and all that there are, vault.json among them. A description that is
// missing, or does not name the vault and the key of the one before it, is an
// error with dr.KindCorrupt.
func NewestVault(all []VaultInfo) (VaultInfo, error) {
	const op = "cut.NewestVault"
	sorted := slices.SortedFunc(slices.Values(all), func(a, b VaultInfo) int { return cmp.Compare(a.Seq, b.Seq) })
	for i, v := range sorted {
		switch {
		case uint64(v.Seq) != uint64(i):
			missing := VaultInfo{Seq: uint32(i)}.Object()
			return VaultInfo{}, dr.New(dr.KindCorrupt, dr.CodeObjectMissing, op, "object %q is missing: object %q is there", missing, v.Object())
		case i > 0 && (v.VaultID != sorted[i-1].VaultID || v.Previous != sorted[i-1].KeyID):
			return VaultInfo{}, corrupt(op, v.Object(), "previous key", 0, "it follows key %s of vault %q, %q has key %s of vault %q",
				v.Previous, v.VaultID, sorted[i-1].Object(), sorted[i-1].KeyID, sorted[i-1].VaultID)
		}
	}
	if len(sorted) == 0 {
		return VaultInfo{}, dr.New(dr.KindCorrupt, dr.CodeObjectMissing, op, "object %q is missing", VaultObject())
	}
	return sorted[len(sorted)-1], nil
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
	return marshalRecord(op, g, recordMax)
}

// ParseGenInfo parses the generation object stored under name.
func ParseGenInfo(name ObjectName, b []byte) (GenInfo, error) {
	const op = "cut.ParseGenInfo"
	var g GenInfo
	key := name.Key()
	if name.Class != ClassGeneration {
		return GenInfo{}, invalid(op, "%q is not the name of a generation object", key)
	}
	if err := parseRecord(op, key, b, &g, recordMax); err != nil {
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

// Lease is the content of a lease object: somebody reads a point, so nothing
// that the point needs may be deleted before Expires. A lease is renewed by a
// further object with the same UID and a later Expires.
type Lease struct {
	Version int           `json:"version"` // set by Marshal
	Machine dr.MachineID  `json:"machine"`
	UID     string        `json:"uid"` // see NewUID
	Gen     dr.Generation `json:"gen"` // of the point
	N       uint64        `json:"n"`
	Holder  string        `json:"holder"` // who reads and why, for people
	Time    time.Time     `json:"time"`
	Expires time.Time     `json:"expires"` // in whole seconds; Marshal rounds up
}

// ends returns Expires in unix seconds, rounded up.
func (l Lease) ends() int64 {
	if l.Expires.Nanosecond() > 0 {
		return l.Expires.Unix() + 1
	}
	return l.Expires.Unix()
}

// Name is the name under which the lease is stored.
func (l Lease) Name() ObjectName {
	return ObjectName{Class: ClassLease, Machine: l.Machine, Expires: l.ends(), UID: l.UID}
}

func (l Lease) problem() string {
	switch _, ok := machineBytes(l.Machine); {
	case !ok:
		return "the machine id is not a lower-case UUID"
	case l.Gen == 0:
		return "generation 0 does not exist"
	case !validUID(l.UID):
		return "the uid is not 1 to 36 characters of a-z, 0-9 and '-'"
	case l.Time.IsZero() || l.Expires.Before(l.Time) || l.Expires.Unix() < 0:
		return "it ends before it begins"
	}
	return ""
}

// Marshal returns the bytes of the object l.Name(). Version is filled in.
func (l Lease) Marshal() ([]byte, error) {
	const op = "cut.Lease"
	if p := l.problem(); p != "" {
		return nil, invalid(op, "lease %q on machine %q: %s", l.UID, l.Machine, p)
	}
	l.Version, l.Time, l.Expires = recordVersion, l.Time.UTC(), time.Unix(l.ends(), 0).UTC()
	return marshalRecord(op, l, recordMax)
}

// ParseLease parses the lease stored under name.
func ParseLease(name ObjectName, b []byte) (Lease, error) {
	const op = "cut.ParseLease"
	var l Lease
	if err := parseMachineRecord(op, ClassLease, name, b, &l, recordMax); err != nil {
		return Lease{}, err
	}
	if p := l.problem(); p != "" {
		return Lease{}, corrupt(op, name.Key(), "content", 0, "%s", p)
	}
	if l.Name() != name || l.Expires.Nanosecond() != 0 {
		return Lease{}, corrupt(op, name.Key(), "identity", 0, "it belongs under the name %q", l.Name())
	}
	return l, nil
}

// MaxManifest is the greatest size of a manifest in bytes.
const MaxManifest = 16 << 20

// Manifest is the content of a manifest object: the plan of one maintenance
// pass over one machine, written before anything is done, so that whoever comes
// after a crash goes on with it, and so that of two who would work at once only
// one does. Manifests of a machine count up; only the newest is ever worked on,
// and losing them all loses no data.
type Manifest struct {
	Version  int             `json:"version"` // set by Marshal
	Machine  dr.MachineID    `json:"machine"`
	Seq      uint64          `json:"seq"`
	Gen      dr.Generation   `json:"gen"` // current when the plan was made: a higher one makes the plan void
	Tip      Ref             `json:"tip"` // newest position known when the plan was made
	Time     time.Time       `json:"time"`
	Software string          `json:"software,omitempty"`
	Keep     []Ref           `json:"keep"`             // recovery points that stay, in order
	Runs     []PlannedRun    `json:"runs,omitempty"`   // to be written
	Delete   []string        `json:"delete,omitempty"` // keys of objects that no history leads to when the runs are there
	After    time.Time       `json:"after,omitzero"`   // nothing is deleted before
	Detail   json.RawMessage `json:"detail,omitempty"` // what else the planner wants to find again
}

// PlannedRun is a run or map to be written.
type PlannedRun struct {
	From Ref    `json:"from,omitzero"` // zero = complete
	To   Ref    `json:"to"`
	UID  string `json:"uid"`           // of the run and of its data and tile images, so that a repeated pass meets its own objects
	Map  bool   `json:"map,omitempty"` // a checkpoint, not a run
}

// Name is the name under which the manifest is stored.
func (m Manifest) Name() ObjectName {
	return ObjectName{Class: ClassManifest, Machine: m.Machine, Seq: m.Seq}
}

func (m Manifest) problem() string {
	switch _, ok := machineBytes(m.Machine); {
	case !ok:
		return "the machine id is not a lower-case UUID"
	case m.Gen == 0 || m.Time.IsZero():
		return "it has no generation or no time"
	case len(m.Delete) != 0 && m.After.IsZero():
		return "it does not say when deleting may begin"
	}
	for _, r := range m.Runs {
		if !validUID(r.UID) || r.To.Gen == 0 || r.To.Gen > m.Gen || r.To.Hash.IsZero() || !r.From.IsZero() && (r.Map || r.From.N == 0 || r.From.N >= r.To.N || r.From.Gen > r.To.Gen) {
			return fmt.Sprintf("no run goes from cut %d to cut %d of generation %d", r.From.N, r.To.N, r.To.Gen)
		}
	}
	for _, key := range m.Delete {
		o, err := ParseObject(key)
		if err != nil || o.Machine != m.Machine {
			return fmt.Sprintf("%q is not the name of an object of the machine", key)
		}
		switch o.Class {
		case ClassCut, ClassPart, ClassTile, ClassRun, ClassMap, ClassData, ClassManifest, ClassLease:
		default: // the history or its keys would be lost
			return fmt.Sprintf("%q is never deleted by maintenance", key)
		}
	}
	return ""
}

// Marshal returns the bytes of the object m.Name(), at most MaxManifest. Version is
// filled in. A plan that would delete what belongs to another machine, a
// generation object or a sealed key is refused, here and by ParseManifest.
func (m Manifest) Marshal() ([]byte, error) {
	const op = "cut.Manifest"
	if p := m.problem(); p != "" {
		return nil, invalid(op, "manifest %d of machine %q: %s", m.Seq, m.Machine, p)
	}
	m.Version, m.Time = recordVersion, m.Time.UTC()
	if !m.After.IsZero() {
		m.After = m.After.UTC()
	}
	return marshalRecord(op, m, MaxManifest)
}

// ParseManifest parses the manifest stored under name.
func ParseManifest(name ObjectName, b []byte) (Manifest, error) {
	const op = "cut.ParseManifest"
	var m Manifest
	if err := parseMachineRecord(op, ClassManifest, name, b, &m, MaxManifest); err != nil {
		return Manifest{}, err
	}
	if m.Name() != name {
		return Manifest{}, corrupt(op, name.Key(), "identity", 0, "it belongs under the name %q", m.Name())
	}
	if p := m.problem(); p != "" {
		return Manifest{}, corrupt(op, name.Key(), "content", 0, "%s", p)
	}
	return m, nil
}

func parseMachineRecord(op string, class Class, name ObjectName, b []byte, v any, limit int) error {
	if name.Class != class {
		return invalid(op, "%q is not the name of a %s", name.Key(), class)
	}
	return parseRecord(op, name.Key(), b, v, limit)
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

func marshalRecord(op string, v any, limit int) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "encode: %w", err)
	}
	sum := sha256.Sum256(body)
	b := append([]byte(recordHead), body...)
	b = append(b, recordMiddle...)
	b = hex.AppendEncode(b, sum[:])
	if b = append(b, recordTail...); len(b) > limit {
		return nil, invalid(op, "the record has %d bytes, at most %d are allowed", len(b), limit)
	}
	return b, nil
}

func parseRecord(op, object string, b []byte, v any, limit int) error {
	const behind = len(recordMiddle) + 2*sha256.Size + len(recordTail)
	if len(b) > limit {
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
