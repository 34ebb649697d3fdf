package vault_test

import (
	"slices"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// What somebody sets for a recovery VM in a cloud reaches the agent that makes it,
// for tests and for real failovers apart, and the sizes are judged by the VM.
func TestCloudSettings(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		ctx := t.Context()
		s.src.mu.Lock()
		for _, vm := range s.src.vms {
			vm.NICs = append(vm.NICs, agentapi.NIC{ID: "2", MAC: "52:54:00:00:00:02", Network: "lan"}, agentapi.NIC{ID: "3", MAC: "52:54:00:00:00:03", Network: "lan"})
		}
		s.src.mu.Unlock()
		s.dst.mu.Lock()
		s.dst.sizes = []agentapi.ComputeSize{{Name: "big", CPUs: 8, MemoryMB: 32768, DataDisks: 16, NICs: 4, Generations: []int{1, 2}}, {Name: "tiny", CPUs: 1, MemoryMB: 1024, NICs: 4},
			{Name: "few", CPUs: 2, MemoryMB: 4096, DataDisks: 4, NICs: 2}, {Name: "uefi", CPUs: 2, MemoryMB: 4096, DataDisks: 4, NICs: 4, Generations: []int{2}},
			{Name: "gone", CPUs: 2, MemoryMB: 4096, DataDisks: 4, NICs: 4, Problem: "not in this subscription"}, {Name: "small", CPUs: 2, MemoryMB: 1024, NICs: 3, Generations: []int{1}}}
		s.dst.mu.Unlock()
		for _, a := range []*agent{s.src, s.dst} {
			if err := a.sendInventory(); err != nil {
				t.Fatal(err)
			}
		}
		s.protect()
		sizes := must[[]dr.ComputeSize](t)(s.vault().ComputeSizes(ctx, s.item))
		var fit, not []string
		for _, x := range sizes {
			if x.Problem == "" {
				fit = append(fit, x.Name)
			} else {
				not = append(not, x.Name)
			}
		}
		if !slices.Equal(fit, []string{"small", "big"}) || len(not) != 4 {
			t.Errorf("fit %v, do not %v", fit, not)
		}
		// A report without sizes, as of a cloud that could not be asked, takes none away.
		s.dst.mu.Lock()
		s.dst.sizes = nil
		s.dst.mu.Unlock()
		if err := s.dst.sendInventory(); err != nil {
			t.Fatal(err)
		}
		if again := must[[]dr.ComputeSize](t)(s.vault().ComputeSizes(ctx, s.item)); len(again) != len(sizes) {
			t.Errorf("then %d sizes", len(again))
		}

		s.run(s.vault().Update(ctx, vault.UpdateRequest{Item: s.item, By: "test", Settings: func(x *dr.ItemSettings) {
			x.Network = "lan"
			x.Cloud = dr.CloudSettings{Size: "big", Zone: "2", Tags: map[string]string{"cost": "dr"}, PublicIP: true, NICs: []dr.CloudNIC{
				{ID: "52:54:00:00:00:01", Unused: true}, {ID: "2", Subnet: "back", IP: "10.0.1.4", TestSubnet: "lab-back"}, {ID: "3", Primary: true}, {ID: "gone", IP: "10.0.0.1"}}}
		}}))
		last := s.boots()
		p := last()
		want := []agentapi.BootAdapter{{MAC: "52:54:00:00:00:03", ID: "3", Network: "lan"}, {MAC: "52:54:00:00:00:01", ID: "52:54:00:00:00:01"},
			{MAC: "52:54:00:00:00:02", ID: "2", Network: "lan", Subnet: "back", IP: "10.0.1.4"}}
		if p.Cloud == nil || p.Cloud.Size != "big" || p.Cloud.Zone != "2" || p.Cloud.Tags["cost"] != "dr" || !p.Cloud.PublicIP || !slices.Equal(p.Adapters, want) {
			t.Errorf("failover: cloud %+v, adapters %+v", p.Cloud, p.Adapters)
		}
		s.run(s.vault().StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, Network: "lab", By: "test"}))
		test := s.lastBoot()
		if test.Cloud == nil || test.Cloud.PublicIP || len(test.Adapters) != 3 || test.Adapters[2].Subnet != "lab-back" || test.Adapters[2].IP != "" || test.Adapters[2].Network != "lab" {
			t.Errorf("test: cloud %+v, adapters %+v", test.Cloud, test.Adapters)
		}
	})
}

