package cut

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"holdfast/internal/dr"
)

// Class is what an object of the store is, as its name says.
type Class uint8

// The object classes of format version 1.
const (
	ClassVault      Class = iota + 1 // vault.json
	ClassKey                         // a sealed epoch key
	ClassGeneration                  // a generation object
	ClassCut                         // a commit object
	ClassPart                        // an overflow part of a cut
	ClassTile                        // a tile image
	ClassRun                         // what a run of expired cuts amounts to
	ClassMap                         // a checkpoint: what all cuts up to one amount to
	ClassData                        // data rewritten for runs
	ClassManifest                    // the plan of one maintenance pass
	ClassLease                       // a reader's lease
	ClassVaultKey                    // a later description of the vault, with a rotated key
)

// String returns the class's name in messages.
func (c Class) String() string {
	switch c {
	case ClassVault:
		return "vault"
	case ClassKey:
		return "key"
	case ClassGeneration:
		return "generation"
	case ClassCut:
		return "cut"
	case ClassPart:
		return "part"
	case ClassTile:
		return "tile"
	case ClassRun:
		return "run"
	case ClassMap:
		return "map"
	case ClassData:
		return "data"
	case ClassManifest:
		return "manifest"
	case ClassLease:
		return "lease"
	case ClassVaultKey:
		return "vault key"
	}
	return "class(" + strconv.Itoa(int(c)) + ")"
}

// ObjectName is a parsed object key. Fields that the class does not have are zero.
type ObjectName struct {
	Class   Class
	Machine dr.MachineID  // all but ClassVault and ClassVaultKey
	Epoch   uint32        // ClassKey
	KeyID   KeyID         // ClassKey: the vault key that the epoch key was sealed to again; zero = as the agent sealed it
	Gen     dr.Generation // ClassGeneration and segments; of the position reached for ClassRun, ClassMap and ClassData
	N       uint64        // segments: number of the cut, or of the position reached
	From    uint64        // ClassRun: the position that it goes on from; 0 = complete, nothing older is needed
	Attempt uint32        // ClassPart
	K       int           // ClassPart and ClassData, 0..0xffff
	Disk    uint16        // ClassTile
	Tile    uint32        // ClassTile: number of the 64 MiB tile, counted from the disk's start
	UID     string        // ClassTile, ClassRun, ClassMap, ClassData, ClassLease: tells apart what would have the same name
	Seq     uint64        // ClassManifest; ClassVaultKey, 1..0xffffffff
	Expires int64         // ClassLease: unix seconds, not negative
}

// MaxUID is the greatest length of a uid in bytes.
const MaxUID = 36

const root = "v1/"

// VaultObject is the key of the vault description.
func VaultObject() string { return root + "vault.json" }

// VaultKeysPrefix is the common prefix of the later descriptions of the vault.
func VaultKeysPrefix() string { return root + "vault/" }

// VaultKeyObject is the key of description seq (from 1) of the vault.
func VaultKeyObject(seq uint32) string { return fmt.Sprintf("%s%08x.json", VaultKeysPrefix(), seq) }

// MachinesPrefix is the common prefix of all machines' objects.
func MachinesPrefix() string { return root + "m/" }

// MachinePrefix is the common prefix of everything kept for one machine.
func MachinePrefix(m dr.MachineID) string { return MachinesPrefix() + string(m) + "/" }

// KeyPrefix is the common prefix of a machine's sealed epoch keys.
func KeyPrefix(m dr.MachineID) string { return MachinePrefix(m) + "key/" }

// GensPrefix is the common prefix of a machine's generation objects.
func GensPrefix(m dr.MachineID) string { return MachinePrefix(m) + "gen/" }

// ManifestPrefix is the common prefix of a machine's maintenance plans. Their keys sort by number.
func ManifestPrefix(m dr.MachineID) string { return MachinePrefix(m) + "man/" }

// LeasePrefix is the common prefix of the leases of a machine's readers. Their keys sort by expiry.
func LeasePrefix(m dr.MachineID) string { return MachinePrefix(m) + "lease/" }

// GenPrefix is the common prefix of the segments of one generation.
func GenPrefix(m dr.MachineID, gen dr.Generation) string {
	return fmt.Sprintf("%s%08x/", MachinePrefix(m), uint32(gen))
}

// CutPrefix is the common prefix of a generation's cuts. Their keys sort by cut number.
func CutPrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "cut/" }

