// Package pagestore is the data plane of the Azure simulator: a server side of
// the Blob service's REST contract (versions 2021-12-02 and later) for managed
// disks by signed address and for storage accounts.
//
// It is a simulator, written to the published contract and not to the service
// itself, which cannot be reached from here: it exists because Azurite lacks page
// range differences, Put Page From URL, incremental copies, immutability policies
// and legal holds. What agrees with it has not met the real cloud.
//
// What it promises:
//
//   - Page ranges are exact to 512 bytes, those of managed disks to 4 KiB. A
//     difference between two snapshots has every page whose content differs; of
//     page blobs also those which were written with what they had before.
//   - A request that is refused changes nothing. What Azure refuses by its limits
//     and conditions is refused here, with Azure's status and code.
//   - Signatures are really verified: Shared Key, service, account and user
//     delegation SAS; a bearer token by Config.Token.
//   - An injected fault counts how often it fired.
//
// State is in memory and content in files below Config.Dir, which a new process
// does not find again. Contract: "Blob service REST API" and "Managed disks" on
// learn.microsoft.com.
package pagestore

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/nbd"
	"holdfast/internal/vhd"
)

const mib = int64(1) << 20

// Config of a Store.
type Config struct {
	Dir string // content goes below it; made when it is needed
	// Base is the address that clients reach Handler at, without a slash at the
	// end ("https://127.0.0.1:4430"). It is used for ServiceEndpoint in listings.
	Base func() string
	// Now is the service's clock: Date headers, ends of signatures, snapshots'
	// names. Default time.Now.
	Now func() time.Time
	Log *slog.Logger // default: discarded
	// Token checks a bearer token and says whose it is (object and tenant id).
	// A valid token may do everything. nil refuses them all.
	Token func(token string) (oid, tid string, ok bool)
}

// Store holds disks and accounts. It is safe for concurrent use.
type Store struct {
	cfg    Config
	secret [32]byte // signs the addresses of managed disks

	mu       sync.Mutex
	closed   bool
	disks    map[string]*disk
	accounts map[string]*account
	files    int64     // files made so far
	etags    int64     // ETags given so far
	stamp    time.Time // the last name of a snapshot or version

	faults  faults
	meter   meter
	limiter limiter
}

// disk is a managed disk, a snapshot or a disk restore point.
type disk struct {
	name    string
	img     *image
	epoch   int // goes up with every Revoke: older signatures end
	granted bool
	created time.Time
	diffs   map[*image]comparison
}

// comparison is a difference that was computed, and of which states.
type comparison struct {
	older, newer uint64
	changes      []change
}

// New makes an empty store. It does no I/O.
func New(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Base == nil {
		cfg.Base = func() string { return "https://127.0.0.1" }
	}
	s := &Store{cfg: cfg, disks: map[string]*disk{}, accounts: map[string]*account{}}
	rand.Read(s.secret[:])
	return s
}

// Close closes and removes all content. It is idempotent; later requests are
// answered with 500.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	for _, d := range s.disks {
		errs = append(errs, d.img.drop())
	}
	for _, a := range s.accounts {
		for _, c := range a.containers {
			errs = append(errs, c.drop())
		}
	}
	return errors.Join(errs...)
}

// file names a new file for content. The caller holds mu.
func (s *Store) file() (string, error) {
	if s.closed {
		return "", fmt.Errorf("the store is closed: %w", os.ErrClosed)
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return "", err
	}
	s.files++
	return filepath.Join(s.cfg.Dir, fmt.Sprintf("%06d.content", s.files)), nil
}

// find looks a disk up. The caller holds mu.
func (s *Store) find(op, name string) (*disk, error) {
	if d := s.disks[name]; d != nil {
		return d, nil
	}
	return nil, dr.Errorf(dr.KindNotFound, op, "there is no managed disk or snapshot %s", name)
}

