package nbd

import (
	"math/bits"
	"sync"
)

const (
	headroom    = 32 // space before a payload for the longest header before it
	minClass    = 12 // 4 KiB
	maxClass    = 22 // 4 MiB; larger buffers are not kept
	classes     = maxClass - minClass + 1
	dataHeader  = chunkHeaderSize + 8
	holePayload = 12
)

// buffer holds a payload with room for its header in front of it, so that both
// go out in one write.
type buffer struct {
	all   []byte // headroom + capacity
	class int    // index of its pool, -1 if it is not pooled
}

func (b *buffer) payload(n int) []byte { return b.all[headroom:][:n] }

// framed is header and payload, for a header of h bytes.
func (b *buffer) framed(h, n int) []byte { return b.all[headroom-h : headroom+n] }

// bufferPool keeps buffers of power-of-two sizes.
type bufferPool [classes]sync.Pool

func (p *bufferPool) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass) - minClass
	if class >= classes {
		return &buffer{all: make([]byte, headroom+n), class: -1}
	}
	if b, ok := p[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{all: make([]byte, headroom+1<<(class+minClass)), class: class}
}

func (p *bufferPool) put(b *buffer) {
	if b != nil && b.class >= 0 {
		p[b.class].Put(b)
	}
}
