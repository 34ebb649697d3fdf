package s3_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"go.uber.org/goleak"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/objstoretest"
	"holdfast/internal/objstore/s3"
	"holdfast/internal/objstore/s3/s3test"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settings are those for the model: quick, so that faults cost little.
func settings(srv *s3test.Server) s3.Config {
	return s3.Config{
		Bucket: srv.Bucket(), Region: srv.Region(), Endpoint: srv.URL(), PathStyle: true,
		AccessKeyID: s3test.AccessKey, SecretAccessKey: s3test.SecretKey, Prefix: "Team_A/holdfast",
		BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond,
	}
}

// newBucket returns a bucket that does not share connections with other tests.
func newBucket(t *testing.T, c s3.Config) *s3.Bucket {
	t.Helper()
	if c.Transport == nil {
		tr := http.DefaultTransport.(*http.Transport).Clone()
		tr.MaxIdleConnsPerHost = 32
		c.Transport = tr
	}
	b, err := s3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func open(t *testing.T, srv *s3test.Server, change ...func(*s3.Config)) *s3.Bucket {
	t.Helper()
	c := settings(srv)
	for _, f := range change {
		f(&c)
	}
	b := newBucket(t, c)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestConformance runs the contract on the strict model.
func TestConformance(t *testing.T) {
	t.Parallel()
	b := open(t, s3test.Start(t, s3test.Config{}))
	objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
}

// TestConformanceVariants runs all but the slow checks in the other ways in which
// a bucket can be set up.
func TestConformanceVariants(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]s3test.Config{
		"small pages":   {PageSize: 3},
		"versioned":     {Versioned: true, EncodeSlashInLists: true},
		"bare":          {BareHead: true, DropMetadata: true, IgnoreStartAfter: true},
		"object lock":   {ObjectLock: true},
		"no checksums":  {IgnoreChecksum: true},
		"denies delete": {ObjectLock: true, DenyLockedDelete: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, s3test.Start(t, c))
			for _, check := range objstore.Checks() {
				if check.Slow {
					continue
				}
				if err := check.Run(t.Context(), b, "v1/"+check.Name+"/"); err != nil {
					t.Errorf("%s: %v", check.Name, err)
				}
			}
		})
	}
}

// TestConformanceGofakes3 runs the contract on a model that others wrote. It
// knows If-None-Match, but neither signatures nor checksums.
func TestConformanceGofakes3(t *testing.T) {
	t.Parallel()
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(srv.Close)
	b := newBucket(t, s3.Config{
		Bucket: "bucket", Endpoint: srv.URL, PathStyle: true, AccessKeyID: "any", SecretAccessKey: "any",
		BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond,
	})
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
}
