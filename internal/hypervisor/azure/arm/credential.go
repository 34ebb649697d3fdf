package arm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// maxSecret bounds the files that secrets are read from.
const maxSecret = 256 << 10

// readSecret reads a file that holds a secret; its contents never get into an error.
func readSecret(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, configError("azure.Open", "%s can't be opened: %w", what, err)
	}
	defer f.Close() // read only
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return nil, configError("azure.Open", "%s can't be read: %w", what, err)
	case len(b) > maxSecret:
		return nil, configError("azure.Open", "%s %s is larger than %d bytes", what, path, maxSecret)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, configError("azure.Open", "%s %s is empty", what, path)
	}
	return b, nil
}

// credential makes what signs in, as the configuration says. Nothing is asked yet.
func (c Config) credential(base azcore.ClientOptions) (azcore.TokenCredential, error) {
	k := c.Credential
	offline := c.Cloud == CustomCloud // the public directory knows nothing of it
	var cred azcore.TokenCredential
	var err error
	switch k.Kind {
	case CredentialManaged:
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: base}
		if k.ClientID != "" {
			o.ID = azidentity.ClientID(k.ClientID)
		}
		cred, err = azidentity.NewManagedIdentityCredential(o)
	case CredentialWorkload:
		cred, err = azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: base, ClientID: k.ClientID,
			TenantID: c.Tenant, TokenFilePath: k.TokenFile, DisableInstanceDiscovery: offline})
	case CredentialSecret:
		return newRenewed(func() ([]byte, error) {
			if k.SecretFile != "" {
				b, err := readSecret("credential.secretFile", k.SecretFile)
				return bytes.TrimSpace(b), err
			}
			if s := os.Getenv(SecretVariable); s != "" {
				return []byte(s), nil
			}
			return nil, configError("azure.Open", "credential.secretFile is missing, and %s is not set", SecretVariable)
		}, func(secret []byte) (azcore.TokenCredential, error) {
			return azidentity.NewClientSecretCredential(c.Tenant, k.ClientID, string(secret), &azidentity.ClientSecretCredentialOptions{ClientOptions: base, DisableInstanceDiscovery: offline})
		})
	case CredentialCertificate:
		return newRenewed(func() ([]byte, error) {
			path := k.CertificateFile
			if path == "" {
				path = os.Getenv(CertificateVariable)
			}
			if path == "" {
				return nil, configError("azure.Open", "credential.certificateFile is missing, and %s is not set", CertificateVariable)
			}
			return readSecret("credential.certificateFile", path)
		}, func(file []byte) (azcore.TokenCredential, error) { return c.certificate(file, base, offline) })
	default:
		cred, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: base, TenantID: c.Tenant, DisableInstanceDiscovery: offline})
	}
	if err != nil {
		return nil, configError("azure.Open", "the credential %q can't be used: %w", k.Kind, err)
	}
	return cred, nil
}

func (c Config) certificate(file []byte, base azcore.ClientOptions, offline bool) (azcore.TokenCredential, error) {
	password := []byte(os.Getenv(PasswordVariable))
	if c.Credential.PasswordFile != "" {
		b, err := readSecret("credential.passwordFile", c.Credential.PasswordFile)
		if err != nil {
			return nil, err
		}
		password = bytes.TrimSpace(b)
	}
	certs, key, err := azidentity.ParseCertificates(file, password)
	if err != nil {
		return nil, err
	}
	return azidentity.NewClientCertificateCredential(c.Tenant, c.Credential.ClientID, certs, key,
		&azidentity.ClientCertificateCredentialOptions{ClientOptions: base, SendCertificateChain: c.Credential.SendChain, DisableInstanceDiscovery: offline})
}

// renewed is a credential whose secret is in a file that may be replaced while the
// program runs: when Entra ID refuses the old one, the file is read again.
type renewed struct {
	read func() ([]byte, error)
	make func([]byte) (azcore.TokenCredential, error)

	mu   sync.Mutex
	used []byte
	cred azcore.TokenCredential
}

func newRenewed(read func() ([]byte, error), make func([]byte) (azcore.TokenCredential, error)) (azcore.TokenCredential, error) {
	r := &renewed{read: read, make: make}
	if _, err := r.renew(); err != nil {
		return nil, err
	}
	return r, nil
}

// renew reads the secret; it tells whether that is another one than before.
func (r *renewed) renew() (bool, error) {
	secret, err := r.read()
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cred != nil && bytes.Equal(secret, r.used) {
		return false, nil
	}
	cred, err := r.make(secret)
	if err != nil {
		return false, configError("azure.Open", "the secret or certificate can't be used: %w", err)
	}
	r.used, r.cred = secret, cred
	return true, nil
}

// GetToken implements azcore.TokenCredential.
func (r *renewed) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	r.mu.Lock()
	cred := r.cred
	r.mu.Unlock()
	token, err := cred.GetToken(ctx, o)
	var refused *azidentity.AuthenticationFailedError
	if err == nil || !errors.As(err, &refused) {
		return token, err
	}
	if fresh, rerr := r.renew(); rerr != nil || !fresh {
		return token, err // what Entra ID said is what matters
	}
	r.mu.Lock()
	cred = r.cred
	r.mu.Unlock()
	return cred.GetToken(ctx, o)
}

// client makes the HTTP client of a session: proxies from the environment, TLS 1.2
// and newer, and the authorities of CAFile besides the system's.
func (c Config) client() (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := readSecret("caFile", c.CAFile)
		if err != nil {
			return nil, err
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, configError("azure.Open", "caFile %s holds no certificate in PEM form", c.CAFile)
		}
		conf.RootCAs = pool
	}
	dial := &net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dial.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 20 * time.Second, ExpectContinueTimeout: time.Second}}, nil
}