// Create makes a disk of whole MiB which reads as zeros and has a valid footer.
// With size = whole MiB + 512 it is a disk for an upload: the uploader writes the
// footer, see CheckFooter. A name that is taken is dr.KindConflict.
func (s *Store) Create(name string, size int64) error {
	const op = "pagestore.Create"
	upload := size%mib == vhd.FooterSize
	if size < mib || size%mib != 0 && !upload {
		return dr.Errorf(dr.KindInvalid, op, "disk %s: %d bytes are neither whole MiB nor whole MiB and a footer of %d bytes", name, size, vhd.FooterSize)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.free(op, name); err != nil {
		return err
	}
	path, err := s.file()
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "disk %s: %w", name, err)
	}
	length := size
	if !upload {
		length += vhd.FooterSize
	}
	img, err := newImage(path, length)
	if err == nil && !upload {
		if err = writeFooter(img, s.cfg.Now()); err != nil {
			err = errors.Join(err, img.drop())
		}
	}
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "disk %s of %d bytes: %w", name, size, err)
	}
	s.disks[name] = &disk{name: name, img: img, created: s.cfg.Now()}
	return nil
}

// writeFooter writes a fixed disk's footer into the last 512 bytes.
func writeFooter(img *image, now time.Time) error {
	size := img.length() - vhd.FooterSize
	footer, err := vhd.EncodeFooter(vhd.Footer{Size: size, Time: now, Kind: vhd.Fixed})
	if err != nil {
		return err
	}
	return img.writeAt(footer, size)
}

// free says whether a name can be given. The caller holds mu.
func (s *Store) free(op, name string) error {
	if name == "" || url.PathEscape(name) != name {
		return dr.Errorf(dr.KindInvalid, op, "%q is no name for a disk", name)
	}
	if s.disks[name] != nil {
		return dr.Errorf(dr.KindConflict, op, "there is a managed disk or snapshot %s already", name)
	}
	return nil
}

// Copy makes dst with the content of src as of now, as snapshots, disks from
// snapshots and restore points are made.
func (s *Store) Copy(dst, src string) error {
	const op = "pagestore.Copy"
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.find(op, src)
	if err != nil {
		return err
	}
	return s.adopt(op, dst, from.img)
}

// adopt makes a disk from a copy of img. The caller holds mu.
func (s *Store) adopt(op, name string, img *image) error {
	if err := s.free(op, name); err != nil {
		return err
	}
	path, err := s.file()
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "disk %s: %w", name, err)
	}
	own, err := img.clone(path)
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "copying to disk %s: %w", name, err)
	}
	s.disks[name] = &disk{name: name, img: own, created: s.cfg.Now()}
	return nil
}

// Resize grows a disk to a larger number of whole MiB and moves its footer.
func (s *Store) Resize(name string, size int64) error {
	const op = "pagestore.Resize"
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find(op, name)
	if err != nil {
		return err
	}
	old := d.img.length() - vhd.FooterSize
	if size%mib != 0 || size < old {
		return dr.Errorf(dr.KindInvalid, op, "disk %s has %d bytes and cannot get %d: disks grow by whole MiB", name, old, size)
	}
	if size == old {
		return nil
	}
	if err := errors.Join(d.img.clearAt(old, vhd.FooterSize), d.img.resize(size+vhd.FooterSize), writeFooter(d.img, s.cfg.Now())); err != nil {
		return dr.Errorf(dr.KindInternal, op, "disk %s: %w", name, err)
	}
	return nil
}

// Delete removes a disk or snapshot. One that does not exist is dr.KindNotFound.
func (s *Store) Delete(name string) error {
	const op = "pagestore.Delete"
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find(op, name)
	if err != nil {
		return err
	}
	delete(s.disks, name)
	for _, other := range s.disks {
		delete(other.diffs, d.img)
	}
	if err := d.img.drop(); err != nil {
		return dr.Errorf(dr.KindInternal, op, "disk %s: %w", name, err)
	}
	return nil
}

// Size is the size of a disk in bytes, without the footer.
func (s *Store) Size(name string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find("pagestore.Size", name)
	if err != nil {
		return 0, err
	}
	return d.img.length() - vhd.FooterSize, nil
}