// PartPrefix is the common prefix of a generation's parts.
func PartPrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "part/" }

// TilePrefix is the common prefix of a generation's tile images.
func TilePrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "img/" }

// RunPrefix is the common prefix of the runs that reach a position of a
// generation. Their keys sort by that position and then by the one they go on from.
func RunPrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "run/" }

// MapPrefix is the common prefix of a generation's checkpoints. Their keys sort by position.
func MapPrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "map/" }

// DataPrefix is the common prefix of the data rewritten for a generation's runs.
func DataPrefix(m dr.MachineID, gen dr.Generation) string { return GenPrefix(m, gen) + "data/" }

// KeyObject is the key of the sealed key of an epoch.
func KeyObject(m dr.MachineID, epoch uint32) string {
	return fmt.Sprintf("%s%08x.wrap", KeyPrefix(m), epoch)
}

// WrapObject is the key of the sealed key of an epoch, sealed again to the vault key id.
func WrapObject(m dr.MachineID, epoch uint32, id KeyID) string {
	return fmt.Sprintf("%s%08x.%s.wrap", KeyPrefix(m), epoch, id)
}

// ManifestObject is the key of maintenance plan seq.
func ManifestObject(m dr.MachineID, seq uint64) string {
	return fmt.Sprintf("%s%016x.man", ManifestPrefix(m), seq)
}

// LeaseObject is the key of a lease that ends at a time, given in unix seconds.
func LeaseObject(m dr.MachineID, expires int64, uid string) string {
	return fmt.Sprintf("%s%016x.%s.lease", LeasePrefix(m), uint64(expires), uid)
}

// GenObject is the key of a generation object.
func GenObject(m dr.MachineID, gen dr.Generation) string {
	return fmt.Sprintf("%s%08x.gen", GensPrefix(m), uint32(gen))
}

// CutObject is the key of cut n, whose creation is the commit of the cycle.
func CutObject(m dr.MachineID, gen dr.Generation, n uint64) string {
	return fmt.Sprintf("%s%016x.cut", CutPrefix(m, gen), n)
}

// PartObject is the key of part k (0..0xffff) of an attempt to write cut n.
func PartObject(m dr.MachineID, gen dr.Generation, n uint64, attempt uint32, k int) string {
	return fmt.Sprintf("%s%016x.%08x.%04x.seg", PartPrefix(m, gen), n, attempt, k)
}

// TileObject is the key of an image of one tile as of cut n. uid is 1..36
// bytes of a-z, 0-9 and '-', beginning with a letter or digit; see NewUID.
func TileObject(m dr.MachineID, gen dr.Generation, disk uint16, tile uint32, n uint64, uid string) string {
	return fmt.Sprintf("%s%04x/%08x.%016x.%s.seg", TilePrefix(m, gen), disk, tile, n, uid)
}

// RunObject is the key of a run of the cuts behind from up to to, where gen is
// the generation of to. from 0 means that nothing older is needed.
func RunObject(m dr.MachineID, gen dr.Generation, to, from uint64, uid string) string {
	return fmt.Sprintf("%s%016x-%016x.%s.run", RunPrefix(m, gen), to, from, uid)
}

// MapObject is the key of a checkpoint of position n.
func MapObject(m dr.MachineID, gen dr.Generation, n uint64, uid string) string {
	return fmt.Sprintf("%s%016x.%s.map", MapPrefix(m, gen), n, uid)
}

// DataObject is the key of segment k (0..0xffff) of the data rewritten for a run that reaches to.
func DataObject(m dr.MachineID, gen dr.Generation, to uint64, uid string, k int) string {
	return fmt.Sprintf("%s%016x.%s.%04x.seg", DataPrefix(m, gen), to, uid, k)
}

