package warm

import (
	"context"
	"math/rand/v2"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/pageblob"
	"holdfast/internal/store"
	"holdfast/internal/vhd"
)

// Result says what an Apply did, also after an error.
type Result struct {
	From, To  string // names of points; From is empty if it was unknown or the disks differed
	Unchanged bool   // the replica had the point already
	Compared  []string
	Cuts      int   // elements of the history that were applied, the most of any disk
	Bytes     int64 // of pages sent
	Cleared   int64
	Egress    int64 // bytes downloaded to be compared
	Requests  int64 // of the container, repeated ones included
	Seconds   float64
	Lag       time.Duration     // from the cut to the end of the Apply
	Snapshots map[string]string // address by disk id, without a signature
}

// Apply brings the disks of a machine to a recovery point of st and snapshots them.
// Any point can be asked for, also an older one, and asking again for one that is
// there does nothing. dr.KindFenced means that another Apply has taken over; every other
// error leaves a replica that the next Apply goes on with, and all points that were
// complete before.
func (r *Replica) Apply(ctx context.Context, st *store.Store, m dr.MachineID, gen dr.Generation, n uint64) (res Result, err error) {
	began, before := time.Now(), r.store.Count().Requests
	a := &apply{r: r, m: m, writer: uuid.NewString(), res: &res}
	defer func() {
		res.Requests = r.store.Count().Requests - before
		res.Seconds = time.Since(began).Seconds()
		if a.view != nil {
			res.Lag = r.cfg.Now().Sub(a.view.Info().Commit.Time)
			a.view.Close()
		}
		a.history.close()
	}()
	res.To = dr.PointName(gen, n)
	inv, err := r.list(ctx, m)
	if err != nil {
		return res, a.wrap(err)
	}
	if a.view, err = st.OpenPoint(ctx, m, gen, n); err != nil {
		return res, err
	}
	a.target = a.view.Info().Ref
	if a.present(inv) {
		res.Unchanged = true
		return res, nil
	}
	a.history = &history{st: st, m: m, target: a.view.Info()}
	var indexes []uint16
	for _, d := range a.view.Disks() {
		if vhd.CheckAzure(vhd.RoundAzure(d.Size)) != nil {
			return res, dr.New(dr.KindUnsupported, dr.CodeAzureDisk, "warm.Apply", "disk %s of machine %s has %d bytes, a page blob takes a disk of %d at most", d.ID, m, d.Size, vhd.MaxPageBlob).
				WithHint("The disk can't be kept warm. At a failover it is copied from the store into a managed disk.")
		}
		indexes = append(indexes, d.Index)
		a.disks = append(a.disks, &disk{apply: a, info: d, blob: r.store.Blob(r.blobName(m, d.Index))})
	}
	a.set = setText(indexes)
	if err := a.each(ctx, (*disk).bring); err != nil {
		return res, a.wrap(err)
	}
	a.sum()
	if err := a.each(ctx, (*disk).snapshot); err != nil {
		return res, a.wrap(err)
	}
	r.log.Info("warm replica reached a point", "machine", m, "point", res.To, "from", res.From, "bytes", res.Bytes, "compared", len(res.Compared))
	return res, nil
}

type apply struct {
	r       *Replica
	m       dr.MachineID
	writer  string // random: whose metadata a blob has
	view    *store.View
	target  cut.Ref
	set     string
	disks   []*disk
	history *history

	mu  sync.Mutex
	res *Result
}

// disk is one disk on its way to the point.
type disk struct {
	*apply
	info store.DiskInfo
	blob *pageblob.Client
	seq  int64  // the sequence number that is ours
	etag string // of the blob once it is at the point
	from cut.Ref
	full bool
	cuts int
}

// wrap says that it was the warm replica that failed, where nothing says more.
func (a *apply) wrap(err error) error {
	if dr.CodeOf(err) != "" && !pageblob.Absent(err) {
		return err
	}
	kind := dr.KindOf(err)
	if kind == dr.KindNotFound {
		kind = dr.KindUnavailable // a blob that was deleted under way: the next Apply makes it again
	}
	return dr.New(kind, dr.CodeWarmReplica, "warm.Apply", "bring the warm replica of machine %s to %s: %w", a.m, a.res.To, err)
}

func (a *apply) each(ctx context.Context, f func(*disk, context.Context) error) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(a.r.cfg.Disks)
	for _, d := range a.disks {
		eg.Go(func() error { return f(d, ctx) })
	}
	return eg.Wait()
}

// present reports whether the replica has the point already, complete.
func (a *apply) present(inv *inventory) bool {
	for _, p := range a.r.points(inv) {
		if p.Ref != a.target {
			continue
		}
		a.res.From, a.res.Snapshots = a.res.To, map[string]string{}
		for id, i := range p.Disks {
			a.res.Snapshots[id] = i.URL
		}
		return true
	}
	return false
}

