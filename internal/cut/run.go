package cut

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"holdfast/internal/dr"
)

// A run tells what the cuts behind one position up to another amount to, so
// that they need not be kept as they are: the newest image of every tile that
// they list, and for every range that is newer than its tile's image where its
// content is. The data stays in the segments where it was, or was rewritten into
// data segments or tile images. A map tells the same of all cuts up to a
// position; it stands for nothing and expires nothing, and only saves time.
//
// As in a cut, tile images come first and replace everything older, then the
// ranges of the map.

// RunConfig says what run or map is written.
type RunConfig struct {
	Kind     Kind // KindRun or KindMap
	Machine  dr.MachineID
	KeyEpoch uint32 // any epoch of the machine whose key is at hand
	Key      EpochKey
	Segment  [16]byte // random if zero
	UID      string   // random if empty

	// At is the position reached and Commit what stands there: Segment.Ref and
	// Segment.Commit of the cut, or of a run or map that reaches it. Gen and N of the new segment are At's.
	At     Ref
	Commit *Commit
	// From is the position that a run goes on from: what its first cut has as
	// Prev. Zero means complete, nothing older is needed; a map always is. A
	// run can't go on from cut number 0, because a name can't tell that from complete.
	From Ref
	// Tiles are the newest images, per disk and tile, that the cuts list, and new ones.
	Tiles []TileRef
	// Segments hold the data of the map. Not all need be in use.
	Segments []SegmentRef
	Cuts     uint64    // how many cuts are between From and At, At's included
	Made     time.Time // now
	Software string    // version of Holdfast
}

// derive returns the header and the commit of the segment.
func (c RunConfig) derive() (Header, *Commit, error) {
	const op = "cut.RunConfig"
	switch {
	case !c.Kind.hasMap():
		return Header{}, nil, invalid(op, "a %s is written by a Writer", c.Kind)
	case c.Commit == nil || c.Commit.Gen != c.At.Gen || c.Commit.N != c.At.N || c.Commit.Run != nil && c.Commit.Run.Hash != c.At.Hash:
		return Header{}, nil, invalid(op, "the commit is not the one of cut %d of generation %d", c.At.N, c.At.Gen)
	case c.Key == EpochKey{}:
		return Header{}, nil, invalid(op, "there is no epoch key")
	case !c.From.IsZero() && c.From.N == 0:
		return Header{}, nil, invalid(op, "a run can't go on from cut 0: let it begin behind cut 1, or be complete")
	}
	h := Header{
		Kind: c.Kind, Machine: c.Machine, Gen: c.At.Gen, N: c.At.N, Segment: c.Segment, KeyEpoch: c.KeyEpoch,
		UID: c.UID, From: c.From.N, Seed: c.Commit.Seed,
	}
	if h.Segment == ([16]byte{}) {
		rand.Read(h.Segment[:]) // crypto/rand.Read never fails
	}
	if h.UID == "" {
		h.UID = NewUID()
	}
	if p := h.problem(); p != "" {
		return h, nil, invalid(op, "segment header: %s", p)
	}
	own := *c.Commit
	own.Prev, own.Base = c.From, c.From.IsZero()
	own.Parts, own.Tiles, own.Segments = nil, slices.SortedFunc(slices.Values(c.Tiles), compareTiles), slices.Clone(c.Segments)
	own.Run = &RunInfo{Hash: c.At.Hash, Cuts: c.Cuts, Made: c.Made.UTC(), Software: c.Software}
	if err := own.check(h, nil); err != nil {
		return h, nil, dr.Errorf(dr.KindInvalid, op, "commit: %w", err)
	}
	return h, &own, nil
}

// RunWriter writes one run or map. Its methods are for one goroutine. It holds
// the map in its compressed form, about 2 to 5 bytes per extent and twice that while
// sealing, and starts no goroutine: it may be left behind at any time.
// Nothing is written before Seal. An error of any method is final.
type RunWriter struct {
	w      io.Writer
	key    EpochKey
	header Header
	commit *Commit

	enc    mapEncoder
	packed bytes.Buffer // a section's plaintext: its head, then what zstd has made so far
	zstd   *zstd.Encoder
	raw    []byte // not yet given to zstd
	rawLen int64
	count  uint32
	counts Counts

	err    error
	done   bool
	sealed Sealed
}

// NewRunWriter returns a writer of the run or map that cfg describes.
func NewRunWriter(w io.Writer, cfg RunConfig) (*RunWriter, error) {
	h, commit, err := cfg.derive()
	if err != nil {
		return nil, err
	}
	sizes, err := commit.diskSizes()
	if err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "cut.NewRunWriter", "commit: %w", err)
	}
	r := &RunWriter{w: w, key: cfg.Key, header: h, commit: commit, enc: mapEncoder{mapState: newMapState(len(commit.Segments), sizes)}}
	r.packed.Write(make([]byte, sectionFixed))
	r.zstd, err = zstd.NewWriter(&r.packed, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(mapWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "cut.NewRunWriter", "make zstd encoder: %w", err)
	}
	return r, nil
}

