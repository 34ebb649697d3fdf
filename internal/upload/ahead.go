package upload

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// ahead keeps the URLs that the vault has signed for the next cuts, so that cuts
// go on while the vault does not answer. They are secrets of several hours: the
// files can be read by their owner only, and nothing of them is logged. They are a
// cache: a lost or damaged file costs no more than waiting for the vault.
type ahead struct {
	dir string // "" = none are kept
	log *slog.Logger

	mu    sync.Mutex
	sets  map[string]*aheadHeld // by machine; nil = looked for, and there is none
	keys  map[string]sentKey    // by machine: the newest that was sent by this process
	swept bool
}

// aheadVersion of the files.
//
// History:
//
//	1  2026-11-23  first version
const aheadVersion = 1

// opPut is the Op of what goes wrong at this side.
const opPut = "upload.Put"

const aheadSuffix = ".json"

// aheadSet is the file of a machine.
type aheadSet struct {
	Version    int                           `json:"version"`
	Generation uint32                        `json:"generation"`
	Issued     time.Time                     `json:"issued"` // by this host's clock
	Expires    time.Time                     `json:"expires"`
	URLs       map[string]agentapi.SignedURL `json:"urls"`
	Key        sentKey                       `json:"key,omitzero"`
}

// sentKey is a sealed key of which the store has said that it has it. An agent
// that is restarted sends the one in use again, and can't be told that it is there
// while the vault is away.
type sentKey struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// aheadHeld is what is remembered of a file; the secrets are read when they are needed.
type aheadHeld struct {
	gen             uint32
	issued, expires time.Time
	first, last     uint64 // cuts
}

func (s *aheadSet) held() *aheadHeld {
	h := &aheadHeld{gen: s.Generation, issued: s.Issued, expires: s.Expires, first: math.MaxUint64}
	for name := range s.URLs {
		if o, err := cut.ParseObject(name); err == nil && o.Class == cut.ClassCut {
			h.first, h.last = min(h.first, o.N), max(h.last, o.N)
		}
	}
	return h
}

// half reports that at least half of the cuts or of the time will be gone with the cut n.
func (h *aheadHeld) half(n uint64, now time.Time) bool {
	if n >= h.last || now.Before(h.issued) || 2*h.expires.Sub(now) <= h.expires.Sub(h.issued) {
		return true
	}
	return 2*(h.last-n) <= h.last-h.first+1
}

// vaultAway reports that the vault did not answer, as against one that refuses,
// or that says what is wrong with the store.
func vaultAway(err error) bool {
	var own *dr.Error
	if errors.As(err, &own) && own.Op == opPut {
		return false // it was not the vault
	}
	switch dr.CodeOf(err) {
	case dr.CodeVaultUnreachable:
		return true
	case "":
		return dr.KindOf(err) == dr.KindUnavailable
	}
	return false
}

