package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

const (
	// readPiece is the most data of one chunk of a structured read. It bounds
	// memory and lets a large read stream.
	readPiece = 1 << 20
	// minHole is the shortest run of zeroes that is sent as a hole; below it the
	// bytes cost less than the question.
	minHole = 32 << 10
	// maxStatusExtents bounds the extents of one block status reply; clients ask
	// again for the rest.
	maxStatusExtents = 4096
	// maxDiscard is how much payload of a refused write is read away before the
	// connection is given up instead.
	maxDiscard = 64 << 20
)

// conn is one connection of a Server. One goroutine reads requests; each
// request is executed by a goroutine of its own.
type conn struct {
	srv    *Server
	nc     net.Conn
	br     *bufio.Reader
	log    *slog.Logger
	ctx    context.Context // ends device calls; done when the connection is over
	cancel context.CancelFunc

	// Set by negotiation, constant afterwards.
	structured bool
	allocation bool   // base:allocation is granted
	metaExport string // for this export
	export     string
	dev        Device
	wdev       WritableDevice // nil if dev is read-only
	size       int64

	slots chan struct{}       // one token per request under way
	mem   *semaphore.Weighted // bytes of payload buffers
	wg    sync.WaitGroup      // requests under way
	wmu   sync.Mutex          // held to write to nc after negotiation

	failures atomic.Int64 // failed device calls
}

func (c *conn) run() error {
	if err := c.negotiate(); err != nil {
		if errors.Is(err, errDone) {
			return nil
		}
		return err
	}
	c.log.Debug("nbd connection opened", "export", c.export, "size", c.size,
		"writable", c.wdev != nil, "structured", c.structured, "allocation", c.allocation)
	err := c.requests()
	if err != nil {
		c.cancel() // nobody is left to answer; after a goodbye answers are still due
	}
	c.wg.Wait()
	return err
}

func (c *conn) requests() error {
	var b [requestSize]byte
	for {
		if _, err := io.ReadFull(c.br, b[:]); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		req, err := parseRequest(b[:])
		if err != nil {
			return err
		}
		if req.cmd == cmdDisc {
			return nil
		}
		if err := c.admit(req); err != nil {
			return err
		}
	}
}

