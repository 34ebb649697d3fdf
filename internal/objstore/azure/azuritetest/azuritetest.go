// Package azuritetest runs Azurite, Microsoft's emulator of Azure Storage, for
// tests: a blob service on this machine that takes the SDK's own requests.
//
// It promises: a server is this test's alone (its port, its memory, its
// directory), and is gone with the test; a missing node or npm fails the test
// and never skips it; the program is the pinned version, installed once per
// user by npm into a cache that nobody else can write to. It needs the Debian
// packages nodejs and npm, and for the first installation the npm registry.
// It runs on Linux; elsewhere starting fails.
//
// What Azurite is not: it has no version-level immutability, legal hold,
// hierarchical namespace, firewall, page range diff, incremental snapshots or
// Put Page From URL, and no delegated signatures of versions after 2025-07-05.
package azuritetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Version is the pinned npm package.
const Version = "azurite@3.35.0"

// CacheVariable names the directory with the installation, instead of
// /var/tmp/holdfast-cache-azurite-UID. The parent must exist.
const CacheVariable = "HOLDFAST_AZURITE_CACHE"

// The emulator's account, as its documentation gives it. It protects nothing.
const (
	Account = "devstoreaccount1"
	Key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Options say how the server runs. The zero value is plain HTTP with shared keys.
type Options struct {
	// TLS makes it speak HTTPS, with a certificate of its own for 127.0.0.1, and
	// take sign-ins by Entra ID: it looks into a token, but verifies no signature.
	TLS bool

	// Cache is the directory with the installation; empty means that of
	// CacheVariable, or the user's below /var/tmp.
	Cache string

	// Port is chosen by the system if it is 0.
	Port int
}

// Server is a running Azurite. It is safe for concurrent use.
type Server struct {
	Endpoint  string          // http[s]://127.0.0.1:PORT/ACCOUNT, without a slash at its end
	Account   string          // name of the account
	Key       string          // its shared key, base64
	CA        []byte          // PEM of the certificate; nil without TLS
	Transport *http.Transport // trusts CA; its idle connections go with the server

	dir    string
	cmd    *exec.Cmd
	log    *output
	exited chan struct{}
	once   sync.Once
}

// Start runs a server until the test ends, over plain HTTP.
func Start(t testing.TB) *Server { return StartWith(t, Options{}) }

// StartTLS runs a server until the test ends, over HTTPS and with sign-in by
// Entra ID.
func StartTLS(t testing.TB) *Server { return StartWith(t, Options{TLS: true}) }

// StartWith runs a server until the test ends. If the test fails, what the
// server said goes into its log.
func StartWith(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := Run(t.Context(), o)
	if err != nil {
		t.Fatalf("azuritetest: %v", err)
	}
	t.Cleanup(func() {
		s.Close()
		if said := s.log.String(); t.Failed() && said != "" {
			t.Logf("the emulator said:\n%s", said)
		}
	})
	return s
}

// NewContainer creates a container for a test.
func (s *Server) NewContainer(t testing.TB, name string) {
	t.Helper()
	if err := s.CreateContainer(t.Context(), name); err != nil {
		t.Fatalf("azuritetest: create container %q: %v", name, err)
	}
}

// Run installs Azurite if it is not in the cache, starts it and returns when it
// answers. The caller closes the server; ctx bounds the start only.
func Run(ctx context.Context, o Options) (*Server, error) {
	program, err := install(ctx, o.Cache)
	if err != nil {
		return nil, err
	}
	// The emulator cannot tell which port it was given, so one is chosen. If
	// somebody else takes it in between, another is tried.
	for attempt := 1; ; attempt++ {
		s, err := try(ctx, program, o)
		if err == nil || attempt == 3 || ctx.Err() != nil {
			return s, err
		}
	}
}

func try(ctx context.Context, program string, o Options) (_ *Server, err error) {
	port := o.Port
	if port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "azuritetest-")
	if err != nil {
		return nil, err
	}
	s := &Server{
		Endpoint: "http://127.0.0.1:" + strconv.Itoa(port) + "/" + Account, Account: Account, Key: Key, dir: dir,
		Transport: http.DefaultTransport.(*http.Transport).Clone(), log: &output{}, exited: make(chan struct{}),
	}
	s.Transport.Proxy = nil
	s.Transport.MaxIdleConnsPerHost = 32
	s.Transport.DisableCompression = true
	args := []string{"--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(port), "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"}
	if o.TLS {
		cert, key, err := s.certify()
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		args = append(args, "--oauth", "basic", "--cert", cert, "--key", key)
	}
	// A second account that only this server knows tells it from another one
	// that was faster in taking the port.
	var secret [24]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	mine, mineKey := "own"+hex.EncodeToString(secret[:8]), base64.StdEncoding.EncodeToString(secret[8:])

	s.cmd = exec.Command(program, args...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, s.log, s.log
	s.cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+Account+":"+Key+";"+mine+":"+mineKey)
	s.cmd.SysProcAttr = attributes()
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the emulator (it needs node): %w", err), os.RemoveAll(dir))
	}
	if err := s.answers(ctx, mine, mineKey); err != nil {
		s.Close()
		return nil, fmt.Errorf("the emulator does not answer: %w; it said:\n%s", err, s.log.String())
	}
	return s, nil
}

