package hydrate

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/nbd"
	"holdfast/internal/store"
)

// Files of a serving directory.
const (
	SocketName = "nbd.sock"
	statusName = "status.json"
	vmName     = "vm.json"
	lockName   = "lock"
	logName    = "serve.log"
)

// Status is what a serving process last wrote about itself.
type Status struct {
	Version   int       `json:"version"` // 1
	PID       int       `json:"pid"`
	Machine   string    `json:"machine"`
	Point     string    `json:"point"`
	Exports   []Export  `json:"exports"`
	Started   time.Time `json:"started"`
	Verified  bool      `json:"verified"`           // every byte of the point was verified
	Gets      int64     `json:"gets"`               // reads of the store
	BytesRead int64     `json:"bytesRead"`          // from the store
	Repaired  []string  `json:"repaired,omitempty"` // what is served differs from the point in these
	LastError string    `json:"lastError,omitempty"`
	ErrorAt   time.Time `json:"errorAt,omitzero"`
	At        time.Time `json:"at"`
}

// Export is a disk that is served.
type Export struct {
	Name string `json:"name"` // disk id
	Size int64  `json:"size"`
}

// ServeConfig of Serve.
type ServeConfig struct {
	Dir      string        // of the serving; the socket's path must stay below 100 bytes
	View     *store.View   // is not closed by Serve
	Patience time.Duration // 0 = Patience
	Every    time.Duration // how often the status is written; 0 = 2 s
	// Check is how long serving may be held back to verify every byte of the
	// point; what is left is verified while it is being served. Damage that is
	// found in time refuses the point.
	Check time.Duration
	// Patches are served over the point's own bytes, by disk id; Repaired says for people what they do.
	Patches  map[string][]Patch
	Repaired []string
	Log      *slog.Logger
}

// ErrServed says that another process serves the directory already.
var ErrServed = errors.New("the recovery point is already being served")

// Serve serves every disk of the view as an NBD export named by its disk id on
// Dir/nbd.sock until ctx ends. Only one process can serve a directory
// (ErrServed). The socket is removed at the end; one left by a killed process is replaced.
func Serve(ctx context.Context, cfg ServeConfig) (err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Every <= 0 {
		cfg.Every = 2 * time.Second
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "make directory: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return err
	}
	defer unlock()
	s := &serving{cfg: cfg}
	exports := nbd.ExportMap{}
	for _, d := range cfg.View.Disks() {
		exports[d.ID] = newPatched(NewDevice(cfg.View, d, DeviceConfig{Patience: cfg.Patience, Log: cfg.Log, OnError: s.note}), cfg.Patches[d.ID])
		s.status.Exports = append(s.status.Exports, Export{d.ID, d.Size})
	}
	s.status.Repaired = cfg.Repaired
	info := cfg.View.Info()
	s.status.Version, s.status.PID, s.status.Started = 1, os.Getpid(), time.Now().UTC()
	s.status.Machine, s.status.Point = string(cfg.View.Machine()), dr.PointName(info.Gen, info.N)

	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.writeVM(); err != nil {
		return err
	}
	server, err := nbd.NewServer(nbd.ServerConfig{Exports: exports, Log: cfg.Log, PreferredBlock: 64 << 10})
	if err != nil {
		return dr.Errorf(dr.KindInternal, "hydrate.Serve", "make NBD server: %w", err)
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	socket := filepath.Join(cfg.Dir, SocketName)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "remove stale socket: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "listen on %s: %w", socket, err)
	}
	// QEMU may run as another user; the directory above decides who gets here.
	if err := os.Chmod(socket, 0o666); err != nil {
		ln.Close()
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "open socket to QEMU: %w", err)
	}
	if err := s.write(); err != nil {
		ln.Close()
		return err
	}
	verified := s.status.Verified
	var wg sync.WaitGroup
	tick, stop := context.WithCancel(ctx)
	wg.Go(func() { s.keep(tick) })
	if !verified {
		wg.Go(func() { s.checkRest(tick) })
	}
	err = server.Serve(ctx, ln)
	stop()
	wg.Wait()
	return err
}

type serving struct {
	cfg ServeConfig

	mu     sync.Mutex
	status Status
}

// check verifies within the budget.
func (s *serving) check(ctx context.Context) error {
	budget, cancel := context.WithTimeout(ctx, s.cfg.Check)
	defer cancel()
	res, err := s.cfg.View.Check(ctx, budget, nil)
	if err != nil {
		return err
	}
	s.status.Verified = res.ObjectsLeft == 0
	return nil
}

// checkRest verifies what the budget did not suffice for. Damage can't be
// undone now, but whoever decides to stay on this point has to know.
func (s *serving) checkRest(ctx context.Context) {
	_, err := s.cfg.View.Check(ctx, ctx, nil)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.cfg.Log.Error("the served recovery point is damaged", "err", err)
		s.note(err)
	default:
		s.mu.Lock()
		s.status.Verified = true
		s.mu.Unlock()
	}
}

// vmFile is vm.json: what the agent needs to define the VM.
type vmFile struct {
	Version int               `json:"version"` // 1
	VM      cut.VMRecord      `json:"vm"`
	Config  map[string][]byte `json:"config"`
	Disks   []Export          `json:"disks"`
}

func (s *serving) writeVM() error {
	vm := s.cfg.View.VM()
	raw, err := json.Marshal(vmFile{Version: 1, VM: vm, Config: vm.Config, Disks: s.status.Exports})
	if err != nil {
		return dr.Errorf(dr.KindInternal, "hydrate.Serve", "encode VM record: %w", err)
	}
	return writeFile(filepath.Join(s.cfg.Dir, vmName), raw)
}

// ReadVM returns the VM's captured configuration and disks as the serving process found them in the point.
func ReadVM(dir string) (cut.VMRecord, []Export, error) {
	raw, err := os.ReadFile(filepath.Join(dir, vmName))
	var f vmFile
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err != nil {
		return cut.VMRecord{}, nil, dr.Errorf(dr.KindUnavailable, "hydrate.ReadVM", "read VM record of %s: %w", dir, err)
	}
	f.VM.Config = f.Config
	return f.VM, f.Disks, nil
}

func (s *serving) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.LastError, s.status.ErrorAt = err.Error(), time.Now().UTC()
}

func (s *serving) keep(ctx context.Context) {
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := s.write(); err != nil {
				s.cfg.Log.Warn("write status", "err", err)
			}
		}
	}
}

func (s *serving) write() error {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	st.Gets, st.BytesRead = s.cfg.View.Reads()
	st.At = time.Now().UTC()
	raw, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.cfg.Dir, statusName), raw)
}

// writeFile replaces a small file in one step. It need not survive a power cut.
func writeFile(path string, raw []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o640); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "write %s: %w", path, err)
	}
	return nil
}

// ReadStatus reads the status of a serving directory; dr.KindNotFound where none was ever written.
func ReadStatus(dir string) (Status, error) {
	var st Status
	raw, err := os.ReadFile(filepath.Join(dir, statusName))
	if errors.Is(err, os.ErrNotExist) {
		return st, dr.Errorf(dr.KindNotFound, "hydrate.ReadStatus", "nothing was served from %s", dir)
	}
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		return st, dr.Errorf(dr.KindUnavailable, "hydrate.ReadStatus", "read status of %s: %w", dir, err)
	}
	return st, nil
}