// sum fills the result once all disks are at the point.
func (a *apply) sum() {
	for i, d := range a.disks {
		from := ""
		if !d.full {
			from = dr.PointName(d.from.Gen, d.from.N)
		} else {
			a.res.Compared = append(a.res.Compared, d.info.ID)
		}
		if i == 0 {
			a.res.From = from
		} else if a.res.From != from {
			a.res.From = ""
		}
		a.res.Cuts = max(a.res.Cuts, d.cuts)
	}
}

// fenced is the error of an Apply that lost a blob to another one.
func (d *disk) fenced(why string) error {
	return dr.New(dr.KindFenced, dr.CodeWarmReplica, "warm.Apply", "blob %s was taken over by another writer: %s", d.blob.Name(), why).
		WithHint("Nothing is wrong if another vault or agent applies points to the same replica now.")
}

// bring makes the blob the disk at the point.
func (d *disk) bring(ctx context.Context) error {
	size := vhd.RoundAzure(d.info.Size) + vhd.FooterSize
	if err := d.ensure(ctx, size); err != nil {
		return err
	}
	seq, _, err := d.blob.NextSequence(ctx)
	if err != nil {
		return err
	}
	d.seq = seq
	// The metadata is read after the number was taken: what an older writer wrote before
	// that counts, and afterwards it can't write.
	st, err := d.own(ctx)
	if err != nil {
		return err
	}
	s := stateOf(st.Metadata, d.m)
	only, low, high, err := d.plan(ctx, s, st)
	if err != nil {
		return err
	}
	d.full = only == nil
	d.from = low
	if !d.full && len(only) == 0 && !s.applying && st.Size == size {
		if d.etag = st.ETag; low == high {
			return nil // it is at the point; only the snapshot is missing
		}
		return d.arrive(ctx, st.ETag)
	}
	md := d.metadata()
	md[keyState], md[keyLow] = stateApplying, unknownPoint
	if !d.full {
		md[keyLow], md[keyHigh] = pointText(low), pointText(high)
	}
	md[keySize] = strconv.FormatInt(lowWater(s, st, d.info.Size), 10)
	etag, err := d.change(ctx, st.ETag, md, func(etag string) (string, error) { return d.blob.SetMetadata(ctx, md, pageblob.If{ETag: etag}) }, 0)
	if err != nil {
		return err
	}
	if st.Size != size {
		if _, err = d.change(ctx, etag, md, func(etag string) (string, error) { return d.blob.Resize(ctx, size, pageblob.If{ETag: etag}) }, size); err != nil {
			return err
		}
	}
	o := pageblob.Options{Workers: d.r.cfg.Workers, Rate: d.r.cfg.Rate, Requests: d.r.cfg.Requests, Sequence: &seq, Only: only, Resume: d.full, ID: d.vhdID()}
	up, err := pageblob.Upload(ctx, d.blob, &source{d.view, d.info}, o)
	d.mu.Lock()
	d.res.Bytes += up.Written
	d.res.Cleared += up.Cleared
	d.res.Egress += up.Compared
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if st, err = d.own(ctx); err != nil {
		return err
	}
	if st.Metadata[keyWriter] != d.writer || st.Size != size {
		return d.fenced("it has other metadata")
	}
	return d.arrive(ctx, st.ETag)
}

// arrive says in the metadata that the blob is at the point.
func (d *disk) arrive(ctx context.Context, etag string) (err error) {
	md := d.metadata()
	md[keyState], md[keyLow], md[keySize] = stateAt, pointText(d.target), strconv.FormatInt(d.info.Size, 10)
	d.etag, err = d.change(ctx, etag, md, func(etag string) (string, error) { return d.blob.SetMetadata(ctx, md, pageblob.If{ETag: etag}) }, 0)
	return err
}

// ensure makes the blob if there is none. One that was made by a lost request, or by
// another writer, is good as well.
func (d *disk) ensure(ctx context.Context, size int64) error {
	_, err := d.blob.Stat(ctx)
	if !pageblob.Absent(err) {
		return err
	}
	md := d.metadata()
	md[keyState], md[keyLow], md[keySize] = stateApplying, unknownPoint, strconv.FormatInt(d.info.Size, 10)
	// Not from zero: the writer of a blob of this name that was deleted may still live, and
	// must not find its number again. Below 2^53, which emulators can count to.
	first := d.r.cfg.Now().UnixMilli()<<11 | rand.Int64N(1<<11)
	_, err = d.blob.Create(ctx, size, first, md, pageblob.If{New: true})
	if pageblob.Changed(err) {
		return nil
	}
	return err
}

// own reads the blob's properties and checks that the sequence number is still ours.
func (d *disk) own(ctx context.Context) (pageblob.Stat, error) {
	st, err := d.blob.Stat(ctx)
	if err == nil && st.Sequence != d.seq {
		err = d.fenced("its sequence number is " + strconv.FormatInt(st.Sequence, 10) + ", not " + strconv.FormatInt(d.seq, 10))
	}
	return st, err
}

