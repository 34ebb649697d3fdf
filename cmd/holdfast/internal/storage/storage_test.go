package storage

import (
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
)

func TestParse(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for text, want := range map[string]string{
		"store": filepath.Join(base, "store"), "/srv/x/": "/srv/x", "file:///srv/x": "/srv/x", "FILE:///srv/a%20b": "/srv/a b", "file://localhost/srv": "/srv",
		"s3://bucket/a/b?region=eu-central-1": "s3://bucket/a/b?region=eu-central-1", "S3://bucket": "s3://bucket",
		"azure://replicas/a?account=contoso": "azure://replicas/a?account=contoso", "AZURE://replicas?account=contoso": "azure://replicas?account=contoso",
	} {
		a, err := Parse(text, base)
		if err != nil || a.String() != want {
			t.Errorf("%q is %q (%v), want %q", text, a, err, want)
		}
		if _, local := a.Local(); local == strings.Contains(want, "://") {
			t.Errorf("%q: local is %v", text, local)
		}
	}
	for _, text := range []string{"", "http://x/y", "file://host/x", "file:///x?y", "file://", "s3://", "s3:///x", "s3://b?what=x", "s3://user:secretpass@bucket/p", "s3://bucket/p?retain-for=secretpass",
		"azure://", "azure://replicas", "azure://user:secretpass@replicas?account=contoso", "azure://replicas?account=contoso&key=secretpass", "azure://replicas?account=contoso&sig=secretpass"} {
		_, err := Parse(text, base)
		if dr.KindOf(err) != dr.KindInvalid || strings.Contains(err.Error(), "secretpass") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
