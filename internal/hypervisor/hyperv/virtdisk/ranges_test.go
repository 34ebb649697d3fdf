package virtdisk

import (
	"errors"
	"slices"
	"testing"

	"holdfast/internal/hypervisor/hyperv"
)

type answer struct {
	found     []changeRange
	processed int64
	err       error
}

// walk plays answers and returns what was asked and what was told.
func walk(off, n int64, answers ...answer) (asked, told [][2]int64, err error) {
	err = walkChanges(off, n, func(at, left int64) ([]changeRange, int64, error) {
		asked = append(asked, [2]int64{at, left})
		a := answers[0]
		answers = answers[1:]
		return a.found, a.processed, a.err
	}, func(at, n int64) error {
		told = append(told, [2]int64{at, n})
		return nil
	}, "x")
	return
}

func TestChangesAreComplete(t *testing.T) {
	t.Parallel()
	asked, told, err := walk(100, 900,
		answer{[]changeRange{{offset: 50, length: 100}, {offset: 200, length: 0}, {offset: 300, length: 50}}, 300, nil}, // begins before the window
		answer{nil, 100, nil}, // nothing in a window is no end
		answer{[]changeRange{{offset: 500, length: 10}, {offset: 990, length: 100}}, 500, nil})
	if err != nil {
		t.Fatal(err)
	}
	if want := [][2]int64{{100, 900}, {400, 600}, {500, 500}}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	if want := [][2]int64{{100, 50}, {300, 50}, {500, 10}, {990, 10}}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	// A range that two windows report is told once.
	if _, told, err = walk(0, 100, answer{[]changeRange{{offset: 40, length: 30}}, 50, nil}, answer{[]changeRange{{offset: 40, length: 40}}, 50, nil}); err != nil ||
		!slices.Equal(told, [][2]int64{{40, 30}, {70, 10}}) {
		t.Errorf("overlap: %v, %v", told, err)
	}
}

// TestOddAnswersAreNoChanges proves that an answer which would leave a gap loses the tracking instead.
func TestOddAnswersAreNoChanges(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]answer{
		"no progress": {nil, 0, nil}, "backwards": {nil, -1, nil}, "too much": {nil, 101, nil},
		"not ascending": {[]changeRange{{offset: 50, length: 10}, {offset: 10, length: 10}}, 100, nil},
		"overflow":      {[]changeRange{{offset: 1 << 63, length: 10}}, 100, nil},
	} {
		if _, _, err := walk(0, 100, a); !errors.Is(err, hyperv.ErrTrackingLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop := errors.New("stop")
	if _, _, err := walk(0, 100, answer{nil, 50, nil}, answer{nil, 0, stop}); !errors.Is(err, stop) {
		t.Errorf("a failed query: %v", err)
	}
	if asked, _, err := walk(7, 0); err != nil || asked != nil {
		t.Errorf("an empty window asked %v: %v", asked, err)
	}
}

func TestWiden(t *testing.T) {
	t.Parallel()
	for _, c := range [][5]int64{{0, 512, 512, 0, 512}, {1, 1, 512, 0, 512}, {511, 2, 512, 0, 1024}, {4096, 4096, 4096, 4096, 8192}, {5000, 1, 4096, 4096, 8192}} {
		if a, b := widen(c[0], c[1], c[2]); a != c[3] || b != c[4] {
			t.Errorf("widen%v = %d, %d", c[:3], a, b)
		}
	}
}
