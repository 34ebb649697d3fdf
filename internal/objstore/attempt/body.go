package attempt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"holdfast/internal/objstore"
)

// Source is a body that can be read as often as needed, and its SHA-256.
type Source struct {
	r     io.ReadSeeker
	start int64
	close func()

	Size   int64
	SHA256 [32]byte
}

// maxInMemory is how much of a body that cannot be read twice is kept in memory;
// more goes to a temporary file.
const maxInMemory = 16 << 20

// Close lets go what Prepare has kept.
func (s *Source) Close() { s.close() }

// Prepare reads the body once, checks it against what was announced, and
// makes it repeatable. What it reads goes to also, too:
// for the digests that one store's protocol asks for.
func Prepare(ctx context.Context, r io.Reader, size int64, sum *[32]byte, also ...io.Writer) (_ *Source, err error) {
	s := &Source{Size: size, close: func() {}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	h := sha256.New()
	var keep io.Writer = io.Discard
	var memory *bytes.Buffer
	if seeker, ok := r.(io.ReadSeeker); ok {
		// A pipe has the method too; then it fails.
		if start, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			s.r, s.start = seeker, start
		}
	}
	switch {
	case s.r != nil:
	case size <= maxInMemory:
		memory = new(bytes.Buffer)
		keep = memory
	default:
		f, err := os.CreateTemp("", "holdfast-put-*")
		if err != nil {
			return nil, fmt.Errorf("keep the body for repetition: %w", err)
		}
		s.r, keep = f, f
		_ = os.Remove(f.Name()) // where open files can be removed, a crash leaves nothing
		s.close = func() {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}
	n, err := io.Copy(io.MultiWriter(append([]io.Writer{h, keep}, also...)...), io.LimitReader(ctxReader{ctx, r}, size))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if n < size {
		return nil, fmt.Errorf("%w: body has %d bytes, announced were %d", objstore.ErrMismatch, n, size)
	}
	if extra, err := io.CopyN(io.Discard, ctxReader{ctx, r}, 1); extra > 0 {
		return nil, fmt.Errorf("%w: body has more than the announced %d bytes", objstore.ErrMismatch, size)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read body: %w", err)
	}
	h.Sum(s.SHA256[:0])
	if sum != nil && *sum != s.SHA256 {
		return nil, fmt.Errorf("%w: body has SHA-256 %x, announced was %x", objstore.ErrMismatch, s.SHA256, *sum)
	}
	if memory != nil {
		s.r = bytes.NewReader(memory.Bytes())
	}
	return s, nil
}

// ctxReader stops a body when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Body is the body of one attempt. The transport reads it on a goroutine of
// its own, which may live on after the attempt; Finish makes sure that the
// source is not touched any more.
type Body struct {
	src   *Source
	watch *Watch

	mu   sync.Mutex
	pos  int64
	err  error // failure of the source itself
	over bool
}

// Send makes the body of an attempt.
func Send(src *Source, w *Watch) *Body { return &Body{src: src, watch: w} }

var errAttemptOver = errors.New("the attempt is over")

func (s *Body) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return 0, errAttemptOver
	case s.pos == s.src.Size:
		return 0, io.EOF
	}
	n, err := s.src.r.Read(p[:min(int64(len(p)), s.src.Size-s.pos)])
	s.pos += int64(n)
	s.watch.Moved()
	if errors.Is(err, io.EOF) && s.pos < s.src.Size {
		err = fmt.Errorf("%w: the body became %d bytes shorter", objstore.ErrMismatch, s.src.Size-s.pos)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
		return n, err
	}
	if s.pos == s.src.Size {
		// What remains is buffered on the way, and the store has to commit.
		s.watch.Sent()
	}
	return n, nil
}

// Seek serves the SDK, which asks for the size and goes to the start.
func (s *Body) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errAttemptOver
	}
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.src.Size
	}
	if offset < 0 || offset > s.src.Size {
		return 0, fmt.Errorf("seek to %d of %d", offset, s.src.Size)
	}
	if _, err := s.src.r.Seek(s.src.start+offset, io.SeekStart); err != nil {
		s.err = err
		return 0, err
	}
	s.pos = offset
	return offset, nil
}

// Finish ends the use of the source and returns how it failed, if it did.
func (s *Body) Finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return s.err
}

// Close serves the SDK; the source is closed by whoever prepared it.
func (s *Body) Close() error { return nil }
