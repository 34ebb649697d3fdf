package main

import (
	"context"
	"testing"
)

// The whole story with a simulated Hyper-V host as the primary site, whose ledger
// VM really runs from VHDX files: replicated by change tracking over WS-Man, tested,
// lost with its host, recovered and committed, at a KVM site and at another Hyper-V host.
func TestStoryFromHyperV(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots real guests for minutes")
	}
	for name, where := range map[string]string{"to KVM": "primary", "to Hyper-V": "both"} {
		t.Run(name, func(t *testing.T) {
			d := newDemo(t)
			d.hyperv = where
			for _, act := range []func(context.Context) error{d.build, d.bringUp, d.register, d.protect, d.replicate, d.drill, d.disaster, d.prove, d.commit} {
				if err := act(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("RPO %.1f s, RTO %.1f s, ledger %+v", d.result.RPO, d.result.RTO, d.result.Ledger)
		})
	}
}
