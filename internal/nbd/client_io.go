package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// cancelGrace is how long a cancelled read waits for the rest of a chunk which
// is just arriving in its buffer, before it gives up the connection.
const cancelGrace = 2 * time.Second

// call is one request under way. The reader goroutine owns all of it between
// registration and completion, but for the two flags.
type call struct {
	cmd    command
	off    int64
	buf    []byte // read: where the data goes
	cover  coverage
	status map[uint32][]statusExtent // block status: by context id
	err    error                     // first error chunk
	done   chan error                // buffered, gets exactly one value

	filling   bool          // guarded by Client.mu: the reader is writing into buf
	cancelled bool          // guarded by Client.mu: nobody waits, buf is not ours any more once !filling
	idle      chan struct{} // guarded by Client.mu: closed when a cancelled call stops filling
}

// ReadAt reads exactly len(p) bytes at off, or fails; p's content is then
// undefined. If ctx ends first the reply is thrown away when it comes and the
// connection stays usable, unless the server stalls in the middle of it.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.checkRange(cmdRead, off, int64(len(p)), 1); err != nil {
		return err
	}
	mask := int64(c.export.min) - 1
	if (off|int64(len(p)))&mask != 0 {
		return c.readUnaligned(ctx, p, off)
	}
	for len(p) > 0 {
		n := min(len(p), int(c.export.max))
		if err := c.do(ctx, cmdRead, 0, off, uint32(n), p[:n], nil, nil); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readUnaligned reads the enclosing aligned range, in pieces.
func (c *Client) readUnaligned(ctx context.Context, p []byte, off int64) error {
	mask := int64(c.export.min) - 1
	start, end := off&^mask, min((off+int64(len(p))+mask)&^mask, c.export.size)
	step := max(int64(min(c.export.max, 1<<20)), int64(c.export.min))
	bounce := make([]byte, min(step, end-start))
	for start < end {
		b := bounce[:min(int64(len(bounce)), end-start)]
		if err := c.do(ctx, cmdRead, 0, start, uint32(len(b)), b, nil, nil); err != nil {
			return err
		}
		skip := max(off-start, 0)
		n := copy(p, b[skip:])
		p, off = p[n:], off+int64(n)
		start += int64(len(b))
	}
	return nil
}

// WriteAt writes p at off. Durable after a Flush that began after its return.
// If ctx ends while p is being sent, the connection ends with it.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := c.checkWrite(cmdWrite, 0, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), int(c.export.max))
		if err := c.do(ctx, cmdWrite, 0, off, uint32(n), nil, p[:n], nil); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush makes all writes that completed before it durable.
func (c *Client) Flush(ctx context.Context) error {
	if c.export.flags&FlagSendFlush == 0 {
		return c.describe(cmdFlush, 0, 0, ErrUnsupported)
	}
	return c.do(ctx, cmdFlush, 0, 0, 0, nil, nil, nil)
}

// WriteZeroes makes the range read as zeroes; the server may punch a hole.
func (c *Client) WriteZeroes(ctx context.Context, off, length int64) error {
	return c.writeRange(ctx, cmdWriteZeroes, FlagSendWriteZeroes, off, length)
}

// Trim tells the server that the range's content is not needed any more; what
// it reads as afterwards is undefined.
func (c *Client) Trim(ctx context.Context, off, length int64) error {
	return c.writeRange(ctx, cmdTrim, FlagSendTrim, off, length)
}

func (c *Client) writeRange(ctx context.Context, cmd command, need Flags, off, length int64) error {
	if err := c.checkWrite(cmd, need, off, length); err != nil {
		return err
	}
	for length > 0 {
		n := min(length, 1<<30)
		if err := c.do(ctx, cmd, 0, off, uint32(n), nil, nil, nil); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func (c *Client) checkWrite(cmd command, need Flags, off, length int64) error {
	if c.export.flags&FlagReadOnly != 0 {
		return c.describe(cmd, off, length, fmt.Errorf("export is read-only: %w", EPERM))
	}
	if c.export.flags&need != need {
		return c.describe(cmd, off, length, ErrUnsupported)
	}
	return c.checkRange(cmd, off, length, int64(c.export.min))
}

func (c *Client) checkRange(cmd command, off, length, align int64) error {
	if off < 0 || length < 0 || off > c.export.size || length > c.export.size-off {
		return c.describe(cmd, off, length, fmt.Errorf("%w: its size is %d", ErrOutOfRange, c.export.size))
	}
	if (off|length)&(align-1) != 0 {
		return c.describe(cmd, off, length, fmt.Errorf("%w: requests must be aligned to %d bytes", ErrOutOfRange, align))
	}
	return nil
}

// do runs one request: buf is filled by a read, payload is sent by a write,
// and for a block status *status gets the result.
func (c *Client) do(ctx context.Context, cmd command, flags uint16, off int64, length uint32, buf, payload []byte, status *map[uint32][]statusExtent) error {
	if err := ctx.Err(); err != nil {
		return c.describe(cmd, off, int64(length), err)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return c.describe(cmd, off, int64(length), ctx.Err())
	case <-c.dead:
		return c.describe(cmd, off, int64(length), c.Err())
	}
	cl := c.calls.Get().(*call)
	cl.cmd, cl.off, cl.buf = cmd, off, buf
	cl.cover.reset(len(buf))
	req := request{flags: flags, cmd: cmd, cookie: c.cookie.Add(1), off: uint64(off), length: length}
	if err := c.register(req.cookie, cl); err != nil {
		return c.describe(cmd, off, int64(length), err)
	}
	if err := c.send(ctx, req, payload); err != nil {
		c.abandon(req.cookie, cl, err) // whatever became of it, it was not sent whole
		return c.describe(cmd, off, int64(length), err)
	}
	var err error
	select {
	case err = <-cl.done:
	case <-ctx.Done():
		if err = c.abandon(req.cookie, cl, ctx.Err()); err != nil {
			return c.describe(cmd, off, int64(length), err)
		}
	}
	if status != nil {
		*status = cl.status
	}
	*cl = call{done: cl.done, cover: cl.cover}
	c.calls.Put(cl)
	if err != nil {
		return c.describe(cmd, off, int64(length), err)
	}
	return nil
}

func (c *Client) register(cookie uint64, cl *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	c.pending[cookie] = cl
	return nil
}

// send writes one request. A request written in part leaves a connection that
// nobody can use any more.
func (c *Client) send(ctx context.Context, req request, payload []byte) error {
	select {
	case c.wlock <- struct{}{}:
	case <-ctx.Done():
		// Nothing was sent, so no reply will come.
		c.mu.Lock()
		if _, ok := c.pending[req.cookie]; ok {
			delete(c.pending, req.cookie)
			<-c.slots
		}
		c.mu.Unlock()
		return ctx.Err()
	case <-c.dead:
		return c.Err()
	}
	defer func() { <-c.wlock }()
	var hdr [requestSize]byte
	req.put(hdr[:])
	if len(payload) > 0 {
		c.wrote.Store(true)
	}
	if ctx.Done() != nil && c.wrote.Load() {
		fired := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			c.nc.SetWriteDeadline(time.Unix(1, 0))
			close(fired)
		})
		defer func() {
			if !stop() {
				<-fired
				c.nc.SetWriteDeadline(time.Time{})
			}
		}()
	}
	var err error
	if len(payload) == 0 {
		_, err = c.nc.Write(hdr[:])
	} else {
		bufs := net.Buffers{hdr[:], payload}
		_, err = bufs.WriteTo(c.nc)
	}
	if err == nil {
		return nil
	}
	c.fail(fmt.Errorf("%w: write request: %w", ErrConnectionLost, err))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.Err()
}

// abandon gives up waiting for a call because of cause. On return the reader
// does not touch the call's buffer any more. It returns cause, or nil if the
// call had in fact completed well.
func (c *Client) abandon(cookie uint64, cl *call, cause error) error {
	c.mu.Lock()
	select {
	case err := <-cl.done:
		c.mu.Unlock()
		return err
	default:
	}
	cl.cancelled = true
	if !cl.filling {
		cl.buf = nil
		c.mu.Unlock()
		return cause
	}
	idle := make(chan struct{})
	cl.idle = idle
	c.mu.Unlock()
	t := time.NewTimer(cancelGrace)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		c.fail(fmt.Errorf("%w: server stalled in the middle of a reply to a cancelled read", ErrConnectionLost))
		<-idle
	}
	return cause
}

