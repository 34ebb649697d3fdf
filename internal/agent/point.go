package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"holdfast/internal/agent/channel"
	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/guestcheck"
	"holdfast/internal/hydrate"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/store"
)

const (
	openPatience = 30 * time.Second // how long a serving process waits for the vault
	checkBudget  = 5 * time.Second  // how long verification may hold back a start
	remoteChunk  = 1 << 20          // unit of reading over a network, bytes
)

// Point is a recovery point that this host may read. It holds data keys.
type Point struct {
	Machine dr.MachineID
	Gen     dr.Generation
	N       uint64
	Reader  *httpstore.Reader // its tickets are renewed with the vault
	Keys    store.StaticKeys
	Repair  string // target for which the guest is to be repaired on a side layer; "" = none

	data *channel.Transport
}

// Close drops the connections to the store. Idempotent.
func (p *Point) Close() error {
	p.data.CloseIdleConnections()
	return nil
}

// Store reads the point's machine.
func (p *Point) Store() *store.Store {
	return store.New(store.Config{Bucket: p.Reader, Keys: p.Keys, ChunkSize: remoteChunk})
}

// OpenPoint asks the vault, as the agent of the state directory, for what it
// takes to read the point of a serving. It needs no running agent and does not
// disturb one. A vault that does not answer is asked again for half a minute; later
// on the vault is needed only when the read ticket, good for an hour, ends.
func OpenPoint(ctx context.Context, stateDir, serving string) (*Point, error) {
	const op = "agent.OpenPoint"
	var res agentapi.OpenPointResponse
	var pause backoff
	for began := time.Now(); ; {
		var err error
		if res, err = askPoint(ctx, stateDir, serving); err == nil {
			break
		}
		if dr.KindOf(err) != dr.KindUnavailable || time.Since(began) > openPatience {
			return nil, err
		}
		if err := sleep(ctx, pause.next()); err != nil {
			return nil, err
		}
	}
	p := &Point{Machine: dr.MachineID(res.Machine), Gen: dr.Generation(res.Generation), N: res.N, Keys: store.StaticKeys{}, Repair: res.Repair}
	for text, key := range res.Keys {
		epoch, err := strconv.ParseUint(text, 10, 32)
		if err != nil || len(key) != len(cut.EpochKey{}) {
			return nil, dr.Errorf(dr.KindInternal, op, "the vault sent a data key that can't be used, of epoch %q", text)
		}
		p.Keys[uint32(epoch)] = cut.EpochKey(key)
	}
	id, err := channel.Load(stateDir)
	if err != nil {
		return nil, err
	}
	data, err := id.Transport()
	if err != nil {
		return nil, err
	}
	p.data = data
	first := res.Ticket
	p.Reader, err = httpstore.NewReader(httpstore.ReaderConfig{BaseURL: res.StoreURL, Transport: data, Tickets: func(ctx context.Context) (string, error) {
		// The reader calls it one at a time.
		if t := first; t != "" {
			first = ""
			return t, nil
		}
		res, err := askPoint(ctx, stateDir, serving)
		return res.Ticket, err
	}})
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "use the vault's store address: %w", err)
	}
	return p, nil
}

// askPoint asks once. It reads the identity each time, because the agent renews it.
func askPoint(ctx context.Context, stateDir, serving string) (agentapi.OpenPointResponse, error) {
	id, err := channel.Load(stateDir)
	if err != nil {
		return agentapi.OpenPointResponse{}, err
	}
	client, err := id.Open(id.Keypair, "")
	if err != nil {
		return agentapi.OpenPointResponse{}, err
	}
	defer client.Close()
	return client.OpenPoint(ctx, agentapi.OpenPointRequest{Serving: serving})
}

// ServePoint is the serving process: it opens the point of a serving and serves
// its disks over NBD in dir until ctx ends. The reason for which it ends goes
// to stderr in the form that hydrate.Launcher reads.
func ServePoint(ctx context.Context, stateDir, serving, dir string) error {
	err := servePoint(ctx, stateDir, serving, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, hydrate.ErrorLine(err))
	}
	return err
}

func servePoint(ctx context.Context, stateDir, serving, dir string) (err error) {
	p, err := OpenPoint(ctx, stateDir, serving)
	if err != nil {
		return err
	}
	defer p.Close()
	view, err := p.Store().OpenPoint(ctx, p.Machine, p.Gen, p.N)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	cfg := hydrate.ServeConfig{Dir: dir, View: view, Check: checkBudget, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if p.Repair != "" {
		if err := repair(ctx, p.Repair, &cfg); err != nil {
			return err
		}
	}
	return hydrate.Serve(ctx, cfg)
}

// repair looks into the guest and puts what can be repaired safely into a side layer.
// A guest that can't be repaired is served as it is: booting it is what was asked for.
func repair(ctx context.Context, target string, cfg *hydrate.ServeConfig) error {
	view := cfg.View
	in := guestcheck.Input{Target: target, Generation: view.VM().Generation, OSType: view.VM().OSType}
	layers, overlays := map[string]guestcheck.Layer{}, map[string]*guestcheck.Overlay{}
	for _, d := range view.Disks() {
		x := guestcheck.NewOverlay(viewDisk{view, d})
		layers[d.ID], overlays[d.ID] = x, x
		in.Disks = append(in.Disks, guestcheck.Source{ID: d.ID, Disk: viewDisk{view, d}})
	}
	report, err := guestcheck.Check(ctx, in)
	if err != nil {
		return err
	}
	fixes := guestcheck.Plan(report)
	if len(fixes) == 0 {
		return nil
	}
	done, err := guestcheck.Apply(ctx, layers, fixes)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		cfg.Log.Warn("the guest was not repaired", "err", err)
		return nil
	}
	for _, o := range done {
		if !o.Applied {
			cfg.Log.Warn("not repaired", "check", o.Fix.Check, "file", o.Fix.File, "reason", o.Reason)
			continue
		}
		cfg.Log.Info("repaired on a side layer", "check", o.Fix.Check, "file", o.Fix.File, "what", o.Fix.What)
		cfg.Repaired = append(cfg.Repaired, o.Fix.File+": "+o.Fix.What)
	}
	cfg.Patches = map[string][]hydrate.Patch{}
	for id, x := range overlays {
		for _, piece := range x.Pieces() {
			cfg.Patches[id] = append(cfg.Patches[id], hydrate.Patch{Off: piece.Off, Data: piece.Data})
		}
	}
	return nil
}

// viewDisk is a disk of a view for those who only read.
type viewDisk struct {
	view *store.View
	disk store.DiskInfo
}

func (d viewDisk) Size() int64 { return d.disk.Size }

func (d viewDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.view.ReadAt(ctx, d.disk.ID, p, off)
}
