package hostsite_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/recovery/hostsite"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servings serves points in this process.
type servings struct {
	t     *testing.T
	root  string
	view  *store.View
	mu    sync.Mutex
	stop  map[string]func()
	fails error
}

func (s *servings) Dir(id string) string    { return filepath.Join(s.root, id) }
func (s *servings) Socket(id string) string { return filepath.Join(s.root, id, hydrate.SocketName) }

func (s *servings) Ensure(ctx context.Context, id string) (hydrate.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return hydrate.Status{}, s.fails
	}
	if s.stop[id] == nil {
		sctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- hydrate.Serve(sctx, hydrate.ServeConfig{Dir: s.Dir(id), View: s.view, Check: time.Minute})
		}()
		s.stop[id] = func() { cancel(); <-done }
	}
	l := hydrate.Launcher{Root: s.root}
	for {
		if st, ok := l.Running(ctx, id); ok {
			return st, nil
		}
		if ctx.Err() != nil {
			return hydrate.Status{}, ctx.Err()
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s *servings) Stop(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stop := s.stop[id]; stop != nil {
		stop()
		delete(s.stop, id)
	}
	return os.RemoveAll(s.Dir(id))
}

type stage struct {
	*hostsite.Site
	host    *sim.Host
	serve   *servings
	replica *storetest.Replica
	dir     string
	pay     agentapi.BootPayload
}

func newStage(t *testing.T) *stage {
	t.Helper()
	r := storetest.New(t, mem.New(), 2<<20, 1<<20)
	r.Write(0, 4096, []byte(strings.Repeat("boot", 1024)))
	r.Base()
	r.Write(1, 8192, []byte(strings.Repeat("data", 1024)))
	p := r.Cut()
	v, err := r.Store().OpenPoint(t.Context(), r.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	root, err := os.MkdirTemp("/tmp", "kvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	st := &stage{serve: &servings{t: t, root: root, view: v, stop: map[string]func(){}}, replica: r, dir: t.TempDir()}
	st.host = sim.New(sim.Config{OnBoot: func(vm *sim.VM) {
		vm.Print("SeaBIOS (version 1)\r\nBooting from Hard Disk...\r\nLEDGER-ORDER delta=1 ok=true\n")
	}})
	t.Cleanup(func() { st.host.Close() })
	st.Site = hostsite.New(hostsite.Config{Host: st.host, Servings: st.serve, Dir: st.dir})
	st.pay = agentapi.BootPayload{Machine: string(r.Machine), Generation: uint32(p.Ref.Gen), N: p.Ref.N, Serving: "s1", VMName: "app-test"}
	t.Cleanup(func() { st.serve.Stop(context.Background(), "s1") })
	return st
}

func TestBootVerifyLocalRemove(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	ctx := t.Context()
	first, err := s.Boot(ctx, s.pay, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Boot(ctx, s.pay, nil)
	if err != nil || again.VM != first.VM {
		t.Fatalf("booting again: %+v %v", again, err)
	}
	other := s.pay
	other.N++
	if _, err := s.Boot(ctx, other, nil); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("another point under the same serving: %v", err)
	}
	v, err := s.Verify(ctx, agentapi.VerifyPayload{VM: first.VM, TimeoutSeconds: 5})
	if err != nil || !v.OK || !strings.HasPrefix(v.Matched, "LEDGER-ORDER") || len(v.Screenshot) == 0 {
		t.Errorf("verify: %+v %v", v, err)
	}
	if v, err = s.Verify(ctx, agentapi.VerifyPayload{VM: first.VM, TimeoutSeconds: 1, ConsolePattern: "login:"}); err != nil || v.OK || v.Reason == "" {
		t.Errorf("a boot without the pattern verified: %+v %v", v, err)
	}
	if _, err := s.Verify(ctx, agentapi.VerifyPayload{VM: first.VM, ConsolePattern: "("}); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("bad pattern: %v", err)
	}
	vm := s.host.VM(dr.VMID(first.VM))
	got := make([]byte, 8)
	if err := vm.Read("vdb", 8192, got); err != nil || string(got) != "datadata" {
		t.Errorf("disk of the recovery VM: %q %v", got, err)
	}
	var last int64
	if err := s.MakeLocal(ctx, agentapi.VMPayload{VM: first.VM}, func(done, total int64) { last = done }); err != nil || !vm.Local() || last == 0 {
		t.Fatalf("make local: %v, local %v", err, vm.Local())
	}
	if _, err := os.Stat(s.serve.Dir("s1")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the serving goes on although nothing needs it")
	}
	// Repeats after the serving is gone find the same VM.
	if again, err = s.Boot(ctx, s.pay, nil); err != nil || again.VM != first.VM {
		t.Errorf("boot of a local VM: %+v %v", again, err)
	}
	if err := s.MakeLocal(ctx, agentapi.VMPayload{VM: first.VM}, nil); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.Remove(ctx, agentapi.RemovePayload{VM: first.VM, Serving: "s1"}); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.State(ctx, agentapi.VMPayload{VM: first.VM}); err != nil || st.State != "absent" {
		t.Errorf("after the removal: %+v %v", st, err)
	}
	left, _ := filepath.Glob(filepath.Join(s.dir, "*", "*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Whatever step fails, Remove leaves nothing.
func TestRemoveAfterAnyFailure(t *testing.T) {
	t.Parallel()
	boom := dr.Errorf(dr.KindUnavailable, "test", "boom")
	for _, f := range []struct {
		name string
		prep func(*stage) func() int
	}{
		{"serving", func(s *stage) func() int { s.serve.fails = boom; return func() int { return 1 } }},
		{"boot", func(s *stage) func() int {
			i := s.host.Inject(sim.Fault{Method: "Boot", Err: boom, Times: 1})
			return func() int { return i.Fired() }
		}},
		{"boot, reply lost", func(s *stage) func() int {
			i := s.host.Inject(sim.Fault{Method: "Boot", Err: boom, Late: true, Times: 1})
			return func() int { return i.Fired() }
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			fired := f.prep(s)
			if _, err := s.Boot(t.Context(), s.pay, nil); err == nil || fired() == 0 {
				t.Fatalf("the fault did not fire: %v", err)
			}
			s.serve.fails = nil
			if err := s.Remove(t.Context(), agentapi.RemovePayload{Serving: "s1"}); err != nil {
				t.Fatal(err)
			}
			vms, err := s.host.Inventory(t.Context())
			if err != nil || len(vms) != 0 {
				t.Errorf("VMs left: %v %v", vms, err)
			}
			if left, _ := filepath.Glob(filepath.Join(s.dir, "*", "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			// And the same serving can be booted afterwards.
			if _, err := s.Boot(t.Context(), s.pay, nil); err != nil {
				t.Error(err)
			}
			if err := s.Remove(t.Context(), agentapi.RemovePayload{Serving: "s1"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestForeignVMsAreLeftAlone(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	vm := s.host.AddVM(sim.VMSpec{Name: "production", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
	if err := s.Remove(t.Context(), agentapi.RemovePayload{VM: string(vm.ID()), Serving: "s9"}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.State(t.Context(), agentapi.VMPayload{VM: string(vm.ID())}); err != nil || st.State != string(hypervisor.PowerOn) {
		t.Errorf("a foreign VM: %+v %v", st, err)
	}
	if err := s.MakeLocal(t.Context(), agentapi.VMPayload{VM: string(vm.ID())}, nil); dr.CodeOf(err) != dr.CodeVMNotFound {
		t.Errorf("make a foreign VM local: %v", err)
	}
	for _, bad := range []string{"", "../s1", "a/b"} {
		if err := s.Remove(t.Context(), agentapi.RemovePayload{Serving: bad}); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("serving %q: %v", bad, err)
		}
	}
}

// blind is a host without serial consoles, whose guests have a pulse after some looks.
type blind struct {
	*sim.Host
	looks int
}

func (b *blind) SerialLog(context.Context, dr.VMID, int) ([]byte, error) {
	return nil, dr.Errorf(dr.KindUnsupported, "test", "there is no console")
}

func (b *blind) Pulse(context.Context, dr.VMID) (string, bool, error) {
	b.looks++
	return "heartbeat", b.looks > 2, nil
}

// TestVerifyByPulse: where there is no console the guest's heartbeat counts, and
// a pattern that nobody could look for is refused instead of passed.
func TestVerifyByPulse(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	h := &blind{Host: s.host}
	s.Site = hostsite.New(hostsite.Config{Host: h, Servings: s.serve, Dir: s.dir, Image: ".vhdx"})
	b, err := s.Boot(t.Context(), s.pay, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), agentapi.VerifyPayload{VM: b.VM, TimeoutSeconds: 10})
	if err != nil || !v.OK || v.Matched != "heartbeat" || h.looks != 3 {
		t.Errorf("%+v %v after %d looks", v, err, h.looks)
	}
	h.looks = -1000
	if v, err = s.Verify(t.Context(), agentapi.VerifyPayload{VM: b.VM, TimeoutSeconds: 1}); err != nil || v.OK || !strings.Contains(v.Reason, "integration services") {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := s.Verify(t.Context(), agentapi.VerifyPayload{VM: b.VM, ConsolePattern: "login:"}); dr.CodeOf(err) != dr.CodeBootNotVerified {
		t.Errorf("a pattern without console: %v", err)
	}
}