// start starts the program and waits for its end in the background. The thread
// that started it stays: the kernel kills the program with that thread, not with
// the process.
func (s *Server) start() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // killed: its status says only that
			close(s.exited)
		}
	}()
	return <-started
}

// answers waits until the server takes a request of the account that only it knows.
func (s *Server) answers(ctx context.Context, account, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	cl, err := s.client(strings.TrimSuffix(s.Endpoint, Account)+account+"/ready", account, key)
	if err != nil {
		return err
	}
	for {
		once, done := context.WithTimeout(ctx, 10*time.Second)
		_, err := cl.Create(once, nil)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) client(where, account, key string) (*container.Client, error) {
	cred, err := azblob.NewSharedKeyCredential(account, key)
	if err != nil {
		return nil, err
	}
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: s.Transport}
	o.Retry.MaxRetries = -1
	return container.NewClientWithSharedKeyCredential(where, cred, o)
}

// CreateContainer creates a container in the account.
func (s *Server) CreateContainer(ctx context.Context, name string) error {
	cl, err := s.client(s.Endpoint+"/"+name, s.Account, s.Key)
	if err != nil {
		return err
	}
	_, err = cl.Create(ctx, nil)
	return err
}

// DeleteContainer deletes a container and all it holds.
func (s *Server) DeleteContainer(ctx context.Context, name string) error {
	cl, err := s.client(s.Endpoint+"/"+name, s.Account, s.Key)
	if err != nil {
		return err
	}
	_, err = cl.Delete(ctx, nil)
	return err
}

// Pool returns the certificates to trust; nil without TLS.
func (s *Server) Pool() *x509.CertPool {
	if s.CA == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	return pool
}

// Close ends the server and removes what it left. It is idempotent.
func (s *Server) Close() {
	s.once.Do(func() {
		s.Transport.CloseIdleConnections()
		_ = s.cmd.Process.Kill() // it may have ended by itself
		<-s.exited
		_ = os.RemoveAll(s.dir)
	})
}

// certify makes the server's certificate and lets Transport trust it.
func (s *Server) certify() (cert, key string, err error) {
	text, priv, err := certificate()
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(s.dir, "cert.pem"), filepath.Join(s.dir, "key.pem")
	if err := errors.Join(os.WriteFile(cert, text, 0o600), os.WriteFile(key, priv, 0o600)); err != nil {
		return "", "", err
	}
	s.CA = text
	s.Endpoint = strings.Replace(s.Endpoint, "http://", "https://", 1)
	s.Transport.TLSClientConfig = &tls.Config{RootCAs: s.Pool()}
	return cert, key, nil
}

// output collects what the program says; it is safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := 64<<10 - o.buf.Len(); room > 0 {
		o.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
