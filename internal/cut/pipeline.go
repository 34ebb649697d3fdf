package cut

import (
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"
	"github.com/zeebo/blake3"
)

// job is one frame on its way: filled by the caller of the Writer, encoded by a
// worker, written by the emitter, used again.
type job struct {
	index  uint32
	frame  Frame // disk, lba
	raw    []byte
	lead   int // bytes of raw that count for the digest but are not carried
	block  int // of the tile, KindTile
	out    []byte
	digest [digestSize]byte
	hard   bool // compression did not shrink it by 5 %
	err    error
	done   chan struct{} // holds one token when encoded
}

// sink writes the object and keeps its sums. The first error sticks.
type sink struct {
	w      io.Writer
	off    int64
	sha    hash.Hash
	b3     *blake3.Hasher
	stored atomic.Int64 // off, for other goroutines
}

// sum fills in what the sink knows of the finished object.
func (s *sink) sum(o *Sealed) {
	o.Size = s.off
	s.sha.Sum(o.SHA256[:0])
	s.b3.Sum(o.BLAKE3[:0])
}

func newSink(w io.Writer) *sink { return &sink{w: w, sha: sha256.New(), b3: blake3.New()} }

func (s *sink) write(b []byte) error {
	n, err := s.w.Write(b)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	s.sha.Write(b)
	s.b3.Write(b)
	s.off += int64(n)
	s.stored.Store(s.off)
	return nil
}

// pipeline encodes frames on several goroutines and writes them in order. One
// goroutine feeds it; close stops it and waits for its goroutines, whatever happened before.
type pipeline struct {
	header []byte
	sink   *sink
	enc    encoder

	free  chan *job // not in use; their number bounds the memory
	work  chan *job // to be encoded
	order chan *job // the same jobs, in the order to be written
	wg    sync.WaitGroup

	failed   atomic.Pointer[error]
	inFlight atomic.Int64 // upper bound of the stored bytes of frames not yet written

	// Written by the emitter only; read after close.
	frames    []Frame
	tags      *blake3.Hasher
	digests   map[int][digestSize]byte
	rawFrames int64 // that compression did not shrink by 5 %
	rawBytes  int64 // their plaintext
}

func startPipeline(workers int, header []byte, s *sink, e encoder) *pipeline {
	jobs := 2*workers + 1
	p := &pipeline{
		header: header, sink: s, enc: e,
		free: make(chan *job, jobs), work: make(chan *job, jobs), order: make(chan *job, jobs),
		tags: blake3.New(), digests: make(map[int][digestSize]byte),
	}
	for range jobs {
		p.free <- &job{done: make(chan struct{}, 1)}
	}
	for range workers {
		p.wg.Go(func() {
			scratch := e.scratch()
			for j := range p.work {
				j.err = e.encode(j, scratch)
				j.done <- struct{}{}
			}
		})
	}
	p.wg.Go(p.emit)
	return p
}

// get returns an empty job. It waits until one is free.
func (p *pipeline) get(ctx context.Context) (*job, error) {
	select {
	case j := <-p.free:
		if err := p.err(); err != nil {
			p.free <- j
			return nil, err
		}
		j.raw, j.lead = j.raw[:0], 0
		return j, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put hands a filled job over. It never waits: the queues hold all jobs there are.
func (p *pipeline) put(j *job) {
	p.inFlight.Add(int64(len(j.raw) + sealOverhead))
	p.order <- j
	p.work <- j
}

// emit writes frames in order. After a failure it only keeps jobs flowing.
func (p *pipeline) emit() {
	for j := range p.order {
		<-j.done
		if p.err() == nil {
			if err := p.emitOne(j); err != nil {
				p.failed.Store(&err)
			}
		}
		p.inFlight.Add(-int64(len(j.raw) + sealOverhead))
		p.free <- j
	}
}

func (p *pipeline) emitOne(j *job) error {
	if j.err != nil {
		return j.err
	}
	if p.sink.off == 0 {
		if err := p.sink.write(p.header); err != nil {
			return err
		}
	}
	j.frame.Off, j.frame.CLen = p.sink.off, uint32(len(j.out))
	if err := p.sink.write(j.out); err != nil {
		return err
	}
	p.frames = append(p.frames, j.frame)
	p.tags.Write(j.out[len(j.out)-16:])
	if p.enc.digests {
		p.digests[j.block] = j.digest
	}
	if j.hard {
		p.rawFrames++
		p.rawBytes += int64(j.frame.RawLen)
	}
	return nil
}

func (p *pipeline) err() error {
	if e := p.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// close waits until every frame is written, or given up after a failure.
func (p *pipeline) close() error {
	close(p.work)
	close(p.order)
	p.wg.Wait()
	return p.err()
}

// encoder compresses and seals frames; it is safe for concurrent use.
type encoder struct {
	codec   Codec
	segment [16]byte
	data    cipher.AEAD
	zstd    *zstd.Encoder
	digests bool
	digest  DigestKey
}

// scratch is what one worker keeps between frames.
type scratch struct {
	packed   []byte
	aad      []byte
	digester *Digester
}

func (e encoder) scratch() *scratch {
	s := &scratch{}
	if e.digests {
		s.digester = e.digest.NewDigester()
	}
	return s
}

func (e encoder) encode(j *job, s *scratch) (err error) {
	if e.digests {
		j.digest = s.digester.Sum(j.raw)
	}
	raw := j.raw[j.lead:]
	payload, codec := raw, CodecNone
	switch e.codec {
	case CodecZstd:
		s.packed = e.zstd.EncodeAll(raw, s.packed[:0])
		if worthIt(len(s.packed), len(raw)) {
			payload, codec = s.packed, CodecZstd
		}
	case CodecMinLZ:
		if s.packed, err = minlz.AppendEncoded(s.packed[:0], raw, minlz.LevelFastest); err != nil {
			return fmt.Errorf("compress frame %d: %w", j.index, err)
		}
		if worthIt(len(s.packed), len(raw)) {
			payload, codec = s.packed, CodecMinLZ
		}
	}
	j.hard = e.codec != CodecNone && len(s.packed) > len(raw)-len(raw)/20
	j.frame.RawLen, j.frame.Codec = uint32(len(raw)), codec
	s.aad = frameAAD(s.aad, e.segment, j.index, j.frame)
	j.out = e.data.Seal(j.out[:0], nil, payload, s.aad)
	return nil
}
