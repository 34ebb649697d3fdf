package replica

import (
	"context"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/vaultdb"
)

const (
	aheadLifetime = 8 * time.Hour // of URLs for outages of the vault
	maxAhead      = 1000          // cuts
	aheadKeys     = 2             // sealed keys: a writer takes another one every day
	aheadNoted    = time.Hour
)

// signAhead signs the writer's next cuts and keys, for when the vault does not
// answer. Each URL creates one object of the writer's own generation, as any
// upload: a writer that is fenced meanwhile writes into its dead generation, which
// is not listed. A store that can't do it, or does not now, is no reason to
// refuse the upload that was asked for: then there is nothing for outages.
//
// A store that the vault itself serves can't: it is away with the vault.
func (r *Replicas) signAhead(ctx context.Context, it vaultdb.Item, req agentapi.UploadRequest) []agentapi.AheadURL {
	signer, ok := r.cfg.Signer.(objstore.AheadSigner)
	if !ok || req.Ahead == nil || req.Ahead.Cut > 1<<62 || req.Ahead.Epoch>>epochShift != req.Generation {
		return nil
	}
	policy, err := vaultdb.PolicyByID(ctx, r.st.Q(), it.Policy)
	if err != nil {
		r.notAhead(it, err)
		return nil
	}
	gen := dr.Generation(req.Generation)
	count := aheadCuts(policy.CopyFrequency)
	names := make([]string, 0, count+aheadKeys)
	for n := range uint64(count) {
		names = append(names, cut.CutObject(it.Machine, gen, req.Ahead.Cut+n))
	}
	for e := req.Ahead.Epoch; e < req.Ahead.Epoch+aheadKeys && e>>epochShift == req.Generation; e++ {
		names = append(names, cut.KeyObject(it.Machine, e))
	}
	expires := r.st.Now().Add(aheadLifetime)
	urls, err := signer.SignAhead(ctx, names, expires)
	if err != nil || len(urls) != len(names) {
		r.notAhead(it, err)
		return nil
	}
	out := make([]agentapi.AheadURL, len(names))
	for i, u := range urls {
		out[i] = agentapi.AheadURL{Name: names[i], SignedURL: agentapi.SignedURL{URL: u.URL, Headers: u.Headers, Expires: expires}}
	}
	return out
}

// aheadCuts is how many cuts an outage of aheadLifetime may have.
func aheadCuts(every time.Duration) int {
	if every <= 0 {
		return maxAhead
	}
	return int(min(maxAhead, max(1, (aheadLifetime+every-1)/every)))
}

func (r *Replicas) notAhead(it vaultdb.Item, err error) {
	now := r.st.Now()
	r.mu.Lock()
	due := now.Sub(r.noted) >= aheadNoted
	if due {
		r.noted = now
	}
	r.mu.Unlock()
	if due {
		r.st.Log.Warn("no uploads can be signed ahead: hosts would wait for the vault in an outage", "vm", it.VMName, "err", err)
	}
}
