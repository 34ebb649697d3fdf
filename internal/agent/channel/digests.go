package channel

import (
	"context"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const (
	digestTimeout  = 2 * time.Minute // of one request: the vault may have to read what lies over tile images
	digestTiles    = 256             // in one request at most
	digestAttempts = 4
	digestPause    = time.Second // before the second attempt, doubling
)

// Digests asks for digests of stored tiles. The answer holds keys: it is not logged.
func (c *Client) Digests(ctx context.Context, r agentapi.DigestRequest) (res agentapi.DigestResponse, err error) {
	return res, c.call(ctx, agentapi.PathDigests, digestTimeout, r, &res)
}

// DigestSource is what Digests asks; *Client is one.
type DigestSource interface {
	Digests(ctx context.Context, r agentapi.DigestRequest) (agentapi.DigestResponse, error)
}

// Digests answers what the store has of one machine. It satisfies
// capture.Digests: ranges of tiles are asked for in pages, what may succeed
// in a moment is tried again a few times (in smaller pages, since a slow vault may
// have run out of time), and an answer of another shape than asked for is an error.
// What the vault refuses, e.g. to a host that has been fenced, is not tried again
// here. It is safe for concurrent use.
type Digests struct {
	Source     DigestSource
	Machine    dr.MachineID
	Generation func() uint32 // that this host writes
}

var _ capture.Digests = (*Digests)(nil)

// Roots implements capture.Digests.
func (d *Digests) Roots(ctx context.Context, at cut.Ref, disk uint16, first, count uint32) ([]capture.TileRoot, error) {
	var out []capture.TileRoot
	page := uint32(digestTiles)
	for done := uint32(0); done < count; {
		n := min(count-done, page)
		var res agentapi.DigestResponse
		asked, err := d.ask(ctx, &res, func(attempt int) agentapi.DigestRequest {
			r := d.request(at, disk, first+done)
			r.Count = max(n>>(2*attempt), 1)
			return r
		})
		if err != nil {
			return nil, err
		}
		if uint32(len(res.Roots)) > asked.Count {
			return nil, malformed("%d roots of %d tiles", len(res.Roots), asked.Count)
		}
		for i, t := range res.Roots {
			root, err := tileRoot(t, asked.First+uint32(i))
			if err != nil {
				return nil, err
			}
			out = append(out, root)
		}
		if uint32(len(res.Roots)) < asked.Count {
			return out, nil // the disk ends here
		}
		done, page = done+asked.Count, max(asked.Count, 1)
	}
	return out, nil
}

func tileRoot(t agentapi.TileRoot, want uint32) (capture.TileRoot, error) {
	out := capture.TileRoot{Tile: t.Tile, Zero: t.Zero}
	switch {
	case t.Tile != want:
		return out, malformed("tile %d in place of tile %d", t.Tile, want)
	case t.Zero:
		return out, nil
	case len(t.Key) != len(out.Key) || len(t.Root) != len(out.Root):
		return out, malformed("a key of %d and a root of %d bytes", len(t.Key), len(t.Root))
	}
	out.Key, out.Root = cut.DigestKey(t.Key), [32]byte(t.Root)
	return out, nil
}

// Blocks implements capture.Digests.
func (d *Digests) Blocks(ctx context.Context, at cut.Ref, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error) {
	const blocks = cut.TileSize / cut.Block
	var key cut.DigestKey
	var res agentapi.DigestResponse
	_, err := d.ask(ctx, &res, func(int) agentapi.DigestRequest {
		r := d.request(at, disk, tile)
		r.Blocks = true
		return r
	})
	if err != nil {
		return key, nil, err
	}
	if len(res.Key) != len(key) || len(res.Blocks) != blocks*16 {
		return key, nil, malformed("a key of %d and digests of %d bytes", len(res.Key), len(res.Blocks))
	}
	sums := make([][16]byte, blocks)
	for i := range sums {
		sums[i] = [16]byte(res.Blocks[16*i : 16*i+16])
	}
	return cut.DigestKey(res.Key), sums, nil
}

func (d *Digests) request(at cut.Ref, disk uint16, first uint32) agentapi.DigestRequest {
	return agentapi.DigestRequest{Machine: string(d.Machine), Generation: d.Generation(), Disk: disk, First: first,
		At: agentapi.CutRef{Generation: uint32(at.Gen), N: at.N, Hash: at.Hash.String()}}
}

// ask makes the attempts. It returns the request that was answered.
func (d *Digests) ask(ctx context.Context, res *agentapi.DigestResponse, request func(attempt int) agentapi.DigestRequest) (agentapi.DigestRequest, error) {
	for attempt, pause := 0, digestPause; ; attempt, pause = attempt+1, 2*pause {
		r := request(attempt)
		var err error
		*res, err = d.Source.Digests(ctx, r)
		if err == nil {
			return r, nil
		}
		if kind := dr.KindOf(err); ctx.Err() != nil || attempt+1 == digestAttempts || kind != dr.KindUnavailable && kind != dr.KindExhausted {
			return r, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return r, context.Cause(ctx)
		}
	}
}

func malformed(format string, args ...any) error {
	return dr.Errorf(dr.KindInternal, "channel.Digests", "the vault answered a question for digests with "+format, args...)
}