// Names lists the disks and snapshots in alphabetical order.
func (s *Store) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.disks))
	for name := range s.disks {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Grant signs an address for a disk: Config.Base + "/md/" + name + "?" + query.
// It may read, or with write also write pages, until the given time or Revoke.
func (s *Store) Grant(name string, write bool, until time.Time) (query string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find("pagestore.Grant", name)
	if err != nil {
		return "", err
	}
	d.granted = true
	perms := "r"
	if write {
		perms = "rw"
	}
	end := until.UTC().Format(time.RFC3339)
	q := url.Values{"sv": {"2021-12-02"}, "sr": {"b"}, "se": {end}, "sp": {perms}, "si": {strconv.Itoa(d.epoch)}, "sig": {s.diskSignature(d, perms, end)}}
	return q.Encode(), nil
}

func (s *Store) diskSignature(d *disk, perms, end string) string {
	h := hmac.New(sha256.New, s.secret[:])
	fmt.Fprintf(h, "%s\n%s\n%s\n%d\n%d", d.name, perms, end, d.epoch, d.created.UnixNano())
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// Revoke ends all signed addresses of a disk.
func (s *Store) Revoke(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find("pagestore.Revoke", name)
	if err != nil {
		return err
	}
	d.granted = false
	d.epoch++
	return nil
}

// CheckFooter says whether a disk ends in the valid footer of a fixed VHD of its
// size, as Azure asks when an upload ends. dr.KindCorrupt if not.
func (s *Store) CheckFooter(name string) error {
	const op = "pagestore.CheckFooter"
	s.mu.Lock()
	d, err := s.find(op, name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := checkFooter(d.img); err != nil {
		return dr.Errorf(dr.KindCorrupt, op, "disk %s has no valid footer: %w", name, err)
	}
	return nil
}

func checkFooter(img *image) error {
	size := img.length() - vhd.FooterSize
	raw := make([]byte, vhd.FooterSize)
	if err := img.readAt(raw, size); err != nil {
		return err
	}
	footer, err := vhd.DecodeFooter(raw)
	if err != nil {
		return err
	}
	if footer.Kind != vhd.Fixed {
		return fmt.Errorf("the kind of the VHD is %d and not fixed", footer.Kind)
	}
	if footer.Size != size || size%mib != 0 || size == 0 {
		return fmt.Errorf("the footer is for %d bytes, and the disk has %d", footer.Size, size)
	}
	return nil
}

// Device is the disk as the guest has it, without the footer. It stays usable
// until the disk is deleted, and then fails with os.ErrClosed.
func (s *Store) Device(name string) (nbd.WritableDevice, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.find("pagestore.Device", name)
	if err != nil {
		return nil, err
	}
	return &device{img: d.img, size: d.img.length() - vhd.FooterSize}, nil
}

// device is a guest's view of an image.
type device struct {
	img  *image
	size int64
}

func (d *device) Size() int64 { return d.size }

func (d *device) check(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 || off > d.size-n {
		return fmt.Errorf("[%d, %d) of a disk of %d bytes: %w", off, off+n, d.size, nbd.EINVAL)
	}
	return ctx.Err()
}

func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	return d.img.readAt(p, off)
}

func (d *device) Extents(ctx context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	if err := d.check(ctx, off, length); err != nil {
		return nil, err
	}
	from, to := off/pageSize, (off+length+pageSize-1)/pageSize
	var out []nbd.AllocationExtent
	hole := func(a, b int64) {
		if a < b {
			out = append(out, nbd.AllocationExtent{Off: a * pageSize, Len: (b - a) * pageSize, Hole: true, Zero: true})
		}
	}
	at := from
	for _, sp := range d.img.spans(from, to) {
		hole(at, sp.from)
		out = append(out, nbd.AllocationExtent{Off: sp.from * pageSize, Len: (sp.to - sp.from) * pageSize})
		at = sp.to
	}
	hole(at, to)
	return out, nil
}

func (d *device) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	return d.img.writeAt(p, off)
}

func (d *device) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.img.sync()
}

func (d *device) Trim(ctx context.Context, off, length int64) error {
	if err := d.check(ctx, off, length); err != nil {
		return err
	}
	return d.img.clearAt(off, length)
}

func (d *device) WriteZeroes(ctx context.Context, off, length int64, allocate bool) error {
	if err := d.check(ctx, off, length); err != nil {
		return err
	}
	if !allocate {
		return d.img.clearAt(off, length)
	}
	zeros := make([]byte, min(length, copyPiece))
	for ; length > 0; off, length = off+int64(len(zeros)), length-int64(len(zeros)) {
		zeros = zeros[:min(length, copyPiece)]
		if err := d.img.writeAt(zeros, off); err != nil {
			return err
		}
	}
	return nil
}
