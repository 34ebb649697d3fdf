package upload

import (
	"context"
	"io"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
)

// explainer is a Transfer that also tells in which words the store has refused.
type explainer interface {
	PutExplained(ctx context.Context, signedURL string, headers map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, *httpstore.UploadError, error)
}

func (u *Uploader) send(ctx context.Context, url agentapi.SignedURL, body io.ReaderAt, size int64) (httpstore.Outcome, *httpstore.UploadError, error) {
	if t, ok := u.cfg.Transfer.(explainer); ok {
		return t.PutExplained(ctx, url.URL, url.Headers, body, size)
	}
	outcome, err := u.cfg.Transfer.Put(ctx, url.URL, url.Headers, body, size)
	return outcome, nil, err
}

// freshURL is how old a URL may be to blame a clock if the store says that it has ended.
const freshURL = time.Minute

// refused words a refusal of the store whose reason an operator can mend; nil
// for others. All of them are tried again: nothing is lost, and what is mended
// there goes on here by itself. used is how long ago the vault gave the URL.
//
// Whether a URL has ended is told by the store's clock, which is in its answer,
// and the vault's, which set the end. This host's clock has no part in it.
func (p *put) refused(why *httpstore.UploadError, url agentapi.SignedURL, used time.Duration) *dr.Error {
	if why == nil {
		return nil
	}
	wait := func(code dr.Code, format string, args ...any) *dr.Error {
		return dr.New(dr.KindUnavailable, code, "upload.Put", "send object %s: "+format+": %w", append(append([]any{p.name}, args...), why)...)
	}
	cause := objstore.CauseOf(why)
	ended := !why.At.IsZero() && !url.Expires.IsZero() && why.At.After(url.Expires)
	switch {
	case ended && (cause == objstore.CauseKey || cause == objstore.CauseFirewall) && used < freshURL:
		return wait(dr.CodeAzureClock, "the signed address was %v past its end, by the store's clock, as soon as the vault had given it", why.At.Sub(url.Expires).Round(time.Second)).
			WithHint("Check the time service of the vault's machine (NTP), or set its clock by hand; everything goes on by itself.")
	case ended && (cause == objstore.CauseKey || cause == objstore.CauseFirewall):
		return wait(dr.CodeAzureSignature, "the signed address had ended at %s", url.Expires.UTC().Format(time.RFC3339))
	case cause == objstore.CauseKey:
		return wait(dr.CodeAzureSignature, "the store does not accept the signed address")
	case cause == objstore.CauseFirewall:
		return wait(dr.CodeAzureFirewall, "the store does not admit this host's network")
	case cause == objstore.CauseContainer:
		return wait(dr.CodeAzureContainer, "the container is not there")
	case cause == objstore.CauseThrottled:
		return wait(dr.CodeAzureThrottled, "the store is asked for too much at once")
	case cause == objstore.CauseRole:
		// The catalogue's own code stops replication until an operator acts on each
		// item; a role that is granted again has to be enough.
		remedy, _ := dr.Lookup(dr.CodeAzureRole)
		return wait(dr.CodeStoreUnreachable, "whoever signed the address for the vault lacks a role").WithHint("%s", remedy.Remedy)
	}
	return nil
}
