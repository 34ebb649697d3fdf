//go:build linux

package azure_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
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

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/objstore/azure"
)

// azurite is Microsoft's emulator of the storage service, an npm package. Its
// first installation takes a minute. It needs node and npm (Debian: nodejs, npm).
const azurite = "azurite@3.35.0"

// The emulator's account, as its documentation gives it.
const (
	account    = "devstoreaccount1"
	accountKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// installAzurite returns the path of the program, from the cache if it is there.
func installAzurite(t *testing.T) string {
	t.Helper()
	base := "/var/tmp/holdfast-cache-azurite-" + strconv.Itoa(os.Getuid())
	if err := os.MkdirAll(base, 0o700); err != nil {
		t.Fatal(err)
	}
	// What is run must not have been put there by somebody else.
	info, err := os.Lstat(base)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		t.Fatalf("%s is not a directory of this user alone", base)
	}
	// Only one process installs, and half an installation is never used: it is
	// made beside and renamed.
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, strings.ReplaceAll(azurite, "@", "-"))
	program := filepath.Join(dir, "node_modules", ".bin", "azurite-blob")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	half := dir + ".half"
	if err := os.RemoveAll(half); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "install", "--prefix", half, "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", azurite)
	install.Dir = half
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("install %s: %v\n%s", azurite, err, out)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, dir); err != nil {
		t.Fatal(err)
	}
	return program
}

// emulator is a running Azurite.
type emulator struct {
	endpoint  string
	transport *http.Transport
}

// startAzurite runs the emulator until the test ends, with a container
// "replicas". With secure it speaks TLS and takes sign-ins by Entra ID.
func startAzurite(t *testing.T, secure bool) *emulator {
	t.Helper()
	program := installAzurite(t)
	dir := t.TempDir()
	// The emulator cannot tell which port it was given, so one is chosen. If
	// somebody else takes it in between, another is tried.
	for attempt := 1; ; attempt++ {
		e, said := tryAzurite(t, program, dir, secure)
		if e != nil {
			return e
		}
		if attempt == 3 {
			t.Fatalf("the emulator does not answer; it said:\n%s", said)
		}
	}
}

func tryAzurite(t *testing.T, program, dir string, secure bool) (*emulator, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	args := []string{"--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(port), "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"}
	e := &emulator{endpoint: "http://127.0.0.1:" + strconv.Itoa(port) + "/" + account, transport: http.DefaultTransport.(*http.Transport).Clone()}
	e.transport.MaxIdleConnsPerHost = 32
	e.transport.DisableCompression = true
	if secure {
		cert, key, pool := certificate(t, dir)
		args = append(args, "--oauth", "basic", "--cert", cert, "--key", key)
		e.endpoint = strings.Replace(e.endpoint, "http://", "https://", 1)
		e.transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed: its status says only that
		close(exited)
	}()
	stop := func() {
		e.transport.CloseIdleConnections()
		_ = cmd.Process.Kill()
		<-exited
	}
	cred, err := azblob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		t.Fatal(err)
	}
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: e.transport}
	o.Retry.MaxRetries = -1
	cl, err := container.NewClientWithSharedKeyCredential(e.endpoint+"/replicas", cred, o)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if _, err = cl.Create(t.Context(), nil); err == nil {
			t.Cleanup(func() {
				stop()
				if t.Failed() {
					t.Logf("the emulator said:\n%s", log.String())
				}
			})
			return e, ""
		}
		select {
		case <-exited:
			e.transport.CloseIdleConnections()
			return nil, log.String()
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	return nil, log.String() + "\n" + err.Error()
}

// certificate makes one for 127.0.0.1.
func certificate(t *testing.T, dir string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "emulator"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(cert, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return cert, key, pool
}

// settings are those for the emulator: quick, so that faults cost little.
func (e *emulator) settings() azure.Config {
	return azure.Config{
		Container: "replicas", Account: account, Endpoint: e.endpoint, AccountKey: accountKey, Prefix: "Team_A/holdfast", Transport: e.transport,
		BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond,
	}
}
