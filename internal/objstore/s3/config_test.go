package s3_test

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore/s3"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want s3.Config
	}{
		{"s3://vault-1", s3.Config{Bucket: "vault-1"}},
		{"s3://vault.example/Site_A/x/", s3.Config{Bucket: "vault.example", Prefix: "Site_A/x/"}},
		{"s3://b-1/p?region=eu-central-1&path-style=true&endpoint=https://minio.example:9000",
			s3.Config{Bucket: "b-1", Prefix: "p", Region: "eu-central-1", PathStyle: true, Endpoint: "https://minio.example:9000"}},
		{"s3://b-1?retain-mode=compliance&retain-for=720h", s3.Config{Bucket: "b-1", RetainMode: s3.Compliance, RetainFor: 720 * time.Hour}},
		{"s3://b-1?read-only=1&anonymous=true&path-style=false", s3.Config{Bucket: "b-1", ReadOnly: true, Anonymous: true}},
	} {
		got, err := s3.ParseURL(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.text, got, err)
		}
	}
	for _, text := range []string{
		"", "s3://", "s3:", "s3:bucket", "https://bucket", "file:///x", "bucket", "s3:///prefix", "s3://b", "s3://-b-", "s3://b:90/x", "s3://bucket/#f",
		"s3://bucket//a", "s3://bucket//", "s3://bucket/a//b", "s3://bucket/../a", "s3://bucket/a%20b", "s3://bucket/" + strings.Repeat("p/", 300),
		"s3://bucket?what=1", "s3://bucket?region=a&region=b", "s3://bucket?path-style=maybe", "s3://bucket?retain-for=1h", "s3://bucket?retain-mode=governance&retain-for=-1h",
		"s3://bucket?retain-mode=forever", "s3://bucket?retain-mode=governance&retain-for=30", "s3://bucket?read-only=true&retain-mode=governance",
		"s3://bucket?endpoint=minio:9000", "s3://bucket?endpoint=ftp://x", "s3://bucket?endpoint=https://x/path", "s3://bucket?endpoint=https://x?q", "s3://bucket?%zz",
		"s3://zone--usw2-az1--x-s3",
	} {
		if c, err := s3.ParseURL(text); err == nil {
			t.Errorf("%q was taken: %+v", text, c)
		}
	}
}

// TestSecretsAreNotShown looks for a secret wherever it could leak.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"s3://AKID:hunter2@bucket/p", "s3://hunter2@bucket", "s3://bucket?endpoint=https://u:hunter2@minio:9000", "s3://AKID:hunter2@bucket/%zz",
		"s3://AKID:hunter2@bu cket",
	} {
		if _, err := s3.ParseURL(text); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
	c := s3.Config{Bucket: "bucket", Prefix: "p", Endpoint: "https://minio:9000", AccessKeyID: "AKID", SecretAccessKey: "hunter2", SessionToken: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("open", "store", c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), log.String()} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "s3://bucket/p at minio:9000") {
			t.Errorf("shown as %s", text)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]s3.Config{
		"no bucket":       {},
		"key alone":       {Bucket: "bucket", AccessKeyID: "x"},
		"secret alone":    {Bucket: "bucket", SecretAccessKey: "x"},
		"token alone":     {Bucket: "bucket", SessionToken: "x"},
		"key, but no one": {Bucket: "bucket", AccessKeyID: "x", SecretAccessKey: "y", Anonymous: true},
		"negative stall":  {Bucket: "bucket", StallTimeout: -1},
		"negative tries":  {Bucket: "bucket", Attempts: -1},
	} {
		if _, err := s3.New(c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"s3://bucket/p?region=x&endpoint=https://h:1&path-style=true", "s3://u:p@bucket", "s3://bucket?retain-mode=governance&retain-for=1h", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := s3.ParseURL(text)
		if err != nil {
			return
		}
		if c.Validate() != nil || c.AccessKeyID != "" || c.SecretAccessKey != "" {
			t.Errorf("%q gave %+v", text, c)
		}
		if u, err := url.Parse(text); err != nil || u.User != nil {
			t.Errorf("%q was taken with credentials", text)
		}
	})
}
