package pagestore

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// deletionTakes is how long a container's name stays taken after its deletion.
const deletionTakes = 30 * time.Second

// stampLayout is how snapshots and versions are named.
const stampLayout = "2006-01-02T15:04:05.0000000Z"

// AccountSettings are properties of a storage account.
type AccountSettings struct {
	Versioning bool // each write of a blob keeps the version before
	Immutable  bool // version-level immutability; implies Versioning
	Firewall   bool // refuse everybody: 403 AuthorizationFailure
	NoKeys     bool // Shared Key and SAS made with it are refused
}

type account struct {
	name       string
	key        []byte
	settings   AccountSettings
	containers map[string]*container
}

type container struct {
	name    string
	etag    string
	changed time.Time
	gone    time.Time // not zero: being deleted since then
	meta    map[string]string
	blobs   map[string]*entry
}

// entry is all that goes by one blob's name.
type entry struct {
	base     *blob   // nil if only versions are left
	snaps    []*blob // oldest first
	versions []*blob // earlier versions, oldest first
	life     int     // counts how often base was made anew
}

// blob is one state of a blob: the base, a snapshot or a version.
type blob struct {
	img  *image   // of a page blob
	data *content // of a block blob

	stamp    string // of a snapshot or version
	life     int    // entry.life when it was made
	touched  pageSet
	etag     string
	created  time.Time
	modified time.Time
	meta     map[string]string
	headers  map[string]string // Content-Type etc.
	sequence int64

	until  time.Time // retained until then
	locked bool      // retention cannot be shortened
	hold   bool

	incremental          bool
	copyID, copySource   string
	copied, copySnapshot string // snapshot of source and of this blob
	sourceLife           int    // the source's life
}

// content is what a block blob holds; it never changes. The store's mu guards refs.
type content struct {
	data []byte
	path string // if not in data
	size int64
	refs int
}

func (b *blob) size() int64 {
	if b.img != nil {
		return b.img.length()
	}
	return b.data.size
}

// drop gives up the content. The caller holds the store's mu.
func (b *blob) drop() error {
	if b.img != nil {
		return b.img.drop()
	}
	if b.data.refs--; b.data.refs == 0 && b.data.path != "" {
		return os.Remove(b.data.path)
	}
	return nil
}

func (e *entry) drop() error {
	var errs []error
	for _, b := range slices.Concat([]*blob{e.base}, e.snaps, e.versions) {
		if b != nil {
			errs = append(errs, b.drop())
		}
	}
	return errors.Join(errs...)
}

func (c *container) drop() error {
	var errs []error
	for _, e := range c.blobs {
		errs = append(errs, e.drop())
	}
	return errors.Join(errs...)
}

// AddAccount makes a storage account and returns its key. If it exists, its key
// stays.
func (s *Store) AddAccount(name string) (keyBase64 string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil {
		a = &account{name: name, key: newKey(), containers: map[string]*container{}}
		s.accounts[name] = a
	}
	return base64.StdEncoding.EncodeToString(a.key)
}

func newKey() []byte {
	key := make([]byte, 64)
	rand.Read(key)
	return key
}

// account looks an account up. The caller holds mu.
func (s *Store) account(op, name string) (*account, error) {
	if a := s.accounts[name]; a != nil {
		return a, nil
	}
	return nil, dr.Errorf(dr.KindNotFound, op, "there is no storage account %s", name)
}

// RotateKey gives an account a new key: what was signed with the old one is refused.
func (s *Store) RotateKey(name string) (keyBase64 string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.account("pagestore.RotateKey", name)
	if err != nil {
		return "", err
	}
	a.key = newKey()
	return base64.StdEncoding.EncodeToString(a.key), nil
}

// Configure sets the properties of an account.
func (s *Store) Configure(name string, settings AccountSettings) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.account("pagestore.Configure", name)
	if err != nil {
		return err
	}
	settings.Versioning = settings.Versioning || settings.Immutable
	a.settings = settings
	return nil
}

