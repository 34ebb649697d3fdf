// Package network is what a vault knows of its sites' networks, clouds and
// storage classifications, and the mappings between sites.
//
// The networks of a VMM server are its VM networks, those of any other site the
// networks of its hosts, by name. It promises that a VMM server's report replaces
// what was known as a whole; that a mapping leads to something that existed when it
// was made; that a network is mapped to one network of a site at most; and that a
// failover whose mapping leads nowhere is refused before anything is changed.
package network

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// Kinds of jobs, which are done when they are submitted.
const (
	JobPair          = "PairNetworks"
	JobUpdate        = "UpdateNetworkPairing"
	JobUnpair        = "UnpairNetworks"
	JobPairStorage   = "PairStorageClassifications"
	JobUnpairStorage = "UnpairStorageClassifications"
)

// Network is a network of a site.
type Network struct {
	vmm.Network
	Fabric dr.FabricID
	Type   string   // isolation of a VM network as VMM calls it; NoIsolation, or Isolated for a host network without a way out
	Hosts  []string // that have it, on sites without VMM
}

// Mapping and StorageMapping are vaultdb's.
type (
	Mapping        = vaultdb.NetworkMapping
	StorageMapping = vaultdb.StorageMapping
)

// Directory knows the networks. It is safe for concurrent use.
type Directory struct {
	st    *state.State
	jobs  *work.Board
	sites *site.Sites
}