// Header returns the segment's header with everything filled in.
func (r *RunWriter) Header() Header { return r.header }

// Name returns the only name under which the segment will be valid.
func (r *RunWriter) Name() ObjectName { return r.header.Name() }

// Format shows the segment's name and none of its keys.
func (r *RunWriter) Format(f fmt.State, _ rune) { io.WriteString(f, "writer of "+r.Name().Key()) }

// Extents returns the number of extents so far; MaxExtents is the limit.
func (r *RunWriter) Extents() int { return int(r.count) }

func (r *RunWriter) fail(err error) error {
	if r.err == nil {
		r.err = fmt.Errorf("write %s %q: %w", r.header.Kind, r.Name(), err)
	}
	return r.err
}

// Add adds an extent. Extents come in order of disk and offset and do not overlap.
func (r *RunWriter) Add(e MapExtent) error {
	const op = "cut.RunWriter"
	switch {
	case r.err != nil:
		return r.err
	case r.done:
		return invalid(op, "write to %s %q, which is sealed", r.header.Kind, r.Name())
	case r.count == MaxExtents || r.rawLen > sectionMax-maxMapEntry:
		return r.fail(invalid(op, "%d extents are too many for one map: fold what they cover into tile images first", r.count))
	}
	n := len(r.raw)
	var err error
	if r.raw, err = r.enc.append(r.raw, e); err != nil {
		return r.fail(dr.Errorf(dr.KindInvalid, op, "%w", err))
	}
	r.count++
	r.rawLen += int64(len(r.raw) - n)
	if e.Zero {
		r.counts.ZeroBytes += e.Len
	} else {
		r.counts.DataBytes += e.Len
	}
	if len(r.raw) >= mapChunk {
		return r.flush()
	}
	return nil
}

func (r *RunWriter) flush() error {
	if _, err := r.zstd.Write(r.raw); err != nil {
		return r.fail(dr.Errorf(dr.KindInternal, "cut.RunWriter", "compress: %w", err))
	}
	r.raw = r.raw[:0]
	return nil
}

// Seal writes the segment. The destination is neither flushed nor closed. A
// second Seal returns what the first one did.
func (r *RunWriter) Seal() (Sealed, error) {
	if r.done {
		return r.sealed, r.err
	}
	r.done = true
	if r.err != nil {
		return Sealed{}, r.err
	}
	s, err := r.seal()
	if err != nil {
		return Sealed{}, r.fail(err)
	}
	r.sealed = s
	return s, nil
}

func (r *RunWriter) seal() (Sealed, error) {
	const op = "cut.RunWriter"
	if err := r.flush(); err != nil {
		return Sealed{}, err
	}
	if err := r.zstd.Close(); err != nil {
		return Sealed{}, dr.Errorf(dr.KindInternal, op, "compress: %w", err)
	}
	mapped := r.packed.Bytes()
	codec := CodecZstd
	if r.rawLen == 0 {
		codec, mapped = CodecNone, mapped[:sectionFixed]
	}
	le.PutUint32(mapped, uint32(r.rawLen))
	mapped[4] = byte(codec)
	le.PutUint32(mapped[5:], uint32(len(mapped)-sectionFixed))
	plain, err := r.sections(mapped)
	if err != nil {
		return Sealed{}, err
	}
	check, err := r.key.check(r.header.Segment)
	if err != nil {
		return Sealed{}, err
	}
	header := r.header.encode(maxFrameLog2, check)
	f := plain.footer(headerSize, r.counts)
	f.extents, f.tagRoot = r.count, blake3.Sum256(nil)
	tail, err := plain.seal(r.key, r.header.Segment, header, f)
	if err != nil {
		return Sealed{}, err
	}
	r.packed = bytes.Buffer{}
	out := newSink(r.w)
	for _, b := range [][]byte{header, tail} {
		if err := out.write(b); err != nil {
			return Sealed{}, err
		}
	}
	s := Sealed{Name: r.Name(), ChainHash: r.commit.Run.Hash, Extents: int(r.count), Counts: r.counts}
	out.sum(&s)
	return s, nil
}

func (r *RunWriter) sections(mapped []byte) (s sections, err error) {
	enc, err := newZstd(1)
	if err != nil {
		return s, err
	}
	s.mapped = mapped
	if s.index, err = packSection(encodeIndex(nil, nil, Block), enc); err != nil {
		return s, err
	}
	raw, err := encodeCommit(r.commit, r.header, nil)
	if err != nil {
		return s, dr.Errorf(dr.KindInvalid, "cut.RunWriter", "commit: %w", err)
	}
	s.commit, err = packSection(raw, enc)
	return s, err
}
