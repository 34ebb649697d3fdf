package hosting

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/agent"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/pageblob"
	"holdfast/internal/recovery/warm"
	"holdfast/internal/store"
)

// Azure is a resource group as a host of recovery VMs, with the session that it is reached by.
type Azure struct {
	*azure.Host
	session *arm.Session
	log     *slog.Logger
}

func openAzure(ctx context.Context, file string, log *slog.Logger) (*Azure, error) {
	cfg, err := arm.Load(file)
	if err != nil {
		return nil, err
	}
	s, err := arm.Open(ctx, cfg, arm.Options{Log: log})
	if err != nil {
		return nil, err
	}
	h, err := azure.Open(ctx, azure.Config{Session: s, Log: log})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Azure{Host: h, session: s, log: log}, nil
}

// Close ends the session too.
func (a *Azure) Close() error { return errors.Join(a.Host.Close(), a.session.Close()) }

// Warm is where the site keeps warm replicas; nil if its configuration names no
// container. One that does not exist is made, if that is allowed: what it holds can always be made again.
func (a *Azure) Warm(ctx context.Context) (*Warm, error) {
	cfg := a.session.Config()
	if cfg.StorageAccount == "" || cfg.Container == "" {
		return nil, nil
	}
	access := pageblob.Config{Transport: a.session.HTTP().Transport}
	key, err := cfg.StorageKey()
	if err != nil {
		return nil, err
	}
	if key == "" {
		access.Token = a.session.Credential()
	} else if access.Key, err = blob.NewSharedKeyCredential(cfg.StorageAccount, key); err != nil {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, "azure.Warm", "the key of storage account %s is not base64", cfg.StorageAccount)
	}
	c, err := a.session.Container()
	if err != nil {
		return nil, err
	}
	if _, err := c.Create(ctx, nil); err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		err = arm.Classify("azure.Warm", "container "+cfg.Container+" of storage account "+cfg.StorageAccount, err)
		a.log.Warn("the container of warm replicas was not made; if it exists, that does not matter", "err", err, "hint", dr.HintOf(err))
	}
	r, err := warm.New(warm.Config{Container: cfg.Endpoints().Blob(cfg.StorageAccount) + "/" + cfg.Container, Access: access, Log: a.log})
	if err != nil {
		return nil, err
	}
	return &Warm{Replica: r, used: map[dr.MachineID]map[string]time.Time{}}, nil
}

// Warm are the warm replicas of an Azure site, as the agent and the recovery site want them.
type Warm struct {
	*warm.Replica

	mu   sync.Mutex
	used map[dr.MachineID]map[string]time.Time // points that disks are made from, and since when
}

// useTime is how long a point stays after a VM was begun to be made from it: Azure
// may copy from its page blobs for a while.
const useTime = 24 * time.Hour

// Images finds the disks of a point for a recovery VM, and keeps them from being
// pruned. A replica that holds another point is brought to this one, which costs what
// has changed between them; one that never held a point has nothing to offer: copying
// the disks is as quick. open opens the store of a serving.
func (w *Warm) Images(ctx context.Context, p agentapi.BootPayload, open func(ctx context.Context, serving string) (*store.Store, func() error, error)) (_ map[string]string, err error) {
	m, gen := dr.MachineID(p.Machine), dr.Generation(p.Generation)
	w.mu.Lock()
	if w.used[m] == nil {
		w.used[m] = map[string]time.Time{}
	}
	w.used[m][dr.PointName(gen, p.N)] = time.Now()
	w.mu.Unlock()
	images, err := w.Replica.Images(ctx, m, gen, p.N)
	if dr.KindOf(err) != dr.KindNotFound {
		return images, err
	}
	held, err := w.Replica.Points(ctx, m)
	if err != nil || len(held) == 0 {
		return nil, err
	}
	st, end, err := open(ctx, p.Serving)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	// The loop that keeps the replica may be at work: the later of two writers wins.
	for try := 0; ; try++ {
		if _, err = w.Replica.Apply(ctx, st, m, gen, p.N); err == nil {
			return w.Replica.Images(ctx, m, gen, p.N)
		}
		if dr.KindOf(err) != dr.KindFenced || try == 3 {
			return nil, err
		}
	}
}

// pinned are the points that are in use.
func (w *Warm) pinned(m dr.MachineID) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, since := range w.used[m] {
		if time.Since(since) > useTime {
			delete(w.used[m], p)
			continue
		}
		out = append(out, p)
	}
	return out
}

var _ agent.WarmReplicas = (*Warm)(nil)

// Apply implements agent.WarmReplicas.
func (w *Warm) Apply(ctx context.Context, st *store.Store, m dr.MachineID, gen dr.Generation, n uint64) (agent.Applied, error) {
	r, err := w.Replica.Apply(ctx, st, m, gen, n)
	return agent.Applied{Bytes: r.Bytes, Requests: r.Requests}, err
}

// Prune implements agent.WarmReplicas.
func (w *Warm) Prune(ctx context.Context, m dr.MachineID, keep int) error {
	_, err := w.Replica.Prune(ctx, m, keep, w.pinned(m)...)
	return err
}
