package azsim_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

type pageblobDownload = blob.DownloadStreamOptions

func httpRange(off, n int64) blob.HTTPRange { return blob.HTTPRange{Offset: off, Count: n} }

type (
	ctxType      = context.Context
	tokenOptions = policy.TokenRequestOptions
	accessToken  = azcore.AccessToken
)

// certificate is a client's self-signed certificate with its key.
func certificate(t *testing.T) ([]*x509.Certificate, crypto.PrivateKey) {
	t.Helper()
	key := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(t)
	return []*x509.Certificate{must(x509.ParseCertificate(der))(t)}, key
}

// fakeJWT is a token of some other issuer for a subject.
func fakeJWT(subject string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + e.EncodeToString([]byte(`{"iss":"https://issuer.example","sub":"`+subject+`"}`)) + "." + e.EncodeToString([]byte("signature"))
}