// New makes a Directory; it does no I/O.
func New(st *state.State, jobs *work.Board, sites *site.Sites) *Directory {
	return &Directory{st: st, jobs: jobs, sites: sites}
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// ID is the id of a host's network: its name where that can stand in a path as it
// is, else a digest of it.
func ID(name string) string {
	if name == "" || plainName.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "net-" + hex.EncodeToString(sum[:8])
}

// NetworksOf lists the networks of a site by name. On sites without VMM these are
// also the ones that no host offers for recovery VMs, but its VMs are in: bridges.
func (d *Directory) NetworksOf(ctx context.Context, f dr.FabricID) ([]Network, error) {
	fabric, err := vaultdb.Fabric(ctx, d.st.Q(), f)
	if err != nil {
		return nil, state.Outward(err)
	}
	all, err := networks(ctx, d.st.Q(), fabric)
	if err != nil || fabric.Type == dr.VMMSite {
		return all, state.Outward(err)
	}
	vms, err := vaultdb.VMs(ctx, d.st.Q(), f)
	if err != nil {
		return nil, state.Outward(err)
	}
	known := map[string]bool{"": true}
	for _, n := range all {
		known[n.Name] = true
	}
	for _, vm := range vms {
		for _, n := range vm.NICs {
			if !known[n.Network] && !vm.Gone {
				known[n.Network] = true
				all = append(all, Network{Network: vmm.Network{ID: ID(n.Network), Name: n.Network}, Fabric: f, Type: "NoIsolation"})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// targets lists the networks of a site that something can be mapped to.
func (d *Directory) targets(ctx context.Context, f dr.FabricID) ([]Network, error) {
	fabric, err := vaultdb.Fabric(ctx, d.st.Q(), f)
	if err != nil {
		return nil, state.Outward(err)
	}
	return state.Get(networks(ctx, d.st.Q(), fabric))
}

// SiteNetwork finds a network of a site by its id, without case.
func (d *Directory) SiteNetwork(ctx context.Context, f dr.FabricID, id string) (Network, error) {
	all, err := d.NetworksOf(ctx, f)
	if err != nil {
		return Network{}, err
	}
	return find(all, "network", id, func(n Network) string { return n.ID })
}

func find[T any](all []T, what, id string, key func(T) string) (T, error) {
	for _, x := range all {
		if strings.EqualFold(key(x), id) {
			return x, nil
		}
	}
	var none T
	return none, dr.New(dr.KindNotFound, dr.CodeNotFound, "vault.network", "%s %q does not exist in this site", what, state.Clip(id))
}

func networks(ctx context.Context, q sqldb.Querier, f dr.Fabric) ([]Network, error) {
	if f.Type == dr.VMMSite {
		s, err := vaultdb.VMM(ctx, q, f.ID)
		return ofVMM(f, s), err
	}
	rows, err := vaultdb.Networks(ctx, q, f.ID)
	if err != nil {
		return nil, err
	}
	agents, err := vaultdb.Providers(ctx, q, f.ID)
	if err != nil {
		return nil, err
	}
	hosts := map[dr.AgentID]string{}
	for _, p := range agents {
		hosts[p.ID] = p.Host
	}
	var out []Network
	for _, r := range rows { // by name
		if n := len(out); n > 0 && out[n-1].Name == r.Name {
			out[n-1].Hosts = append(out[n-1].Hosts, hosts[r.Agent])
			continue
		}
		t := "NoIsolation"
		if r.Isolated {
			t = "Isolated"
		}
		out = append(out, Network{Network: vmm.Network{ID: ID(r.Name), Name: r.Name}, Fabric: f.ID, Type: t, Hosts: []string{hosts[r.Agent]}})
	}
	return out, nil
}

func ofVMM(f dr.Fabric, s vmm.Snapshot) []Network {
	var out []Network
	for _, n := range s.VMNetworks {
		out = append(out, Network{Network: vmm.Network{ID: n.ID, Name: n.Name, LogicalNetwork: n.LogicalNetwork, Subnets: n.Subnets}, Fabric: f.ID, Type: n.Isolation})
	}
	return out
}

// VMM returns what is known of a site's VMM server, without VMs.
func (d *Directory) VMM(ctx context.Context, f dr.FabricID) (vmm.Snapshot, error) {
	return state.Get(vaultdb.VMM(ctx, d.st.Q(), f))
}

// Clouds lists the clouds of a site's VMM server; none for other sites.
func (d *Directory) Clouds(ctx context.Context, f dr.FabricID) ([]vmm.Cloud, error) {
	return state.Get(vaultdb.Clouds(ctx, d.st.Q(), f))
}

// CloudsOfVMs maps the VMs of a site that its VMM server knows to the ids of their clouds.
func (d *Directory) CloudsOfVMs(ctx context.Context, f dr.FabricID) (map[dr.VMID]string, error) {
	return state.Get(vaultdb.PlacesByID(ctx, d.st.Q(), f))
}

// cloudNetwork is what the id of a network in the cloud looks like.
var cloudNetwork = regexp.MustCompile(`(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.(Network|ClassicNetwork)/virtualNetworks/[^/]+$`)

// check refuses a mapping from or to something that does not exist, and gives ids
// their own spelling.
func (d *Directory) check(ctx context.Context, op string, m *Mapping) error {
	if err := site.CheckName(op, "network mapping", m.Name); err != nil {
		return err
	}
	from, err := d.SiteNetwork(ctx, m.Fabric, m.Network)
	if err != nil {
		return err
	}
	m.Network = from.ID
	if m.TargetFabric == "" {
		if !cloudNetwork.MatchString(m.Target) {
			return dr.Errorf(dr.KindInvalid, op, "%q is not the id of a virtual network of the cloud", state.Clip(m.Target))
		}
		return nil
	}
	targets, err := d.targets(ctx, m.TargetFabric)
	if err != nil {
		return err
	}
	to, err := find(targets, "network", m.Target, func(n Network) string { return n.ID })
	switch {
	case dr.KindOf(err) == dr.KindNotFound:
		return dr.New(dr.KindInvalid, dr.CodeNotFound, op, "the network to map to: %w", err)
	case err != nil:
		return err
	case m.TargetFabric == m.Fabric && to.ID == from.ID:
		return dr.Errorf(dr.KindInvalid, op, "network %q can't be mapped to itself", from.Name)
	}
	m.Target = to.ID
	return nil
}

func sameTarget(a, b Mapping) bool {
	return a.TargetFabric == b.TargetFabric && strings.EqualFold(a.Target, b.Target)
}

// CreateNetworkMapping maps a network of a site. Making the same one again is no error.
func (d *Directory) CreateNetworkMapping(ctx context.Context, m Mapping, by string) (dr.JobID, error) {
	const op = "vault.CreateNetworkMapping"
	if err := d.check(ctx, op, &m); err != nil {
		return "", err
	}
	m.Created = d.st.Now()
	return d.jobs.Quick(ctx, work.Quick{Kind: JobPair, TargetType: "Network", Target: m.Name, TargetID: string(m.Fabric), By: by, Audit: true}, func(tx *sql.Tx) error {
		all, err := vaultdb.NetworkMappings(ctx, tx, m.Fabric)
		if err != nil {
			return err
		}
		for _, have := range all {
			if !strings.EqualFold(have.Network, m.Network) {
				continue
			}
			same := strings.EqualFold(have.Name, m.Name)
			switch {
			case same && sameTarget(have, m):
				return nil
			case same:
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "network mapping %q exists already with another target", have.Name)
			case have.TargetFabric == m.TargetFabric:
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "the network is mapped to this site already by %q", have.Name).
					WithHint("change or remove that mapping: a network leads to one network of a site")
			}
		}
		return vaultdb.InsertNetworkMapping(ctx, tx, m)
	})
}

// UpdateNetworkMapping lets a mapping lead elsewhere; it counts from the next failover on.
func (d *Directory) UpdateNetworkMapping(ctx context.Context, m Mapping, by string) (dr.JobID, error) {
	const op = "vault.UpdateNetworkMapping"
	if err := d.check(ctx, op, &m); err != nil {
		return "", err
	}
	return d.jobs.Quick(ctx, work.Quick{Kind: JobUpdate, TargetType: "Network", Target: m.Name, TargetID: string(m.Fabric), By: by, Audit: true}, func(tx *sql.Tx) error {
		all, err := vaultdb.NetworkMappings(ctx, tx, m.Fabric)
		if err != nil {
			return err
		}
		for _, have := range all {
			if strings.EqualFold(have.Network, m.Network) && !strings.EqualFold(have.Name, m.Name) && have.TargetFabric == m.TargetFabric {
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "the network is mapped to this site already by %q", have.Name)
			}
		}
		return vaultdb.UpdateNetworkMapping(ctx, tx, m)
	})
}

// NetworkMappings lists the mappings of a site's networks, of all sites for "".
func (d *Directory) NetworkMappings(ctx context.Context, f dr.FabricID) ([]Mapping, error) {
	return state.Get(vaultdb.NetworkMappings(ctx, d.st.Q(), f))
}

// NetworkMapping finds a mapping of a network by name.
func (d *Directory) NetworkMapping(ctx context.Context, f dr.FabricID, network, name string) (Mapping, error) {
	all, err := d.NetworkMappings(ctx, f)
	if err != nil {
		return Mapping{}, err
	}
	all = slices.DeleteFunc(all, func(m Mapping) bool { return !strings.EqualFold(m.Network, network) })
	return find(all, "network mapping", name, func(m Mapping) string { return m.Name })
}

// RemoveNetworkMapping removes a mapping. VMs that are failed over stay as they are.
func (d *Directory) RemoveNetworkMapping(ctx context.Context, f dr.FabricID, network, name, by string) (dr.JobID, error) {
	m, err := d.NetworkMapping(ctx, f, network, name)
	if err != nil {
		return "", err
	}
	return d.jobs.Quick(ctx, work.Quick{Kind: JobUnpair, TargetType: "Network", Target: m.Name, TargetID: string(f), By: by, Audit: true}, func(tx *sql.Tx) error {
		return vaultdb.DeleteNetworkMapping(ctx, tx, f, m.Network, m.Name)
	})
}

// CreateStorageMapping pairs two storage classifications. Making the same one
// again is no error.
func (d *Directory) CreateStorageMapping(ctx context.Context, m StorageMapping, by string) (dr.JobID, error) {
	const op = "vault.CreateStorageMapping"
	if err := site.CheckName(op, "storage classification mapping", m.Name); err != nil {
		return "", err
	}
	from, err := d.classification(ctx, m.Fabric, m.Classification)
	if err != nil {
		return "", err
	}
	to, err := d.classification(ctx, m.TargetFabric, m.Target)
	if dr.KindOf(err) == dr.KindNotFound {
		err = dr.New(dr.KindInvalid, dr.CodeNotFound, op, "the storage classification to map to: %w", err)
	}
	if err != nil {
		return "", err
	}
	m.Classification, m.Target, m.Created = from.ID, to.ID, d.st.Now()
	return d.jobs.Quick(ctx, work.Quick{Kind: JobPairStorage, TargetType: "StorageClassification", Target: m.Name, TargetID: string(m.Fabric), By: by}, func(tx *sql.Tx) error {
		all, err := vaultdb.StorageMappings(ctx, tx, m.Fabric)
		if err != nil {
			return err
		}
		for _, have := range all {
			if strings.EqualFold(have.Classification, m.Classification) && strings.EqualFold(have.Name, m.Name) {
				if have.TargetFabric == m.TargetFabric && have.Target == m.Target {
					return nil
				}
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "storage classification mapping %q exists already with another target", have.Name)
			}
		}
		return vaultdb.InsertStorageMapping(ctx, tx, m)
	})
}

func (d *Directory) classification(ctx context.Context, f dr.FabricID, id string) (vmm.StorageClassification, error) {
	s, err := d.VMM(ctx, f)
	if err != nil {
		return vmm.StorageClassification{}, err
	}
	return find(s.StorageClassifications, "storage classification", id, func(c vmm.StorageClassification) string { return c.ID })
}

// StorageMappings lists the mappings of a site's storage classifications, of all sites for "".
func (d *Directory) StorageMappings(ctx context.Context, f dr.FabricID) ([]StorageMapping, error) {
	return state.Get(vaultdb.StorageMappings(ctx, d.st.Q(), f))
}

// StorageMapping finds a mapping of a storage classification by name.
func (d *Directory) StorageMapping(ctx context.Context, f dr.FabricID, classification, name string) (StorageMapping, error) {
	all, err := d.StorageMappings(ctx, f)
	if err != nil {
		return StorageMapping{}, err
	}
	all = slices.DeleteFunc(all, func(m StorageMapping) bool { return !strings.EqualFold(m.Classification, classification) })
	return find(all, "storage classification mapping", name, func(m StorageMapping) string { return m.Name })
}

// RemoveStorageMapping removes a mapping.
func (d *Directory) RemoveStorageMapping(ctx context.Context, f dr.FabricID, classification, name, by string) (dr.JobID, error) {
	m, err := d.StorageMapping(ctx, f, classification, name)
	if err != nil {
		return "", err
	}
	return d.jobs.Quick(ctx, work.Quick{Kind: JobUnpairStorage, TargetType: "StorageClassification", Target: m.Name, TargetID: string(f), By: by}, func(tx *sql.Tx) error {
		return vaultdb.DeleteStorageMapping(ctx, tx, f, m.Classification, m.Name)
	})
}
