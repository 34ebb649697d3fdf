//go:build linux

package azure_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/upload"
)

// signingVault does what the vault does for an agent's uploads.
type signingVault struct {
	b     *azure.Bucket
	life  time.Duration // of the first URL; a minute afterwards
	heads atomic.Int64
	urls  atomic.Int64
}

func (v *signingVault) Uploads(ctx context.Context, r agentapi.UploadRequest) (out agentapi.UploadResponse, err error) {
	for _, o := range r.Objects {
		life := time.Minute
		if v.urls.Add(1) == 1 && v.life > 0 {
			life = v.life
		}
		sum, err := hex.DecodeString(o.SHA256)
		if err != nil {
			return out, err
		}
		u, err := v.b.SignPut(ctx, o.Name, o.Size, [32]byte(sum), time.Now().Add(life))
		if err != nil {
			return out, err
		}
		if life != time.Minute {
			time.Sleep(life + time.Second) // the URL is late: the store refuses it
		}
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: u.URL, Headers: u.Headers})
	}
	return out, nil
}

func (v *signingVault) Head(ctx context.Context, r agentapi.HeadRequest) (out agentapi.HeadResponse, err error) {
	v.heads.Add(1)
	for _, name := range r.Names {
		info, err := objstore.Digest(ctx, v.b, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
			out.Objects = append(out.Objects, agentapi.HeadObject{})
		case err != nil:
			return out, err
		default:
			out.Objects = append(out.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
		}
	}
	return out, nil
}

// TestAgentUpload sends an agent's objects by signed URLs, as package upload
// does, and loses answers on the way.
func TestAgentUpload(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
	e := startAzurite(t, false)
	b := newBucket(t, e.settings())

	data := []byte("the sealed cut")
	// send uploads data as cut n by an agent of its own, whose first PUT meets fault.
	send := func(t *testing.T, v *signingVault, n uint64, data []byte, fault func(*http.Request) (*http.Response, error)) (puts int64, err error) {
		t.Helper()
		var count atomic.Int64
		v.b = b
		u, err := upload.New(upload.Config{Vault: v, BaseDelay: time.Millisecond, MaxDelay: 4 * time.Millisecond,
			Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if count.Add(1) == 1 && fault != nil {
					return fault(r)
				}
				return e.transport.RoundTrip(r)
			})})})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := u.Close(); err != nil {
				t.Error(err)
			}
		}()
		err = u.Sink(machine, 1).Put(t.Context(), cut.CutObject(machine, 1, n), bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
		if err != nil && strings.Contains(err.Error(), "sig=") {
			t.Errorf("the error shows a signature: %v", err)
		}
		return count.Load(), err
	}
	stored := func(t *testing.T, n uint64) {
		t.Helper()
		if got, err := objstore.ReadAll(t.Context(), b, cut.CutObject(machine, 1, n), 100); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%q, %v", got, err)
		}
	}
	lose := func(r *http.Request) (*http.Response, error) {
		resp, err := e.transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errors.New("the connection broke")
	}
	t.Run("created", func(t *testing.T) {
		v := &signingVault{}
		if puts, err := send(t, v, 1, data, nil); err != nil || puts != 1 || v.heads.Load() != 0 {
			t.Errorf("%v; %d puts, %d heads", err, puts, v.heads.Load())
		}
		stored(t, 1)
	})
	t.Run("answer lost", func(t *testing.T) {
		v := &signingVault{}
		if puts, err := send(t, v, 2, data, lose); err != nil || puts < 1 || v.heads.Load() == 0 {
			t.Errorf("%v; %d puts, %d heads", err, puts, v.heads.Load())
		}
		stored(t, 2)
	})
	t.Run("there already", func(t *testing.T) {
		v := &signingVault{}
		if _, err := send(t, v, 1, data, nil); err != nil || v.heads.Load() != 1 {
			t.Errorf("%v; %d heads", err, v.heads.Load())
		}
	})
	t.Run("other bytes are there", func(t *testing.T) {
		if _, err := send(t, &signingVault{}, 1, []byte("the SEALED cut"), nil); dr.CodeOf(err) != dr.CodeObjectConflict {
			t.Errorf("%v", err)
		}
		stored(t, 1)
	})
	t.Run("the URL had expired", func(t *testing.T) {
		v := &signingVault{life: time.Second + 100*time.Millisecond}
		if puts, err := send(t, v, 3, data, nil); err != nil || puts != 2 || v.urls.Load() != 2 {
			t.Errorf("%v; %d puts, %d URLs", err, puts, v.urls.Load())
		}
		stored(t, 3)
	})
}
