package upload

import (
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"time"
)

// Limit bounds how fast bodies are sent; *pace.Limiter is one. Wait returns when
// n more bytes may be sent, or with an error when ctx has ended. If it also has
// Rate() int64 (bytes/s, 0 = unlimited), the duration of a body is known before the first was sent.
type Limit interface {
	Wait(ctx context.Context, n int) error
}

const (
	firstPiece = 4 << 10
	minPiece   = 256
	maxPiece   = 64 << 10
	// A piece is to take between these, so that a body which is held back never
	// looks like one that has stalled, to this side or the other.
	quick = 50 * time.Millisecond
	slow  = 200 * time.Millisecond
	// tooLong is when a piece is given up for a smaller one: the limit was lowered meanwhile.
	tooLong = 5 * time.Second
	// lifeUsed is how much of a signed URL's remaining life a body may take.
	lifeUsed = 0.7
	// memory is how many bytes make the mean speed.
	memory = 256 << 10
)

// speed is how long a byte of one body is held back, in seconds, as a mean over
// the newest bodies of a sink.
type speed struct{ bits atomic.Uint64 }

func (s *speed) value() float64 { return math.Float64frombits(s.bits.Load()) }

// add counts n bytes that took d. Two at once may lose one: it is a mean.
func (s *speed) add(n int, d time.Duration) {
	keep := math.Exp(-float64(n) / memory)
	s.bits.Store(math.Float64bits(s.value()*keep + d.Seconds()/float64(n)*(1-keep)))
}

// pacedBody counts what is read of a body, and paces it. One goroutine uses it at a time.
type pacedBody struct {
	p     *put
	ctx   context.Context // of the Put: ends a wait for bandwidth
	limit Limit           // nil = unlimited
	piece int
	ahead int64 // bytes paid before the body was read; spread over all of it
	read  int64 // bytes read
	paid  int64 // bytes paid while reading
}

// begin pays for the first piece: a URL that is asked for after that is used at once.
func (b *pacedBody) begin() error {
	if b.limit == nil || b.p.size <= 0 {
		return nil
	}
	n := min(firstPiece, b.p.size)
	start := time.Now()
	for left := n; left > 0; {
		part := min(left, minPiece)
		if err := b.limit.Wait(b.ctx, int(part)); err != nil {
			return err
		}
		left -= part
	}
	b.ahead = n
	b.adapt(int(n), time.Since(start))
	return nil
}

// fits reports whether what is left to pay can be sent within life, as things are. If not, it
// pays ahead as much as is too much; the URL has to be asked for again after that.
func (b *pacedBody) fits(life time.Duration) (bool, error) {
	left := b.p.size - b.ahead
	if b.limit == nil || left <= 0 || life <= 0 { // ≤ 0: the clocks differ, the store will say
		return true, nil
	}
	perByte := b.p.speed.value()
	if r, ok := b.limit.(interface{ Rate() int64 }); ok {
		if rate := r.Rate(); rate > 0 {
			perByte = max(perByte, 1/float64(rate))
		}
	}
	most := lifeUsed * life.Seconds()
	if float64(left)*perByte <= most {
		return true, nil
	}
	// A whole piece at least, so that it ends.
	pay := min(left, max(left-int64(most/perByte), maxPiece))
	start := time.Now()
	for part := int64(0); pay > 0; pay -= part {
		part = min(pay, maxPiece)
		if err := b.limit.Wait(b.ctx, int(part)); err != nil {
			return false, err
		}
		b.ahead += part
		b.p.speed.add(int(part), time.Since(start))
		start = time.Now()
	}
	return false, nil
}

// ReadAt reads like the body, at the speed of the limit. It may return less
// than was asked for without an error, see Transfer: a slow body moves all the time.
func (b *pacedBody) ReadAt(p []byte, off int64) (int, error) {
	if b.limit == nil {
		n, err := b.p.body.ReadAt(p, off)
		b.p.u.bytes.Add(int64(n))
		return n, err
	}
	all := len(p)
	for {
		p = p[:min(all, b.piece)]
		late, err := b.pay(int64(len(p)))
		if err != nil {
			return 0, err
		}
		if !late {
			break
		}
		b.piece = max(b.piece/16, minPiece)
	}
	n, err := b.p.body.ReadAt(p, off)
	b.p.u.bytes.Add(int64(n))
	b.read += int64(n)
	if errors.Is(err, io.EOF) && n == len(p) && n < all {
		err = nil // the end comes with the next read
	}
	return n, err
}

// pay waits for n bytes that are to be read, less their part of what was paid
// ahead. Late means that they were too many for the present limit.
func (b *pacedBody) pay(n int64) (late bool, err error) {
	owed := b.read + n
	if owed <= b.p.size {
		owed = int64(math.Ceil(float64(owed) / float64(b.p.size) * float64(b.p.size-b.ahead)))
	}
	due := int(owed - b.paid)
	if due <= 0 {
		return false, nil
	}
	ctx, start := b.ctx, time.Now()
	if b.piece > minPiece {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(b.ctx, tooLong)
		defer cancel()
	}
	if err := b.limit.Wait(ctx, due); err != nil {
		if ctx.Err() != nil && b.ctx.Err() == nil {
			return true, nil
		}
		return false, err
	}
	b.paid = owed
	b.adapt(due, time.Since(start))
	return false, nil
}

// adapt chooses the size of the next piece after n bytes took d.
func (b *pacedBody) adapt(n int, d time.Duration) {
	b.p.speed.add(n, d)
	switch {
	case d < quick:
		b.piece = min(b.piece*2, maxPiece)
	case d > 4*slow:
		b.piece = max(b.piece/8, minPiece)
	case d > slow:
		b.piece = max(b.piece/2, minPiece)
	}
}