// readLoop is the client's only goroutine. It completes every call.
func (c *Client) readLoop() {
	defer close(c.readerDone)
	err := c.readReplies()
	c.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, cl := range c.pending {
		delete(c.pending, cookie)
		cl.done <- c.cause
	}
}

func (c *Client) readReplies() error {
	var hdr [chunkHeaderSize]byte
	be := binary.BigEndian
	for {
		if err := c.readFull(hdr[:simpleReplySize]); err != nil {
			return err
		}
		magic := be.Uint32(hdr[:])
		cookie := be.Uint64(hdr[8:])
		c.mu.Lock()
		cl := c.pending[cookie]
		c.mu.Unlock()
		if cl == nil && (magic == magicSimple || magic == magicStructured) {
			return fmt.Errorf("%w: reply to unknown cookie %#x", ErrProtocol, cookie)
		}
		var done bool
		var err error
		switch {
		case magic == magicSimple:
			done, err = true, c.simpleReply(cl, Errno(be.Uint32(hdr[4:])))
		case magic == magicStructured && c.export.structured:
			if err := c.readFull(hdr[simpleReplySize:]); err != nil {
				return err
			}
			flags := be.Uint16(hdr[4:])
			done = flags&chunkFlagDone != 0
			err = c.chunk(cl, done, chunkType(be.Uint16(hdr[6:])), be.Uint32(hdr[16:]))
			if err == nil && done {
				err = c.checkComplete(cl)
			}
		default:
			return fmt.Errorf("%w: reply magic %#x", ErrProtocol, magic)
		}
		if err != nil {
			return err
		}
		if done {
			c.complete(cookie, cl)
		}
	}
}

