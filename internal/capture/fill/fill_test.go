package fill_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/capture/fill"
	"holdfast/internal/cut"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *fill.Log {
	t.Helper()
	l, err := fill.Open(dir)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLogSurvives(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "fill")
	l := open(t, dir)
	if !l.Empty(3) {
		t.Error("a new log is not empty")
	}
	must(t, l.Note(fill.Tile{Disk: 3, Tile: 7, Era: 1, UID: "a", Gen: 1, N: 2, Size: 9, Data: 5}, true))
	must(t, l.Note(fill.Tile{Disk: 3, Tile: 2, Era: 1, Zero: true}, false))
	must(t, l.Change(3, 100, 10))
	must(t, l.Change(3, cut.Block, 1))
	must(t, l.Change(3, 40000*cut.Block, 2*cut.Block))
	must(t, l.Flush())
	must(t, l.Change(3, 900*cut.Block, 1)) // not durable
	must(t, l.Close())
	path := filepath.Join(dir, "tiles.log")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"v":2,"disk":3,"tile":8,"er`) // torn
	must(t, err)
	must(t, f.Close())
	l = open(t, dir)
	must(t, l.Note(fill.Tile{Disk: 3, Tile: 9, Era: 2, UID: "b", Size: 1, Data: 6}, true))
	must(t, l.Close())
	l = open(t, dir)
	for _, c := range []struct {
		tile           uint32
		noted, current bool
	}{{7, true, false}, {2, true, false}, {8, false, false}, {9, true, true}, {1 << 20, false, false}} {
		if noted, current := l.State(3, c.tile, 2); noted != c.noted || current != c.current {
			t.Errorf("tile %d: %v %v", c.tile, noted, current)
		}
	}
	if x, ok := l.Image(3, 7); !ok || x.UID != "a" || l.Data(3) != 11 {
		t.Errorf("image %+v, data %d", x, l.Data(3))
	}
	if _, ok := l.Image(3, 2); ok {
		t.Error("a zero tile has an image")
	}
	var got [][2]int64
	for off, n := range l.Changes(3, 40001*cut.Block+5) {
		got = append(got, [2]int64{off / cut.Block, n})
	}
	want := [][2]int64{{0, 2 * cut.Block}, {40000, cut.Block + 5}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("changes %v", got)
	}
}
