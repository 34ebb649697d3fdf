package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
)

// statusStep is the most that one block status request asks for; a multiple of
// every possible minimum block size.
const statusStep int64 = 1 << 31

// statusExtent is one descriptor of a block status reply, as on the wire.
type statusExtent struct {
	length, flags uint32
}

// Extents reports the metadata of [off, off+length) in all contexts that Dial
// was told to want. For each context fn gets extents in ascending order which
// cover the range without gap and overlap; neighbours may have equal flags,
// and the contexts are interleaved. Flags mean what the context says, see
// [StateHole], [StateZero] and [StateDirty]. An error of fn ends it and is
// returned unchanged. fn may use the Client.
func (c *Client) Extents(ctx context.Context, off, length int64, fn func(name string, off, length int64, flags uint32) error) error {
	if len(c.export.contextsOrder) == 0 {
		return c.describe(cmdBlockStatus, off, length, fmt.Errorf("%w: none was asked for", ErrContextNotGranted))
	}
	if err := c.checkRange(cmdBlockStatus, off, length, 1); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	mask := int64(c.export.min) - 1
	end := off + length
	limit := min((end+mask)&^mask, c.export.size)
	told := make([]int64, len(c.export.contextsOrder)) // fn knows everything up to here
	for i := range told {
		told[i] = off
	}
	// A server may answer less than asked for, and less in one context than in
	// another: go on from the one that lags.
	for pos := off; pos < end; {
		start := pos &^ mask
		n := min(limit-start, statusStep)
		var status map[uint32][]statusExtent
		if err := c.do(ctx, cmdBlockStatus, 0, start, uint32(n), nil, nil, &status); err != nil {
			return err
		}
		next := end
		for i, id := range c.export.contextsOrder {
			at := start
			for _, e := range status[id] {
				from, to := max(at, told[i]), min(at+int64(e.length), end)
				at += int64(e.length)
				if from >= to {
					continue
				}
				if err := fn(c.export.contexts[id], from, to-from, e.flags); err != nil {
					return err
				}
				told[i] = to
			}
			next = min(next, told[i])
		}
		if next <= pos {
			return c.describe(cmdBlockStatus, off, length, fmt.Errorf("%w: block status does not advance at %d", ErrProtocol, pos))
		}
		pos = next
	}
	return nil
}

// statusChunk: u32 context id | n × (u32 length, u32 flags). It is read in
// pieces, so that a length which no bytes follow costs nothing.
func (c *Client) statusChunk(cl *call, size uint32) error {
	if size < 12 || size > maxStatusBytes || (size-4)%8 != 0 {
		return fmt.Errorf("%w: block status chunk of %d bytes", ErrProtocol, size)
	}
	var b [4096]byte
	if err := c.readFull(b[:4]); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(b[:])
	if _, ok := c.export.contexts[id]; !ok {
		return fmt.Errorf("%w: block status of metadata context %d which was not granted", ErrProtocol, id)
	}
	if _, twice := cl.status[id]; twice {
		return fmt.Errorf("%w: block status of metadata context %d twice in one reply", ErrProtocol, id)
	}
	var list []statusExtent
	for left := int(size) - 4; left > 0; {
		p := b[:min(left, len(b))]
		if err := c.readFull(p); err != nil {
			return err
		}
		left -= len(p)
		for ; len(p) > 0; p = p[8:] {
			e := statusExtent{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])}
			if e.length == 0 {
				return fmt.Errorf("%w: block status extent of length zero", ErrProtocol)
			}
			list = append(list, e)
		}
	}
	if cl.status == nil {
		cl.status = make(map[uint32][]statusExtent)
	}
	cl.status[id] = list
	return nil
}