// readFull reads or says that the connection is lost.
func (c *Client) readFull(b []byte) error {
	if _, err := io.ReadFull(c.br, b); err != nil {
		return fmt.Errorf("%w: read reply: %w", ErrConnectionLost, err)
	}
	return nil
}

func (c *Client) complete(cookie uint64, cl *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending[cookie] == cl { // else its sender took it back, slot included
		delete(c.pending, cookie)
		<-c.slots
	}
	cl.done <- cl.err
}

// checkComplete: a reply without an error must have told everything.
func (c *Client) checkComplete(cl *call) error {
	if cl.err != nil {
		return nil
	}
	switch cl.cmd {
	case cmdRead:
		if !cl.cover.complete() {
			return fmt.Errorf("%w: read reply ended without all of the data", ErrProtocol)
		}
	case cmdBlockStatus:
		if len(cl.status) != len(c.export.contexts) {
			return fmt.Errorf("%w: block status reply for %d of %d contexts", ErrProtocol, len(cl.status), len(c.export.contexts))
		}
	}
	return nil
}

func (c *Client) simpleReply(cl *call, errno Errno) error {
	if c.export.structured && cl.cmd == cmdRead {
		return fmt.Errorf("%w: simple reply to a structured read", ErrProtocol)
	}
	if errno != 0 {
		cl.err = &RemoteError{Errno: errno, Offset: -1}
		return nil
	}
	switch cl.cmd {
	case cmdRead:
		return c.fill(cl, 0, cl.cover.total)
	case cmdBlockStatus:
		return fmt.Errorf("%w: simple reply to a block status request", ErrProtocol)
	}
	return nil
}

