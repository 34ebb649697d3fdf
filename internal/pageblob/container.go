package pageblob

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/dr"
)

// Container is a container of page blobs. It is safe for concurrent use.
type Container struct {
	cc *container.Client
	c  *Client // asks on behalf of the container: no blob
}

// Item is a blob or a snapshot of one, as a list shows it.
type Item struct {
	Name     string // of the blob in the container
	Snapshot string // id; empty = the blob itself
	Size     int64
	Sequence int64
	ETag     string
	Metadata map[string]string // names in lower case
	Modified time.Time
}

// OpenContainer returns a Container for its address, which may have a signature of
// its own. It does no I/O. See Open for what is demanded of the address.
func OpenContainer(address string, cfg Config) (*Container, error) {
	const op = "pageblob.OpenContainer"
	c, err := prepare(op, address, cfg)
	if err != nil {
		return nil, err
	}
	o := &container.ClientOptions{}
	o.Transport, o.Telemetry.Disabled = c.http(), true
	o.Retry = policy.RetryOptions{MaxRetries: -1} // do repeats
	o.InsecureAllowCredentialWithHTTP = strings.HasPrefix(address, "http:")
	s := &Container{c: c}
	switch c.auth {
	case authKey:
		s.cc, err = container.NewClientWithSharedKeyCredential(address, c.cfg.Key, o)
	case authToken:
		s.cc, err = container.NewClient(address, c.cfg.Token, o)
	case authSigned:
		s.cc, err = container.NewClientWithNoCredential(address, o)
	}
	if err != nil {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, "the credentials for container %s can't be used", c.name)
	}
	return s, nil
}

// Name is the container's host and path, for messages.
func (s *Container) Name() string { return s.c.name }

// Count returns what was asked so far, by the Container and its Clients.
func (s *Container) Count() Count { return s.c.Count() }

// Close lets idle connections go, if the transport is the Container's own.
func (s *Container) Close() error { return s.c.Close() }

// Blob returns a Client for a blob of the container. It shares connections and
// counts, and need not be closed.
func (s *Container) Blob(name string) *Client {
	d := *s.c
	d.pb, d.release = s.cc.NewPageBlobClient(name), func() {}
	d.name = s.c.name + "/" + name
	d.plain = s.c.plain + "/" + url.PathEscape(name)
	if u, err := url.Parse(d.pb.URL()); err == nil {
		d.plain = u.Scheme + "://" + u.Host + u.EscapedPath()
	}
	return &d
}

// List returns all blobs whose names begin with prefix, and their snapshots before
// each of them.
func (s *Container) List(ctx context.Context, prefix string) ([]Item, error) {
	var out []Item
	marker := ""
	for {
		o := &container.ListBlobsFlatOptions{Prefix: &prefix, Include: container.ListBlobsInclude{Metadata: true, Snapshots: true}}
		if marker != "" {
			o.Marker = &marker
		}
		var page container.ListBlobsFlatResponse
		err := s.c.do(ctx, "List", func(ctx context.Context) (err error) {
			page, err = s.cc.NewListBlobsFlatPager(o).NextPage(ctx)
			if err == nil && page.Segment == nil {
				return s.c.odd("List", "no list")
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, b := range page.Segment.BlobItems {
			if i, ok := itemOf(b); ok && strings.HasPrefix(i.Name, prefix) {
				out = append(out, i)
			}
		}
		next := ""
		if page.NextMarker != nil {
			next = *page.NextMarker
		}
		if next == "" {
			return out, nil
		}
		if next == marker {
			return nil, s.c.odd("List", "the list goes on where it began")
		}
		marker = next
	}
}

func itemOf(b *container.BlobItem) (Item, bool) {
	if b == nil || b.Name == nil || b.Properties == nil || b.Deleted != nil && *b.Deleted {
		return Item{}, false
	}
	i := Item{Name: *b.Name, Metadata: lower(b.Metadata)}
	p := b.Properties
	if b.Snapshot != nil {
		i.Snapshot = *b.Snapshot
	}
	if p.ContentLength != nil {
		i.Size = *p.ContentLength
	}
	if p.BlobSequenceNumber != nil {
		i.Sequence = *p.BlobSequenceNumber
	}
	if p.ETag != nil {
		i.ETag = string(*p.ETag)
	}
	if p.LastModified != nil {
		i.Modified = *p.LastModified
	}
	return i, true
}
