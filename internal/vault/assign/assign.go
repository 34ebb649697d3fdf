// Package assign says what an agent has to replicate, and how: the assignments
// that it is told, made of items, generations, policies and groups.
//
// It promises that an item is assigned only to the agent that holds its current
// generation, and only once that generation is in the store; and that the same
// state gives the same version in every vault process.
package assign

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/group"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vaultdb"
)

// To is the complete list of what an agent replicates: the items whose current
// generation is its own and open. The version is a digest of the list.
// publicKey is the text of the vault's public key.
func To(ctx context.Context, q sqldb.Querier, agent dr.AgentID, publicKey string) ([]agentapi.Assignment, string, error) {
	items, err := vaultdb.ItemsOfSource(ctx, q, agent)
	if err != nil {
		return nil, "", err
	}
	list := []agentapi.Assignment{}
	policies := map[dr.PolicyID]dr.Policy{}
	var groups []dr.ConsistencyGroup
	if len(items) > 0 {
		all, err := vaultdb.Policies(ctx, q)
		if err != nil {
			return nil, "", err
		}
		for _, p := range all {
			policies[p.ID] = p
		}
		if groups, err = vaultdb.Groups(ctx, q); err != nil {
			return nil, "", err
		}
	}
	grouped := group.Assignments(groups, items)
	for _, it := range items {
		gens, err := vaultdb.Generations(ctx, q, it.Machine)
		if err != nil {
			return nil, "", err
		}
		g, ok := replica.Current(it, gens)
		if !ok || !g.Written || g.Agent != agent {
			continue
		}
		a := assignment(it, g, policies[it.Policy])
		a.VaultPublicKey, a.Group = publicKey, grouped[it.ID]
		list = append(list, a)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return nil, "", dr.Errorf(dr.KindInternal, "vault.assignments", "encode the assignments: %w", err)
	}
	sum := sha256.Sum256(text)
	return list, hex.EncodeToString(sum[:8]), nil
}

func assignment(it vaultdb.Item, g vaultdb.Generation, p dr.Policy) agentapi.Assignment {
	a := agentapi.Assignment{Item: string(it.ID), Machine: string(it.Machine), VM: string(it.VM), VMName: it.VMName, Disks: it.Disks,
		Generation: uint32(g.Gen), CopyFrequencySeconds: int(p.CopyFrequency / time.Second), AppFrequencySeconds: int(p.AppFrequency / time.Second),
		Paused: it.Paused, PauseReason: it.More.PauseReason, ResumeAt: it.More.ResumeAt, ResyncRequest: it.ResyncRequest, ResyncReason: string(it.More.ResyncReason), ResyncFull: it.More.ResyncFull, Full: it.More.Full,
		RetryNow: it.More.RetryNow, Seeded: g.Seeded, Compression: string(p.Compression)}
	if g.BaseGen != 0 {
		a.Base = &agentapi.CutRef{Generation: uint32(g.BaseGen), N: g.BaseN, Hash: g.BaseHash}
		for _, d := range g.Disks {
			a.BaseDisks = append(a.BaseDisks, agentapi.BaseDisk(d))
		}
	}
	start, err := p.Start()
	if err == nil { // a policy of before it was checked may have any text there
		a.Initial.NotBefore = start.UTC()
	}
	if start.IsZero() {
		a.Initial.NotBefore = time.Time{}
	}
	a.Initial.Window, a.Initial.Priority = p.InitialWindow.String(), p.InitialPriority
	a.Initial.Serial = p.InitialMode == dr.InitialSerial
	a.Resync = agentapi.Resync{Mode: string(p.ResyncAuto), Window: p.ResyncWindow.String(), Threshold: p.ResyncThreshold}
	if a.Resync.Mode == "" {
		a.Resync.Mode = string(dr.ResyncInWindow)
	}
	if p.ResyncAuto != dr.ResyncManual && p.ResyncWindow.IsZero() {
		a.Resync.Mode = string(dr.ResyncNow) // always open; on the wire no window is the usual one
	}
	if len(p.Bandwidth) > 0 {
		a.Bandwidth = &agentapi.Bandwidth{Group: string(p.ID)}
		for _, r := range p.Bandwidth {
			a.Bandwidth.Rules = append(a.Bandwidth.Rules, agentapi.BandwidthRule{Window: r.Window.String(), BytesPerSecond: r.BytesPerSecond})
		}
	}
	return a
}