// chunk handles one structured reply chunk of size bytes.
func (c *Client) chunk(cl *call, done bool, typ chunkType, size uint32) error {
	bad := func() error {
		return fmt.Errorf("%w: chunk type %d of %d bytes to %v", ErrProtocol, typ, size, cl.cmd)
	}
	var b [12]byte
	be := binary.BigEndian
	switch {
	case typ == chunkNone:
		if !done || size != 0 {
			return bad()
		}
		return nil
	case typ&chunkErrorBit != 0:
		return c.errorChunk(cl, typ, size)
	case typ == chunkOffsetData && cl.cmd == cmdRead:
		if size <= 8 || int64(size)-8 > int64(cl.cover.total) {
			return bad()
		}
		if err := c.readFull(b[:8]); err != nil {
			return err
		}
		return c.place(cl, be.Uint64(b[:]), int(size)-8, false)
	case typ == chunkOffsetHole && cl.cmd == cmdRead:
		if size != 12 {
			return bad()
		}
		if err := c.readFull(b[:12]); err != nil {
			return err
		}
		n := be.Uint32(b[8:])
		if n == 0 || int64(n) > int64(cl.cover.total) {
			return bad()
		}
		return c.place(cl, be.Uint64(b[:]), int(n), true)
	case typ == chunkBlockStatus && cl.cmd == cmdBlockStatus:
		return c.statusChunk(cl, size)
	}
	return bad()
}

// place puts a data or hole chunk where the server says it belongs, if that is
// within the request and not yet told.
func (c *Client) place(cl *call, off uint64, n int, hole bool) error {
	rel := off - uint64(cl.off)
	if off < uint64(cl.off) || rel > uint64(cl.cover.total) || !cl.cover.add(int(rel), n) {
		return fmt.Errorf("%w: chunk of %d bytes at %d does not fit the read of %d bytes at %d", ErrProtocol, n, off, cl.cover.total, cl.off)
	}
	if !hole {
		return c.fill(cl, int(rel), n)
	}
	if dst := c.beginFill(cl); dst != nil {
		clear(dst[rel:][:n])
	}
	c.endFill(cl)
	return nil
}

// fill reads n bytes of the connection into the call's buffer, or to nowhere
// if nobody waits for them.
func (c *Client) fill(cl *call, rel, n int) error {
	dst := c.beginFill(cl)
	defer c.endFill(cl)
	if dst != nil {
		return c.readFull(dst[rel:][:n])
	}
	if _, err := io.CopyN(io.Discard, c.br, int64(n)); err != nil {
		return fmt.Errorf("%w: read reply: %w", ErrConnectionLost, err)
	}
	return nil
}

func (c *Client) beginFill(cl *call) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl.filling = !cl.cancelled
	if cl.cancelled {
		return nil
	}
	return cl.buf
}

func (c *Client) endFill(cl *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl.filling = false
	if cl.idle != nil {
		close(cl.idle)
		cl.idle, cl.buf = nil, nil
	}
}

// errorChunk: u32 error | u16 message length | message | for an offset: u64.
func (c *Client) errorChunk(cl *call, typ chunkType, size uint32) error {
	if size < 6 || size > maxErrorPayload {
		return fmt.Errorf("%w: error chunk of %d bytes", ErrProtocol, size)
	}
	b := make([]byte, size)
	if err := c.readFull(b); err != nil {
		return err
	}
	be := binary.BigEndian
	errno, n := Errno(be.Uint32(b)), int(be.Uint16(b[4:]))
	b = b[6:]
	if errno == 0 || n > maxString || n > len(b) {
		return fmt.Errorf("%w: error chunk with error %d and a message of %d bytes", ErrProtocol, uint32(errno), n)
	}
	e := &RemoteError{Errno: errno, Message: string(b[:n]), Offset: -1}
	if typ == chunkErrorOffset {
		if len(b) != n+8 {
			return fmt.Errorf("%w: error chunk without its offset", ErrProtocol)
		}
		if off := be.Uint64(b[n:]); off < 1<<63 {
			e.Offset = int64(off)
		}
	}
	if cl.err == nil {
		cl.err = e
	}
	return nil
}