// DeleteAccount removes an account and all it holds.
func (s *Store) DeleteAccount(name string) error {
	const op = "pagestore.DeleteAccount"
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.account(op, name)
	if err != nil {
		return err
	}
	delete(s.accounts, name)
	var errs []error
	for _, c := range a.containers {
		errs = append(errs, c.drop())
	}
	if err := errors.Join(errs...); err != nil {
		return dr.Errorf(dr.KindInternal, op, "account %s: %w", name, err)
	}
	return nil
}

// Import makes a managed disk from a page blob, or from a snapshot of one, of a
// simulated account: the creation option Import. A blob that is missing is
// dr.KindNotFound; one that is no fixed VHD of whole MiB is dr.KindInvalid.
func (s *Store) Import(name, blobURL string) error {
	const op = "pagestore.Import"
	u, err := url.Parse(blobURL)
	if err != nil {
		return dr.Errorf(dr.KindInvalid, op, "disk %s: the blob's address cannot be read", name)
	}
	t, err := s.target(u.Host, u.Path)
	if err != nil || t.blob == "" {
		return dr.Errorf(dr.KindInvalid, op, "disk %s: %s is no blob of this storage", name, u.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.lookup(t, u.Query())
	if b == nil {
		return dr.Errorf(dr.KindNotFound, op, "disk %s: there is no blob %s", name, u.Path)
	}
	if b.img == nil || b.size()%mib != pageSize {
		return dr.Errorf(dr.KindInvalid, op, "disk %s: blob %s of %d bytes is no page blob of whole MiB and a footer of 512 bytes", name, u.Path, b.size())
	}
	if err := checkFooter(b.img); err != nil {
		return dr.Errorf(dr.KindInvalid, op, "disk %s: blob %s is no fixed VHD: %w", name, u.Path, err)
	}
	return s.adopt(op, name, b.img)
}

// target is what a request's path names.
type target struct {
	disk                     string
	account, container, blob string
}

var errTarget = errors.New("the path names nothing of this storage")

// target reads a path: /md/NAME[/…] or [/storage]/ACCOUNT/CONTAINER/BLOB, or
// /CONTAINER/BLOB where the host is ACCOUNT.blob.….
func (s *Store) target(host, path string) (target, error) {
	path = strings.TrimPrefix(path, "/")
	var t target
	if name, rest, ok := strings.Cut(host, "."); ok && strings.HasPrefix(rest, "blob.") {
		t.account = name
	} else if rest, ok := strings.CutPrefix(path, "md/"); ok {
		if t.disk, _, _ = strings.Cut(rest, "/"); t.disk == "" {
			return target{}, errTarget
		}
		return t, nil
	} else {
		path = strings.TrimPrefix(path, "storage/")
		t.account, path, _ = strings.Cut(path, "/")
	}
	t.container, t.blob, _ = strings.Cut(path, "/")
	if t.account == "" || t.container == "" && t.blob != "" || strings.ContainsRune(t.blob, 0) {
		return target{}, errTarget
	}
	return t, nil
}

// lookup finds the state of a blob that the query names by snapshot or versionid;
// nil if there is none. The caller holds mu.
func (s *Store) lookup(t target, q url.Values) *blob {
	a := s.accounts[t.account]
	if a == nil || a.containers[t.container] == nil || !a.containers[t.container].gone.IsZero() {
		return nil
	}
	e := a.containers[t.container].blobs[t.blob]
	if e == nil {
		return nil
	}
	if at := q.Get("snapshot"); at != "" {
		return byStamp(e.snaps, at)
	}
	if at := q.Get("versionid"); at != "" {
		if e.base != nil && e.base.stamp == at {
			return e.base
		}
		return byStamp(e.versions, at)
	}
	return e.base
}

func byStamp(list []*blob, stamp string) *blob {
	for _, b := range list {
		if b.stamp == stamp {
			return b
		}
	}
	return nil
}

// Handler serves /md/NAME and /storage/ACCOUNT/…; also /ACCOUNT/… as Azurite does,
// and requests whose host is ACCOUNT.blob.….
func (s *Store) Handler() http.Handler { return http.HandlerFunc(s.serve) }
