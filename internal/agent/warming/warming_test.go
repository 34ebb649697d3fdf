package warming

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// world is a vault that asks for what a test says, and disks in a cloud.
type world struct {
	mu     sync.Mutex
	orders []agentapi.WarmOrder
	told   []agentapi.WarmStatus // the last report
	down   error                 // of the vault
	calls  []string              // of the cloud and of opening points
	fail   map[string]error      // call → error
	hold   chan struct{}         // if set, Apply waits for it
}

func (w *world) Warm(_ context.Context, r agentapi.WarmRequest) (agentapi.WarmResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return agentapi.WarmResponse{}, w.down
	}
	w.told = r.Replicas
	return agentapi.WarmResponse{Replicas: slices.Clone(w.orders)}, nil
}

func (w *world) call(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	w.calls = append(w.calls, s)
	return w.fail[s]
}

func (w *world) Apply(ctx context.Context, _ *store.Store, m dr.MachineID, gen dr.Generation, n uint64) (Applied, error) {
	w.mu.Lock()
	hold := w.hold
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return Applied{Bytes: 1}, ctx.Err()
		}
	}
	return Applied{Bytes: 10, Requests: 2}, w.call("apply %s %d/%d", m, gen, n)
}

func (w *world) Prune(_ context.Context, m dr.MachineID, keep int) error {
	return w.call("prune %s %d", m, keep)
}

func (w *world) Remove(_ context.Context, m dr.MachineID) error { return w.call("remove %s", m) }

func (w *world) set(orders ...agentapi.WarmOrder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orders = orders
}

func (w *world) take() (calls []string, told []agentapi.WarmStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls, w.calls = w.calls, nil
	return calls, w.told
}

// run runs a keeper until the test's function returns.
func run(t *testing.T, w *world, dir string, test func(k *Keeper)) {
	ctx, cancel := context.WithCancel(t.Context())
	k := New(Config{Vault: w, Replicas: w, Dir: dir, Every: time.Second, Errors: func(err error) *agentapi.Error { return &agentapi.Error{Message: err.Error()} },
		Open: func(_ context.Context, serving string) (*store.Store, func() error, error) {
			if err := w.call("open %s", serving); err != nil {
				return nil, nil, err
			}
			return nil, func() error { return w.call("close %s", serving) }, nil
		}})
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	test(k)
	cancel()
	<-done
}

// later lets some rounds pass.
func later(rounds int) {
	time.Sleep(time.Duration(rounds)*time.Second + time.Millisecond)
	synctest.Wait()
}

func order(m string, n uint64) agentapi.WarmOrder {
	return agentapi.WarmOrder{Item: "item-" + m, Machine: m, Serving: "s-" + m, Generation: 1, N: n, Keep: 3}
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("calls\n got %s\nwant %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

func TestFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, dir := &world{fail: map[string]error{}}, t.TempDir()
		run(t, w, dir, func(*Keeper) {
			later(1)
			calls, told := w.take()
			if expect(t, calls); len(told) != 0 {
				t.Errorf("told %+v", told)
			}
			w.set(order("a", 0))
			later(2)
			calls, told = w.take()
			expect(t, calls, "open s-a", "apply a 1/0", "prune a 3", "close s-a")
			if len(told) != 1 || told[0] != (agentapi.WarmStatus{Item: "item-a", Machine: "a", Generation: 1, Bytes: 10, Requests: 2}) {
				t.Errorf("told %+v", told)
			}
			later(3)
			calls, told = w.take()
			if expect(t, calls); len(told) != 1 || told[0].Bytes != 0 {
				t.Errorf("counted twice, or done again: %v %+v", calls, told)
			}
			// A failure is told, tried again less and less often, and gone with success.
			w.mu.Lock()
			w.fail["apply a 1/1"] = dr.Errorf(dr.KindUnavailable, "x", "no container")
			w.mu.Unlock()
			w.set(order("a", 1))
			later(8)
			calls, told = w.take()
			expect(t, calls, "open s-a", "apply a 1/1", "close s-a", "open s-a", "apply a 1/1", "close s-a", "open s-a", "apply a 1/1", "close s-a")
			if len(told) != 1 || told[0].Error == nil || !strings.Contains(told[0].Error.Message, "no container") || told[0].N != 0 || told[0].Generation != 1 {
				t.Errorf("told %+v", told)
			}
			// Another point is tried at once; the vault being down changes nothing.
			w.set(order("a", 2))
			later(1)
			w.mu.Lock()
			w.down = dr.Errorf(dr.KindUnavailable, "x", "down")
			w.mu.Unlock()
			later(5)
			calls, _ = w.take()
			expect(t, calls, "open s-a", "apply a 1/2", "prune a 3", "close s-a")
			w.mu.Lock()
			w.down = nil
			w.mu.Unlock()
			w.set()
			later(2)
			calls, told = w.take()
			if expect(t, calls, "remove a"); len(told) != 0 {
				t.Errorf("told %+v", told)
			}
		})
	})
}

// What was begun is found and removed by the next process.
func TestRemovesAfterRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, dir := &world{fail: map[string]error{}, hold: make(chan struct{})}, t.TempDir()
		w.set(order("a", 1), order("b", 1), order("c", 1))
		run(t, w, dir, func(*Keeper) {
			later(2)
			_, told := w.take()
			if len(told) != 3 || !told[0].Busy || told[0].Generation != 0 {
				t.Errorf("told %+v", told)
			}
		})
		calls, _ := w.take()
		if slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, "apply") }) {
			t.Fatalf("something was applied: %v", calls)
		}
		w.set(order("b", 1))
		w.mu.Lock()
		w.hold = nil
		w.fail["remove a"] = dr.Errorf(dr.KindUnavailable, "x", "not now")
		w.mu.Unlock()
		run(t, w, dir, func(*Keeper) {
			later(1)
			calls, _ := w.take()
			slices.Sort(calls)
			expect(t, calls, "apply b 1/1", "close s-b", "open s-b", "prune b 3", "remove a", "remove c")
			w.mu.Lock()
			delete(w.fail, "remove a")
			w.mu.Unlock()
			later(3)
			calls, _ = w.take()
			expect(t, calls, "remove a")
		})
		var rec record
		if err := state.Load(filepath.Join(dir, recordName), &rec); err != nil || len(rec.Machines) != 1 || rec.Machines["b"] != "item-b" {
			t.Errorf("record %+v, %v", rec, err)
		}
	})
}

// Nothing is written to the cloud that is not recorded first.
func TestNotRecordedNotBegun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{fail: map[string]error{}}
		dir := filepath.Join(t.TempDir(), "gone")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.set(order("a", 1))
		run(t, w, dir, func(*Keeper) {
			later(3)
			calls, told := w.take()
			if expect(t, calls); len(told) != 1 || told[0].Generation != 0 {
				t.Errorf("told %+v", told)
			}
		})
	})
}
