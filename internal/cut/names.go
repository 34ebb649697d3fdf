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
	}
	return "class(" + strconv.Itoa(int(c)) + ")"
}

// ObjectName is a parsed object key. Fields that the class does not have are zero.
type ObjectName struct {
	Class   Class
	Machine dr.MachineID
	Epoch   uint32        // ClassKey
	Gen     dr.Generation // all but ClassVault and ClassKey
	N       uint64        // ClassCut, ClassPart, ClassTile
	Attempt uint32        // ClassPart
	K       int           // ClassPart, 0..0xffff
	Disk    uint16        // ClassTile
	Tile    uint32        // ClassTile: number of the 64 MiB tile, counted from the disk's start
	UID     string        // ClassTile: tells apart tile images of the same position
}

// MaxUID is the greatest length of a tile's uid in bytes.
const MaxUID = 36

const root = "v1/"

// VaultObject is the key of the vault description.
func VaultObject() string { return root + "vault.json" }

// MachinesPrefix is the common prefix of all machines' objects.
func MachinesPrefix() string { return root + "m/" }

// MachinePrefix is the common prefix of everything kept for one machine.
func MachinePrefix(m dr.MachineID) string { return MachinesPrefix() + string(m) + "/" }

// KeyPrefix is the common prefix of a machine's sealed epoch keys.
func KeyPrefix(m dr.MachineID) string { return MachinePrefix(m) + "key/" }

// GensPrefix is the common prefix of a machine's generation objects.
func GensPrefix(m dr.MachineID) string { return MachinePrefix(m) + "gen/" }

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

// KeyObject is the key of the sealed key of an epoch.
func KeyObject(m dr.MachineID, epoch uint32) string {
	return fmt.Sprintf("%s%08x.wrap", KeyPrefix(m), epoch)
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

// NewUID returns a random tile uid of 16 hexadecimal digits.
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
	case ClassKey:
		return KeyObject(o.Machine, o.Epoch)
	case ClassGeneration:
		return GenObject(o.Machine, o.Gen)
	case ClassCut:
		return CutObject(o.Machine, o.Gen, o.N)
	case ClassPart:
		return PartObject(o.Machine, o.Gen, o.N, o.Attempt, o.K)
	case ClassTile:
		return TileObject(o.Machine, o.Gen, o.Disk, o.Tile, o.N, o.UID)
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
	switch file := el[len(el)-1]; {
	case len(el) == 3 && el[1] == "key":
		o.Class = ClassKey
		e, good := cutHex(&file, 8, ".wrap")
		o.Epoch = uint32(e)
		return o, good && file == ""
	case len(el) == 3 && el[1] == "gen":
		o.Class = ClassGeneration
		g, good := cutHex(&file, 8, ".gen")
		o.Gen = dr.Generation(g)
		return o, good && file == ""
	case len(el) == 3:
		return ObjectName{}, false
	}
	return parseSegmentKey(o, el[1:])
}

// parseSegmentKey parses {gen, folder, [disk,] file}.
func parseSegmentKey(o ObjectName, el []string) (ObjectName, bool) {
	g, ok := cutHex(&el[0], 8, "")
	if !ok || el[0] != "" {
		return ObjectName{}, false
	}
	o.Gen = dr.Generation(g)
	file := el[len(el)-1]
	switch {
	case len(el) == 3 && el[1] == "cut":
		o.Class = ClassCut
		o.N, ok = cutHex(&file, 16, ".cut")
		return o, ok && file == ""
	case len(el) == 3 && el[1] == "part":
		o.Class = ClassPart
		var a, k uint64
		var ok1, ok2, ok3 bool
		o.N, ok1 = cutHex(&file, 16, ".")
		a, ok2 = cutHex(&file, 8, ".")
		k, ok3 = cutHex(&file, 4, ".seg")
		o.Attempt, o.K = uint32(a), int(k)
		return o, ok1 && ok2 && ok3 && file == ""
	case len(el) == 4 && el[1] == "img":
		o.Class = ClassTile
		disk, ok1 := cutHex(&el[2], 4, "")
		tile, ok2 := cutHex(&file, 8, ".")
		n, ok3 := cutHex(&file, 16, ".")
		uid, ok4 := strings.CutSuffix(file, ".seg")
		o.Disk, o.Tile, o.N, o.UID = uint16(disk), uint32(tile), n, uid
		return o, ok1 && ok2 && ok3 && ok4 && el[2] == "" && validUID(uid)
	}
	return ObjectName{}, false
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