// NewUID returns a random uid of 16 hexadecimal digits.
func NewUID() string {
	var b [8]byte
	rand.Read(b[:]) // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}

// Key is the inverse of ParseObject.
func (o ObjectName) Key() string {
	switch o.Class {
	case ClassVault:
		return VaultObject()
	case ClassVaultKey:
		return VaultKeyObject(uint32(o.Seq))
	case ClassKey:
		if o.KeyID != (KeyID{}) {
			return WrapObject(o.Machine, o.Epoch, o.KeyID)
		}
		return KeyObject(o.Machine, o.Epoch)
	case ClassGeneration:
		return GenObject(o.Machine, o.Gen)
	case ClassCut:
		return CutObject(o.Machine, o.Gen, o.N)
	case ClassPart:
		return PartObject(o.Machine, o.Gen, o.N, o.Attempt, o.K)
	case ClassTile:
		return TileObject(o.Machine, o.Gen, o.Disk, o.Tile, o.N, o.UID)
	case ClassRun:
		return RunObject(o.Machine, o.Gen, o.N, o.From, o.UID)
	case ClassMap:
		return MapObject(o.Machine, o.Gen, o.N, o.UID)
	case ClassData:
		return DataObject(o.Machine, o.Gen, o.N, o.UID, o.K)
	case ClassManifest:
		return ManifestObject(o.Machine, o.Seq)
	case ClassLease:
		return LeaseObject(o.Machine, o.Expires, o.UID)
	}
	return ""
}

// String returns the key.
func (o ObjectName) String() string { return o.Key() }

// CutName is the name of cut n.
func CutName(m dr.MachineID, gen dr.Generation, n uint64) ObjectName {
	return ObjectName{Class: ClassCut, Machine: m, Gen: gen, N: n}
}

// PartName is the name of a part that a cut of generation gen refers to.
func PartName(m dr.MachineID, gen dr.Generation, n uint64, r PartRef) ObjectName {
	return ObjectName{Class: ClassPart, Machine: m, Gen: gen, N: n, Attempt: r.Attempt, K: r.K}
}

// TileName is the name of a tile image that a cut refers to.
func TileName(m dr.MachineID, r TileRef) ObjectName {
	return ObjectName{Class: ClassTile, Machine: m, Gen: r.Gen, N: r.N, Disk: r.Disk, Tile: r.Tile, UID: r.UID}
}

// SegmentName is the name of a segment that a run or map refers to.
func SegmentName(m dr.MachineID, r SegmentRef) ObjectName {
	return ObjectName{Class: r.Class, Machine: m, Gen: r.Gen, N: r.N, Attempt: r.Attempt, K: r.K, UID: r.UID}
}

// ParseObject parses an object key. Only the one spelling that the functions
// above produce is accepted: anything else, also a key of a later format, is a
// *dr.Error with dr.KindInvalid, so that a lister can skip it knowingly.
func ParseObject(key string) (ObjectName, error) {
	if o, ok := parseKey(key); ok && o.Key() == key {
		return o, nil
	}
	return ObjectName{}, dr.Errorf(dr.KindInvalid, "cut.ParseObject", "%q is not the key of an object of format version 1", key)
}

func parseKey(key string) (ObjectName, bool) {
	if key == VaultObject() {
		return ObjectName{Class: ClassVault}, true
	}
	if file, ok := strings.CutPrefix(key, VaultKeysPrefix()); ok {
		seq, ok := onlyHex(file, 8, ".json")
		return ObjectName{Class: ClassVaultKey, Seq: seq}, ok && seq != 0
	}
	rest, ok := strings.CutPrefix(key, MachinesPrefix())
	if !ok {
		return ObjectName{}, false
	}
	el := strings.Split(rest, "/")
	if len(el) < 3 || len(el) > 5 {
		return ObjectName{}, false
	}
	o := ObjectName{Machine: dr.MachineID(el[0])}
	if _, ok := machineBytes(o.Machine); !ok {
		return ObjectName{}, false
	}
	if len(el) == 3 {
		return parseMachineKey(o, el[1], el[2])
	}
	return parseSegmentKey(o, el[1:])
}

// parseMachineKey parses what belongs to a machine and not to one generation.
func parseMachineKey(o ObjectName, folder, file string) (_ ObjectName, ok bool) {
	switch folder {
	case "key":
		var e uint64
		o.Class = ClassKey
		if len(file) > len("00000000.wrap") {
			if e, ok = cutHex(&file, 8, "."); !ok {
				return o, false
			}
			id, found := strings.CutSuffix(file, ".wrap")
			o.Epoch = uint32(e)
			return o, found && o.KeyID.UnmarshalText([]byte(id)) == nil
		}
		e, ok = onlyHex(file, 8, ".wrap")
		o.Epoch = uint32(e)
	case "gen":
		var g uint64
		o.Class = ClassGeneration
		g, ok = onlyHex(file, 8, ".gen")
		o.Gen = dr.Generation(g)
	case "man":
		o.Class = ClassManifest
		o.Seq, ok = onlyHex(file, 16, ".man")
	case "lease":
		o.Class = ClassLease
		at, good := cutHex(&file, 16, ".")
		uid, found := strings.CutSuffix(file, ".lease")
		o.Expires, o.UID = int64(at), uid
		ok = good && found && o.Expires >= 0 && validUID(uid)
	}
	return o, ok
}

// parseSegmentKey parses {gen, folder, [disk,] file}.
func parseSegmentKey(o ObjectName, el []string) (_ ObjectName, ok bool) {
	g, ok := onlyHex(el[0], 8, "")
	if !ok {
		return o, false
	}
	o.Gen = dr.Generation(g)
	file := el[len(el)-1]
	if len(el) == 4 && el[1] == "img" {
		o.Class = ClassTile
		disk, ok1 := onlyHex(el[2], 4, "")
		tile, ok2 := cutHex(&file, 8, ".")
		n, ok3 := cutHex(&file, 16, ".")
		uid, ok4 := strings.CutSuffix(file, ".seg")
		o.Disk, o.Tile, o.N, o.UID = uint16(disk), uint32(tile), n, uid
		return o, ok1 && ok2 && ok3 && ok4 && validUID(uid)
	}
	if len(el) != 3 {
		return o, false
	}
	sep := "."
	if el[1] == "run" {
		sep = "-"
	}
	if el[1] == "cut" {
		o.Class = ClassCut
		o.N, ok = onlyHex(file, 16, ".cut")
		return o, ok
	}
	if o.N, ok = cutHex(&file, 16, sep); !ok {
		return o, false
	}
	switch el[1] {
	case "part":
		o.Class = ClassPart
		a, ok1 := cutHex(&file, 8, ".")
		k, ok2 := onlyHex(file, 4, ".seg")
		o.Attempt, o.K = uint32(a), int(k)
		return o, ok1 && ok2
	case "run":
		o.Class = ClassRun
		from, ok1 := cutHex(&file, 16, ".")
		uid, ok2 := strings.CutSuffix(file, ".run")
		o.From, o.UID = from, uid
		return o, ok1 && ok2 && validUID(uid) && validRun(o.From, o.N)
	case "map":
		o.Class = ClassMap
		o.UID, ok = strings.CutSuffix(file, ".map")
		return o, ok && validUID(o.UID)
	case "data":
		o.Class = ClassData
		uid, file, ok1 := strings.Cut(file, ".")
		k, ok2 := onlyHex(file, 4, ".seg")
		o.UID, o.K = uid, int(k)
		return o, ok1 && ok2 && validUID(uid)
	}
	return o, false
}

// validRun says whether a run can go on from one position and reach another.
func validRun(from, to uint64) bool { return from == 0 || from < to }

// onlyHex parses digits lower-case hexadecimal digits and sep, and nothing else.
func onlyHex(s string, digits int, sep string) (uint64, bool) {
	v, ok := cutHex(&s, digits, sep)
	return v, ok && s == ""
}

// cutHex takes digits lower-case hexadecimal digits and then sep off the front of s.
func cutHex(s *string, digits int, sep string) (uint64, bool) {
	if len(*s) < digits+len(sep) || (*s)[digits:digits+len(sep)] != sep {
		return 0, false
	}
	for _, c := range []byte((*s)[:digits]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, false
		}
	}
	v, err := strconv.ParseUint((*s)[:digits], 16, 64)
	*s = (*s)[digits+len(sep):]
	return v, err == nil
}

func validUID(uid string) bool {
	if uid == "" || len(uid) > MaxUID || uid[0] == '-' {
		return false
	}
	for _, c := range []byte(uid) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return true
}

// machineBytes parses the one accepted spelling of a machine id, a lower-case UUID.
func machineBytes(m dr.MachineID) (id [16]byte, ok bool) {
	if len(m) != 36 || m[8] != '-' || m[13] != '-' || m[18] != '-' || m[23] != '-' {
		return id, false
	}
	s := string(m)
	b, err := hex.DecodeString(s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil || strings.ToLower(s) != s {
		return id, false
	}
	copy(id[:], b)
	return id, true
}

func machineID(id [16]byte) dr.MachineID {
	return dr.MachineID(fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16]))
}