// find returns the URL for an object of a generation, if there is one that lives.
func (a *ahead) find(machine string, gen uint32, name string) (agentapi.SignedURL, bool) {
	if a.dir == "" {
		return agentapi.SignedURL{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.get(machine)
	if h == nil || h.gen != gen || !time.Now().Before(h.expires) {
		return agentapi.SignedURL{}, false
	}
	s, err := readAhead(a.path(machine))
	if err != nil || s.Generation != gen {
		a.sets[machine] = nil
		a.log.Warn("the addresses for an outage of the vault can't be read", "machine", machine, "err", err)
		return agentapi.SignedURL{}, false
	}
	url, ok := s.URLs[name]
	return url, ok
}

// wish is what to ask the vault for with the cut n: nothing as long as more than
// half of the names, and of the time, are left.
func (a *ahead) wish(machine string, gen uint32, n uint64, epoch uint32) *agentapi.AheadRequest {
	if a.dir == "" {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.get(machine); h != nil && h.gen == gen && !h.half(n, time.Now()) {
		return nil
	}
	return &agentapi.AheadRequest{Cut: n + 1, Epoch: nextEpoch(gen, epoch)}
}

// nextEpoch is the epoch after one; those of a generation begin with it (see
// docs/store-format.md, sealed keys).
func nextEpoch(gen, epoch uint32) uint32 { return max(epoch+1, gen<<12) }

// keep replaces what is known of a machine by what the vault has given.
func (a *ahead) keep(machine string, gen uint32, urls []agentapi.AheadURL) {
	if a.dir == "" || len(urls) == 0 {
		return
	}
	s := &aheadSet{Version: aheadVersion, Generation: gen, Issued: time.Now().UTC(), URLs: make(map[string]agentapi.SignedURL, len(urls))}
	for _, u := range urls {
		if o, err := cut.ParseObject(u.Name); err != nil || string(o.Machine) != machine {
			continue
		}
		if s.Expires.IsZero() || u.Expires.Before(s.Expires) {
			s.Expires = u.Expires
		}
		s.URLs[u.Name] = u.SignedURL
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sets == nil {
		a.sets = map[string]*aheadHeld{}
	}
	a.sets[machine], s.Key = s.held(), a.keys[machine]
	if err := a.save(machine, s); err != nil {
		a.sets[machine] = nil
		a.log.Warn("the addresses for an outage of the vault can't be kept", "machine", machine, "err", err)
	}
	a.sweep()
}

// sent remembers a key that the store has.
func (a *ahead) sent(machine string, key sentKey) {
	if a.dir == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keys == nil {
		a.keys = map[string]sentKey{}
	}
	a.keys[machine] = key
	if a.get(machine) == nil {
		return // it goes along with what the vault will give
	}
	s, err := readAhead(a.path(machine))
	if err != nil || s.Key == key {
		return
	}
	s.Key = key
	if err := a.save(machine, s); err != nil {
		a.log.Warn("it can't be kept that a sealed key was sent", "machine", machine, "err", err)
	}
}

// known reports that the store has said that it has this very key.
func (a *ahead) known(machine string, key sentKey) bool {
	if a.dir == "" {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.get(machine) == nil {
		return false
	}
	s, err := readAhead(a.path(machine))
	return err == nil && s.Key == key
}

// drop forgets what was signed for a generation that was taken over.
func (a *ahead) drop(machine string, gen uint32) {
	if a.dir == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.get(machine); s != nil && s.gen <= gen {
		a.sets[machine] = nil
		a.remove(a.path(machine))
	}
}

func (a *ahead) path(machine string) string { return filepath.Join(a.dir, machine+aheadSuffix) }

// get reads a machine's file if that has not been done. The caller holds mu.
func (a *ahead) get(machine string) *aheadHeld {
	if s, ok := a.sets[machine]; ok {
		return s
	}
	if a.sets == nil {
		a.sets = map[string]*aheadHeld{}
	}
	s, err := readAhead(a.path(machine))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("the addresses for an outage of the vault can't be read: new ones are asked for", "machine", machine, "err", err)
	}
	a.sets[machine] = nil
	if s != nil {
		a.sets[machine] = s.held()
	}
	return a.sets[machine]
}

func readAhead(path string) (*aheadSet, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s aheadSet
	if json.Unmarshal(raw, &s) != nil { // its error would quote the file
		return nil, errors.New("the file " + path + " is damaged")
	}
	if s.Version != aheadVersion {
		return nil, errors.New("the file " + path + " has another version than this program")
	}
	return &s, nil
}

// save replaces a file in one step. A crash leaves the old one or the new one.
func (a *ahead) save(machine string, s *aheadSet) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(a.dir, machine+".*.new") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), a.path(machine))
	}
	if err != nil {
		a.remove(f.Name())
	}
	return err
}

// sweep removes, once per process, what has ended or was left by a crash.
func (a *ahead) sweep() {
	if a.swept {
		return
	}
	a.swept = true
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return // the next process tries again
	}
	for _, e := range entries {
		path := filepath.Join(a.dir, e.Name())
		if !strings.HasSuffix(path, aheadSuffix) {
			a.remove(path)
		} else if s, err := readAhead(path); err == nil && time.Now().After(s.Expires) {
			a.remove(path)
		}
	}
}

func (a *ahead) remove(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("a file with signed addresses can't be removed", "file", path, "err", err)
	}
}

// alone returns a URL that was signed beforehand, if the vault does not answer
// and the object's name is among those. Parts and tile images are not: their names
// are chosen when they are made, so such a cut waits for the vault.
func (p *put) alone(ctx context.Context, err error) (agentapi.SignedURL, bool) {
	if ctx.Err() != nil || !vaultAway(err) {
		return agentapi.SignedURL{}, false
	}
	url, ok := p.u.ahead.find(p.machine, p.gen, p.name)
	if ok {
		p.u.cfg.Log.Info("the vault does not answer: sending with an address that it has signed beforehand", "object", p.name)
	}
	return url, ok
}