// admit answers a request that is refused and starts one that is not, as soon
// as the limits allow. An error ends the connection.
func (c *conn) admit(req request) error {
	if errno := c.check(req); errno != 0 {
		if req.cmd == cmdWrite {
			if req.length > maxDiscard {
				return fmt.Errorf("%w: write of %d bytes", ErrProtocol, req.length)
			}
			if _, err := io.CopyN(io.Discard, c.br, int64(req.length)); err != nil {
				return fmt.Errorf("read refused payload: %w", err)
			}
		}
		c.refuse(req, errno)
		return nil
	}
	var need int64
	switch req.cmd {
	case cmdRead, cmdCache:
		need = int64(req.length)
		if req.cmd == cmdCache || c.structured && req.flags&cmdFlagDF == 0 {
			need = min(need, readPiece)
		}
	case cmdWrite:
		need = int64(req.length)
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	if err := c.mem.Acquire(c.ctx, need); err != nil {
		return err
	}
	var payload *buffer
	if req.cmd == cmdWrite {
		payload = c.srv.buffers.get(int(req.length))
		if _, err := io.ReadFull(c.br, payload.payload(int(req.length))); err != nil {
			return fmt.Errorf("read payload of a write: %w", err)
		}
	}
	c.wg.Add(1)
	go c.execute(req, payload, need)
	return nil
}

// check is everything that can be wrong with a request by itself.
func (c *conn) check(req request) Errno {
	var flags uint16
	if c.wdev != nil {
		flags = cmdFlagFUA
	}
	outside := EINVAL
	switch req.cmd {
	case cmdFlush: // has no range; on a read-only device it does nothing
		if req.flags&^flags != 0 {
			return EINVAL
		}
		return 0
	case cmdRead:
		if c.structured {
			flags |= cmdFlagDF
		}
	case cmdBlockStatus:
		if !c.allocation {
			return EINVAL
		}
		flags |= cmdFlagReqOne
	case cmdCache:
	case cmdWriteZeroes:
		flags |= cmdFlagNoHole
		outside = ENOSPC
	case cmdWrite:
		outside = ENOSPC
	case cmdTrim:
	default:
		return EINVAL
	}
	changes := req.cmd == cmdWrite || req.cmd == cmdWriteZeroes || req.cmd == cmdTrim
	switch {
	case changes && c.wdev == nil:
		return EPERM
	case req.flags&^flags != 0 || req.length == 0:
		return EINVAL
	case (req.cmd == cmdRead || req.cmd == cmdWrite) && int64(req.length) > int64(c.srv.cfg.MaxRequest):
		return EINVAL
	case req.off > uint64(c.size) || uint64(req.length) > uint64(c.size)-req.off:
		return outside
	}
	return 0
}

// execute runs one request and answers it.
func (c *conn) execute(req request, payload *buffer, need int64) {
	defer c.wg.Done()
	off, length := int64(req.off), int64(req.length)
	var err error
	switch req.cmd {
	case cmdRead:
		c.read(req)
	case cmdBlockStatus:
		c.blockStatus(req)
	case cmdCache:
		err = c.prefetch(off, length)
	case cmdFlush:
		if c.wdev != nil {
			err = c.wdev.Flush(c.ctx)
		}
	case cmdWrite:
		err = c.wdev.WriteAt(c.ctx, payload.payload(int(length)), off)
		c.srv.buffers.put(payload)
	case cmdTrim:
		err = c.wdev.Trim(c.ctx, off, length)
	case cmdWriteZeroes:
		err = c.wdev.WriteZeroes(c.ctx, off, length, req.flags&cmdFlagNoHole != 0)
	}
	if req.cmd != cmdRead && req.cmd != cmdBlockStatus { // those two have answered
		if err == nil && req.flags&cmdFlagFUA != 0 {
			err = c.wdev.Flush(c.ctx)
		}
		if err != nil {
			c.deviceFailed(req, err, req.off)
		} else {
			c.simple(req, 0)
		}
	}
	c.mem.Release(need)
	<-c.slots
}

// prefetch reads and forgets, which fills the caches of a device that has any.
func (c *conn) prefetch(off, length int64) error {
	b := c.srv.buffers.get(int(min(length, readPiece)))
	defer c.srv.buffers.put(b)
	for length > 0 {
		n := min(length, readPiece)
		if err := c.dev.ReadAt(c.ctx, b.payload(int(n)), off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func (c *conn) read(req request) {
	if c.structured && req.flags&cmdFlagDF == 0 {
		c.readChunked(req)
		return
	}
	n := int(req.length)
	b := c.srv.buffers.get(n)
	defer c.srv.buffers.put(b)
	if err := c.dev.ReadAt(c.ctx, b.payload(n), int64(req.off)); err != nil {
		c.deviceFailed(req, err, req.off)
		return
	}
	if c.structured {
		c.send(dataChunk(b, req, req.off, n, true))
		return
	}
	frame := b.framed(simpleReplySize, n)
	putSimpleReply(frame, 0, req.cookie)
	c.send(frame)
}

// dataChunk puts the header in front of n bytes of payload in b.
func dataChunk(b *buffer, req request, off uint64, n int, done bool) []byte {
	frame := b.framed(dataHeader, n)
	putChunkHeader(frame, doneFlag(done), chunkOffsetData, req.cookie, 8+n)
	binary.BigEndian.PutUint64(frame[chunkHeaderSize:], off)
	return frame
}

func doneFlag(done bool) uint16 {
	if done {
		return chunkFlagDone
	}
	return 0
}

// readChunked answers with data chunks of at most readPiece, and with hole
// chunks where the device promises enough zeroes.
func (c *conn) readChunked(req request) {
	pos, end := int64(req.off), int64(req.off)+int64(req.length)
	b := c.srv.buffers.get(int(min(end-pos, readPiece)))
	defer c.srv.buffers.put(b)
	for _, h := range append(c.holes(pos, end-pos), AllocationExtent{Off: end}) {
		for pos < h.Off {
			n := min(h.Off-pos, readPiece)
			if err := c.dev.ReadAt(c.ctx, b.payload(int(n)), pos); err != nil {
				c.deviceFailed(req, err, uint64(pos))
				return
			}
			if !c.send(dataChunk(b, req, uint64(pos), int(n), pos+n == end)) {
				return
			}
			pos += n
		}
		if h.Len == 0 {
			return
		}
		frame := b.all[:chunkHeaderSize+holePayload]
		putChunkHeader(frame, doneFlag(pos+h.Len == end), chunkOffsetHole, req.cookie, holePayload)
		binary.BigEndian.PutUint64(frame[chunkHeaderSize:], uint64(pos))
		binary.BigEndian.PutUint32(frame[chunkHeaderSize+8:], uint32(h.Len))
		if !c.send(frame) {
			return
		}
		pos += h.Len
	}
}

// holes are the runs of at least minHole zeroes within the range. A device
// that cannot tell has none: then the data itself is read, or fails.
func (c *conn) holes(off, length int64) []AllocationExtent {
	if length < minHole {
		return nil
	}
	exts, err := allocation(c.ctx, c.dev, off, length, int(length))
	if err != nil {
		return nil
	}
	runs := exts[:0]
	for _, e := range exts {
		if k := len(runs) - 1; k >= 0 && e.Zero && runs[k].Off+runs[k].Len == e.Off {
			runs[k].Len += e.Len // a hole beside allocated zeroes
		} else if e.Zero {
			runs = append(runs, e)
		}
	}
	long := runs[:0]
	for _, e := range runs {
		if e.Len >= minHole {
			long = append(long, e)
		}
	}
	return long
}

func (c *conn) blockStatus(req request) {
	limit := maxStatusExtents
	if req.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	exts, err := allocation(c.ctx, c.dev, int64(req.off), int64(req.length), limit)
	if err != nil {
		c.deviceFailed(req, err, req.off)
		return
	}
	size := 4 + 8*len(exts)
	frame := make([]byte, chunkHeaderSize, chunkHeaderSize+size)
	putChunkHeader(frame, chunkFlagDone, chunkBlockStatus, req.cookie, size)
	be := binary.BigEndian
	frame = be.AppendUint32(frame, allocationID)
	for _, e := range exts {
		var flags uint32
		if e.Hole {
			flags |= StateHole
		}
		if e.Zero {
			flags |= StateZero
		}
		frame = be.AppendUint32(frame, uint32(e.Len))
		frame = be.AppendUint32(frame, flags)
	}
	c.send(frame)
}

// deviceFailed answers with an error and logs it: the first failure, then the
// second, fourth, eighth …, for a guest that retries during an outage must not
// fill the log.
func (c *conn) deviceFailed(req request, err error, at uint64) {
	if c.ctx.Err() != nil {
		return // stopping, see send
	}
	if n := c.failures.Add(1); n&(n-1) == 0 {
		c.log.Warn("nbd request failed", "export", c.export, "command", req.cmd.String(),
			"offset", at, "length", req.length, "failures", n, "error", err)
	}
	errno := errnoOf(err)
	if req.cmd != cmdRead || !c.structured {
		c.refuse(req, errno)
		return
	}
	const size = 4 + 2 + 8
	frame := make([]byte, chunkHeaderSize+size)
	putChunkHeader(frame, chunkFlagDone, chunkErrorOffset, req.cookie, size)
	binary.BigEndian.PutUint32(frame[chunkHeaderSize:], uint32(errno))
	binary.BigEndian.PutUint64(frame[chunkHeaderSize+6:], at)
	c.send(frame)
}

// refuse answers with an error, in the form that the command demands.
func (c *conn) refuse(req request, errno Errno) {
	if !c.structured || req.cmd != cmdRead && req.cmd != cmdBlockStatus {
		c.simple(req, errno)
		return
	}
	const size = 4 + 2
	frame := make([]byte, chunkHeaderSize+size)
	putChunkHeader(frame, chunkFlagDone, chunkError, req.cookie, size)
	binary.BigEndian.PutUint32(frame[chunkHeaderSize:], uint32(errno))
	c.send(frame)
}

func (c *conn) simple(req request, errno Errno) {
	frame := make([]byte, simpleReplySize)
	putSimpleReply(frame, errno, req.cookie)
	c.send(frame)
}

// send writes one reply or chunk. Once the connection is to end nothing is
// sent any more: device calls then fail because they were cancelled, and that
// must reach the client as a lost connection and not as an I/O error.
func (c *conn) send(frame []byte) bool {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	if _, err := c.nc.Write(frame); err != nil {
		c.cancel()
		return false
	}
	return true
}