// A warm replica follows the newest point, one at a time, on one agent.
func TestWarmReplica(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		ctx := t.Context()
		s.protect()
		ask := func(a *agent, told ...agentapi.WarmStatus) []agentapi.WarmOrder {
			t.Helper()
			var res agentapi.WarmResponse
			if err := a.post(agentapi.PathWarm, agentapi.WarmRequest{Replicas: told}, &res); err != nil {
				t.Fatal(err)
			}
			return res.Replicas
		}
		set := func(on bool) {
			s.run(s.vault().Update(ctx, vault.UpdateRequest{Item: s.item, By: "test", Settings: func(x *dr.ItemSettings) { x.Cloud.Warm = on }}))
		}
		if got := ask(s.dst); len(got) != 0 {
			t.Fatalf("before it is wanted: %+v", got)
		}
		var none agentapi.WarmResponse
		wantCode(t, s.src.post(agentapi.PathWarm, agentapi.WarmRequest{}, &none), dr.KindForbidden, "")
		set(true)
		first := ask(s.dst)
		points := s.points()
		if len(first) != 1 || first[0].Machine != s.machine || first[0].N != points[0].N || first[0].Serving == "" || first[0].Item != string(s.item) {
			t.Fatalf("orders %+v, newest point %+v", first, points[0])
		}
		var open agentapi.OpenPointResponse
		if err := s.dst.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: first[0].Serving}, &open); err != nil || open.N != first[0].N || len(open.Keys) == 0 {
			t.Fatalf("open: %+v, %v", open.N, err)
		}
		wantCode(t, s.src.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: first[0].Serving}, &open), dr.KindForbidden, "")
		next := s.newCut()
		busy := agentapi.WarmStatus{Item: string(s.item), Machine: s.machine, Busy: true, Bytes: 100, Requests: 3}
		if got := ask(s.dst, busy); len(got) != 1 || got[0].N != first[0].N {
			t.Errorf("while it works: %+v", got)
		}
		held := agentapi.WarmStatus{Item: string(s.item), Machine: s.machine, Generation: first[0].Generation, N: first[0].N, Bytes: 50, Requests: 2}
		if got := ask(s.dst, held); len(got) != 1 || got[0].N != next.N || got[0].Serving != first[0].Serving {
			t.Errorf("when it holds the point: %+v, want %d", got, next.N)
		}
		d := must[vault.Detail](t)(s.vault().Detail(ctx, s.item))
		if d.Warm == nil || d.Warm.N != first[0].N || d.Warm.Bytes != 150 || d.Warm.Requests != 5 || d.Warm.Time.IsZero() || d.Warm.Busy {
			t.Errorf("detail %+v", d.Warm)
		}
		// What can't be applied is not waited for: the next point is tried.
		third := s.newCut()
		bad := held
		bad.Bytes, bad.Requests, bad.Error = 0, 0, &agentapi.Error{Kind: "unavailable", Message: "the container is gone"}
		if got := ask(s.dst, bad); len(got) != 1 || got[0].N != third.N {
			t.Errorf("after a failure: %+v", got)
		}
		if d := must[vault.Detail](t)(s.vault().Detail(ctx, s.item)); d.Warm.Problem != "the container is gone" {
			t.Errorf("problem %q", d.Warm.Problem)
		}
		// A second agent of the site gets it only when the first is gone.
		key := must[vault.RegistrationKey](t)(s.vault().IssueKey(ctx, vault.KeyRequest{Fabric: "Recovery", By: "test"}))
		other := w.newAgent("dst2", key, "recovery")
		if got := ask(other); len(got) != 0 {
			t.Errorf("a second agent: %+v", got)
		}
		s.dst.halt()
		w.clock.add(10 * time.Minute)
		if got := ask(other); len(got) != 1 || got[0].Serving == first[0].Serving || got[0].N != third.N {
			t.Errorf("the second agent, with the first gone: %+v", got)
		}
		if got := ask(s.dst, held); len(got) != 0 {
			t.Errorf("the first agent, back again: %+v", got)
		}
		wantCode(t, s.dst.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: first[0].Serving}, &open), dr.KindForbidden, "")
		set(false)
		if got := ask(other, held); len(got) != 0 {
			t.Errorf("after it is ended: %+v", got)
		}
		if d := must[vault.Detail](t)(s.vault().Detail(ctx, s.item)); d.Warm != nil {
			t.Errorf("detail after its end %+v", d.Warm)
		}
	})
}
