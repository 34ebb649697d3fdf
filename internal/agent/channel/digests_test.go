package channel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// tiles is a vault that has digests of a disk.
type tiles struct {
	n     uint32 // of the disk
	fail  []error
	asked []agentapi.DigestRequest
	spoil func(*agentapi.DigestResponse)
}

func (v *tiles) Digests(ctx context.Context, r agentapi.DigestRequest) (out agentapi.DigestResponse, err error) {
	v.asked = append(v.asked, r)
	if len(v.fail) > 0 {
		err, v.fail = v.fail[0], v.fail[1:]
		if err != nil {
			return out, err
		}
	}
	if r.Blocks {
		out.Key, out.Blocks = make([]byte, 32), make([]byte, 1024*16)
		out.Key[0], out.Blocks[16] = 5, 6
	}
	for i := range r.Count {
		tile := r.First + i
		if tile >= v.n {
			break
		}
		x := agentapi.TileRoot{Tile: tile, Zero: tile%2 == 1}
		if !x.Zero {
			x.Key, x.Root = make([]byte, 32), make([]byte, 32)
			x.Root[0] = byte(tile)
		}
		out.Roots = append(out.Roots, x)
	}
	if v.spoil != nil {
		v.spoil(&out)
	}
	return out, nil
}

func (v *tiles) digests() *Digests {
	return &Digests{Source: v, Machine: "m", Generation: func() uint32 { return 7 }}
}

func TestDigestsArePaged(t *testing.T) {
	t.Parallel()
	at := cut.Ref{Gen: 3, N: 9, Hash: cut.Hash{1}}
	for _, c := range []struct{ n, first, count, want uint32 }{{1000, 0, 1000, 1000}, {1000, 10, 600, 600}, {300, 0, 600, 300}, {256, 0, 256, 256}, {257, 0, 257, 257}, {5, 0, 0, 0}, {0, 0, 3, 0}} {
		v := &tiles{n: c.n}
		roots, err := v.digests().Roots(t.Context(), at, 2, c.first, c.count)
		if err != nil || uint32(len(roots)) != c.want {
			t.Fatalf("%+v: %d roots, %v", c, len(roots), err)
		}
		for i, r := range roots {
			if r.Tile != c.first+uint32(i) || r.Zero != (r.Tile%2 == 1) || !r.Zero && r.Root[0] != byte(r.Tile) {
				t.Fatalf("%+v: root %d is %+v", c, i, r.Tile)
			}
		}
		for _, r := range v.asked {
			if r.Count > 256 || r.Count == 0 || r.Machine != "m" || r.Generation != 7 || r.Disk != 2 || r.At != (agentapi.CutRef{Generation: 3, N: 9, Hash: at.Hash.String()}) {
				t.Errorf("%+v: asked for %+v", c, r)
			}
		}
	}
	key, sums, err := (&tiles{}).digests().Blocks(t.Context(), at, 2, 4)
	if err != nil || len(sums) != 1024 || key.Bytes()[0] != 5 || sums[1][0] != 6 {
		t.Errorf("blocks: %d %v", len(sums), err)
	}
}

func TestDigestsRetry(t *testing.T) {
	t.Parallel()
	busy := dr.Errorf(dr.KindUnavailable, "vault", "busy")
	fenced := dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	for name, c := range map[string]struct {
		fail  []error
		asked string // counts
		kind  dr.Kind
		takes time.Duration
	}{
		"Once":    {[]error{busy}, "200 50 50 50 50", 0, time.Second}, // the rest in pages that worked
		"Always":  {[]error{busy, busy, busy, busy}, "200 50 12 3", dr.KindUnavailable, 7 * time.Second},
		"Refused": {[]error{fenced}, "200", dr.KindFenced, 0},
		"Invalid": {[]error{dr.Errorf(dr.KindInvalid, "vault", "no")}, "200", dr.KindInvalid, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := &tiles{n: 1000, fail: c.fail}
			began := time.Now()
			roots, err := v.digests().Roots(t.Context(), cut.Ref{Gen: 1}, 0, 0, 200)
			var asked []string
			for _, r := range v.asked {
				asked = append(asked, fmt.Sprint(r.Count))
			}
			if name == "Once" && len(roots) != 200 {
				t.Errorf("%d roots", len(roots))
			}
			if strings.Join(asked, " ") != c.asked || (err == nil) != (name == "Once") || err != nil && dr.KindOf(err) != c.kind || time.Since(began) != c.takes {
				t.Errorf("%s: asked %v in %v: %v", name, asked, time.Since(began), err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // who waits can be stopped
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		v := &tiles{n: 10, fail: []error{busy, busy, busy, busy}}
		if _, _, err := v.digests().Blocks(ctx, cut.Ref{}, 0, 0); !errors.Is(err, context.DeadlineExceeded) || len(v.asked) != 1 {
			t.Errorf("stopped: %v after %d", err, len(v.asked))
		}
	})
}

// An answer of another shape is never taken for digests.
func TestDigestsMalformed(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*agentapi.DigestResponse){
		"Order":     func(r *agentapi.DigestResponse) { r.Roots[1].Tile = 7 },
		"More":      func(r *agentapi.DigestResponse) { r.Roots = append(r.Roots, agentapi.TileRoot{Tile: 4, Zero: true}) },
		"ShortRoot": func(r *agentapi.DigestResponse) { r.Roots[2].Root = r.Roots[2].Root[:31] },
		"NoKey":     func(r *agentapi.DigestResponse) { r.Roots[2].Key = nil },
	} {
		v := &tiles{n: 100, spoil: spoil}
		if _, err := v.digests().Roots(t.Context(), cut.Ref{}, 0, 0, 4); dr.KindOf(err) != dr.KindInternal {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(*agentapi.DigestResponse){
		"Short": func(r *agentapi.DigestResponse) { r.Blocks = r.Blocks[:len(r.Blocks)-1] },
		"NoKey": func(r *agentapi.DigestResponse) { r.Key = nil },
	} {
		v := &tiles{n: 100, spoil: spoil}
		if _, _, err := v.digests().Blocks(t.Context(), cut.Ref{}, 0, 0); dr.KindOf(err) != dr.KindInternal {
			t.Errorf("%s: %v", name, err)
		}
	}
}
