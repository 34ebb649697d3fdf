package warm

import (
	"net/url"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/pageblob"
	"holdfast/internal/vhd"
)

const machine = dr.MachineID("6d153ff0-cb4c-4e83-aed9-14846507b5c6")

// FuzzMetadata reads metadata that anybody may have written. What is understood is exactly
// what Apply writes, and nothing follows from the rest.
func FuzzMetadata(f *testing.F) {
	at := pointText(cut.Ref{Gen: 3, N: 1 << 40, Hash: cut.Hash{1, 2}})
	next := pointText(cut.Ref{Gen: 4, N: 7})
	const when = "2026-11-20T12:00:00Z"
	f.Add(version, string(machine), stateAt, at, "", "2097152", at, when, "0,1", "vda", int64(2097664), uint16(0))
	f.Add(version, string(machine), stateApplying, at, next, "2097153", next, when, "0", "a%2Fb", int64(3146240), uint16(0))
	f.Add(version, string(machine), stateApplying, unknownPoint, "", "1", at, when, "65535", "%", int64(0), uint16(65535))
	f.Add("2", "", "x", "", at, "-1", at+" ", "yesterday", "0,0", "", int64(-1), uint16(9))
	f.Add(version, string(machine), stateAt, at, "", "9223372036854775807", at, when, "", "", int64(1<<62), uint16(0))
	f.Fuzz(func(t *testing.T, vers, m, st, low, high, size, point, when, set, disk string, bytes int64, index uint16) {
		md := map[string]string{keyVersion: vers, keyMachine: m, keyState: st, keyLow: low, keyHigh: high, keySize: size, keySnapshot: point, keyTime: when, keySet: set, keyDisk: disk}
		s := stateOf(md, machine)
		if s.known {
			if vers != version || m != string(machine) || st != stateAt && st != stateApplying || pointText(s.low) != low || s.size <= 0 {
				t.Fatalf("%q is taken for %+v", md, s)
			}
			if s.applying && pointText(s.high) != high || !s.applying && s.high != s.low {
				t.Fatalf("%q is taken for %+v", md, s)
			}
		}
		// However odd it is, what has to be written again lies inside of the disk.
		for _, want := range []int64{1, vhd.SectorSize, 5<<20 + 1, vhd.MaxPageBlob} {
			if low := lowWater(s, pageblob.Stat{Size: bytes}, want); low < 1 || low > want {
				t.Fatalf("%q: the content of a disk of %d is known up to %d", md, want, low)
			}
		}
		x := snapshotOf(pageblob.Item{Name: "n", Snapshot: "s", Size: bytes, Metadata: md}, machine, index)
		if !x.good {
			return
		}
		if vers != version || m != string(machine) || pointText(x.ref) != point || x.size <= 0 || x.size > bytes || strconv.FormatInt(x.size, 10) != strings.TrimLeft(size, "+0") {
			t.Fatalf("%q is taken for %+v", md, x)
		}
		r := &Replica{store: container(t)}
		for _, p := range r.points(&inventory{snapshots: []snapshot{x, x}}) {
			if len(p.Disks) != 1 || set != strconv.Itoa(int(index)) || pointText(p.Ref) != point {
				t.Fatalf("%q of disk %d alone is the point %+v", md, index, p)
			}
		}
	})
}

func container(t testing.TB) *pageblob.Container {
	s, err := pageblob.OpenContainer("https://a.blob.core.windows.net/c?sig=SECRET", pageblob.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzNames: the name of a blob and the address of a snapshot lead back to what they were
// made of, and show no signature.
func FuzzNames(f *testing.F) {
	f.Add("0.vhd", "2026-11-23T02:25:50.6808613Z", uint16(0))
	f.Add("00.vhd", "a b+c%3A&snapshot=x#y", uint16(65535))
	f.Add("65536.vhd", "", uint16(1))
	f.Add("-1.vhd.vhd", "?/\x00ä", uint16(7))
	s := container(f)
	f.Fuzz(func(t *testing.T, name, id string, index uint16) {
		r := &Replica{cfg: Config{Prefix: "warm"}, store: s}
		if i, ok := indexOf(name); ok && r.folder(machine)+name != r.blobName(machine, i) {
			t.Fatalf("%q is taken for disk %d", name, i)
		}
		own := r.blobName(machine, index)
		if i, ok := indexOf(strings.TrimPrefix(own, r.folder(machine))); !ok || i != index {
			t.Fatalf("%q is disk %d, %v", own, i, ok)
		}
		plain := s.Blob(own).URL()
		u, err := url.Parse(pageblob.SnapshotURL(plain, id))
		if err != nil || u.Query().Get("snapshot") != id || len(u.Query()) != 1 || u.Path != "/c/"+own || u.Host != "a.blob.core.windows.net" {
			t.Fatalf("%q of %s: %v, %v", id, plain, u, err)
		}
		c, err := s.Blob(own).At(id)
		if err != nil {
			return
		}
		if c.URL() != u.String() || strings.Contains(c.URL()+c.Name(), "SECRET") {
			t.Fatalf("%q: %s", id, c.URL())
		}
	})
}
