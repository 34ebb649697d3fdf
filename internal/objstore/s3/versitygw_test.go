//go:build linux

package s3_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/objstoretest"
	"holdfast/internal/objstore/s3"
)

// versitygw is an S3 server that others wrote and run: the Versity gateway,
// with a directory below it. Its first build takes a minute or two.
const versitygw = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// buildVersitygw returns the path of the program, from the cache if it is there.
func buildVersitygw(t *testing.T) string {
	t.Helper()
	dir := "/var/tmp/holdfast-cache-s3-" + strconv.Itoa(os.Getuid()) + "/versitygw-v1.8.0"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// What is run must not have been put there by somebody else.
	for _, d := range []string{filepath.Dir(dir), dir} {
		info, err := os.Lstat(d)
		if err != nil {
			t.Fatal(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
			t.Fatalf("%s is not a directory of this user alone", d)
		}
	}
	program := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "install", versitygw)
	build.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", versitygw, err, out)
	}
	return program
}

// startVersitygw runs the gateway until the test ends and returns settings for
// two buckets, the second with Object Lock.
func startVersitygw(t *testing.T) (plain, locked s3.Config) {
	t.Helper()
	program := buildVersitygw(t)
	dir := t.TempDir()
	for _, d := range []string{"data", "versions", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(program, "--quiet", "--port", socket, "--access", "holdfast", "--secret", "a secret for tests", "--region", "eu-test-1", "--keep-alive",
		"posix", "--versioning-dir", filepath.Join(dir, "versions"), "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 32
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: its status says only that
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the gateway said:\n%s", text)
		}
	})
	plain = s3.Config{
		Bucket: "plain", Region: "eu-test-1", Endpoint: "http://gateway.test", PathStyle: true,
		AccessKeyID: "holdfast", SecretAccessKey: "a secret for tests", Transport: transport, Prefix: "Team_A/holdfast",
	}
	locked = plain
	locked.Bucket, locked.RetainMode = "locked", s3.Governance

	cl := sdk.New(sdk.Options{
		Region: plain.Region, BaseEndpoint: &plain.Endpoint, UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(plain.AccessKeyID, plain.SecretAccessKey, ""),
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := cl.CreateBucket(t.Context(), &sdk.CreateBucketInput{Bucket: &plain.Bucket})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the gateway does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := cl.CreateBucket(t.Context(), &sdk.CreateBucketInput{Bucket: &locked.Bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	return plain, locked
}

// TestVersitygw runs the contract, signed URLs and retention on a real server.
func TestVersitygw(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds and runs a server")
	}
	plain, locked := startVersitygw(t)
	b := newBucket(t, plain)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("conformance", func(t *testing.T) {
		objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
	})
	t.Run("checksum is recorded", func(t *testing.T) {
		sum := sha256.Sum256([]byte("abc"))
		put(t, b, "v1/sum", "abc")
		info, err := b.Head(t.Context(), "v1/sum")
		if err != nil || info.SHA256 != sum {
			t.Errorf("%x, %v", info.SHA256, err)
		}
	})
	t.Run("signed URLs", func(t *testing.T) {
		attackSigned(t, b, plain.Transport)
	})
	t.Run("lost answers", func(t *testing.T) {
		c, lost := plain, 0
		c.BaseDelay = time.Millisecond
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := plain.Transport.RoundTrip(r)
			if err == nil && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "v1/lost") && lost == 0 {
				lost++
				_ = resp.Body.Close()
				return nil, errors.New("the connection broke")
			}
			return resp, err
		})
		b := newBucket(t, c)
		put(t, b, "v1/lost", "contents")
		if err := b.PutNew(t.Context(), "v1/lost", strings.NewReader("contents"), 8, nil); !errors.Is(err, objstore.ErrExists) || lost != 1 {
			t.Errorf("a second put: %v; %d answers were lost", err, lost)
		}
	})
	t.Run("missing bucket", func(t *testing.T) {
		c := plain
		c.Bucket = "nowhere"
		gone := newBucket(t, c)
		_, err := gone.Head(t.Context(), "v1/x")
		if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("head: %v", err)
		}
		if err := gone.Open(t.Context()); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("open: %v", err)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		c := plain
		c.SecretAccessKey = "another secret"
		if err := newBucket(t, c).Open(t.Context()); !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("open: %v", err)
		}
	})
	t.Run("retention needs Object Lock", func(t *testing.T) {
		c := plain
		c.RetainMode = s3.Governance
		if err := newBucket(t, c).Open(t.Context()); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("open: %v", err)
		}
	})
	for _, mode := range []string{s3.Governance, s3.Compliance} {
		t.Run(mode, func(t *testing.T) {
			c := locked
			c.RetainMode, c.Prefix, c.RetainFor = mode, "with-"+mode, time.Hour
			attackRetained(t, newBucket(t, c), func() objstore.Bucket {
				c.RetainMode, c.RetainFor = "", 0
				return newBucket(t, c)
			}(), c.Transport)
		})
	}
}