// change makes a change on condition of the ETag. If the condition does not hold, the
// answer to an earlier attempt may have been lost: then the blob has our sequence
// number, our metadata, and the size that was asked for (0 = any).
func (d *disk) change(ctx context.Context, etag string, md map[string]string, f func(etag string) (string, error), size int64) (string, error) {
	next, err := f(etag)
	if !pageblob.Changed(err) {
		return next, err
	}
	st, serr := d.own(ctx)
	if serr != nil {
		return "", serr
	}
	for k, v := range md {
		if st.Metadata[k] != v {
			return "", d.fenced("it has other metadata")
		}
	}
	if size != 0 && st.Size != size {
		return "", d.fenced("it has another size")
	}
	return st.ETag, nil
}

func (d *disk) metadata() map[string]string {
	return map[string]string{keyVersion: version, keyMachine: string(d.m), keyDisk: url.QueryEscape(d.info.ID), keySet: d.set, keyWriter: d.writer}
}

// vhdID is the same for a disk as long as the replica lives.
func (d *disk) vhdID() [16]byte {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("holdfast:warm:"+string(d.m)+"/"+strconv.Itoa(int(d.info.Index))))
}

// lowWater is where the known content ends whatever happens next: at the end of the
// disk as it was, of the blob, or of the disk as it is to be.
func lowWater(s state, st pageblob.Stat, size int64) int64 {
	if s.size > 0 {
		size = min(size, s.size)
	}
	return max(1, min(size, st.Size-vhd.FooterSize))
}

// plan decides what has to be written: nil = everything is compared. low and high are
// between which points the blob is until it is done.
func (d *disk) plan(ctx context.Context, s state, st pageblob.Stat) (only extent.Set, low, high cut.Ref, err error) {
	none := cut.Ref{}
	if !s.known || !s.applying && st.Size != vhd.RoundAzure(s.size)+vhd.FooterSize {
		return nil, none, none, nil
	}
	span, err := d.history.span(ctx, s.low, s.high)
	if err != nil || span == nil {
		if err == nil {
			d.r.log.Info("warm replica is compared as a whole", "machine", d.m, "disk", d.info.ID, "point", d.res.To, "held", pointText(s.low), "why", d.history.reason())
		}
		return nil, none, none, err
	}
	list := []extent.Extent{}
	if span.view != nil {
		end := d.info.Size
		for _, x := range span.view.Disks() {
			if x.Index == d.info.Index {
				end = min(end, x.Size)
			}
		}
		err = span.view.Pieces(d.info.Index, 0, end, func(p store.Piece) error {
			list = append(list, extent.Extent{Off: p.Off, Len: p.Len})
			return nil
		})
		if dr.KindOf(err) == dr.KindNotFound {
			return nil, none, none, nil // the span ends where there is no such disk
		}
		if err != nil {
			return nil, none, none, err
		}
		for _, t := range span.view.Tiles() {
			if t.Disk == d.info.Index {
				list = append(list, extent.Extent{Off: int64(t.Tile) * cut.TileSize, Len: cut.TileSize})
			}
		}
	}
	// What lies beyond the known content: new space, the rest of the last MiB, an old footer.
	if water := lowWater(s, st, d.info.Size); s.applying || water != d.info.Size || s.size != d.info.Size {
		list = append(list, extent.Extent{Off: water, Len: vhd.RoundAzure(d.info.Size) - water})
	}
	d.cuts = span.cuts
	only = extent.Normalize(list).AlignOut(pageblob.Block, vhd.RoundAzure(d.info.Size))
	if only == nil {
		only = extent.Set{}
	}
	return only, span.low, span.high, nil
}

// snapshot makes the point one of this disk's.
func (d *disk) snapshot(ctx context.Context) error {
	md := d.metadata()
	delete(md, keyWriter)
	md[keySnapshot], md[keySize] = pointText(d.target), strconv.FormatInt(d.info.Size, 10)
	md[keyTime] = d.view.Info().Commit.Time.UTC().Format(time.RFC3339)
	id, err := d.blob.Snapshot(ctx, md, pageblob.If{ETag: d.etag})
	if pageblob.Changed(err) {
		// Either somebody took over, or a first attempt whose answer was lost did change the
		// ETag. Then there are two snapshots, which is no harm.
		st, serr := d.own(ctx)
		if serr != nil {
			return serr
		}
		if s := stateOf(st.Metadata, d.m); !s.known || s.applying || s.low != d.target {
			return d.fenced("it has other metadata")
		}
		id, err = d.blob.Snapshot(ctx, md, pageblob.If{ETag: st.ETag})
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.res.Snapshots == nil {
		d.res.Snapshots = map[string]string{}
	}
	d.res.Snapshots[d.info.ID] = pageblob.SnapshotURL(d.blob.URL(), id)
	return nil
}

// source is a disk of the point.
type source struct {
	view *store.View
	disk store.DiskInfo
}

func (s *source) Size() int64 { return s.disk.Size }

func (s *source) Extents(ctx context.Context, off, length int64, fn func(off, n int64, zero bool) error) error {
	return s.view.Extents(ctx, s.disk.ID, off, length, fn)
}

func (s *source) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.view.ReadOnce(ctx, s.disk.ID, p, off)
}
