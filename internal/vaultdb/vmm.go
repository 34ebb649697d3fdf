package vaultdb

import (
	"context"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vmm"
)

// What a VMM server manages is kept as one row for each object, so that a report
// which changes little writes little. Kinds of rows:
const (
	managedServer  = "server"
	managedCloud   = "cloud"
	managedHost    = "host"
	managedLogical = "logicalNetwork"
	managedNetwork = "network"
	managedStorage = "storage"
	managedVM      = "vm" // its id is the hypervisor's
)

// The durable forms of the objects; id and name are columns.
type (
	serverDoc struct {
		Product  string   `json:"product,omitempty"`
		Warnings []string `json:"warnings,omitempty"`
	}
	cloudDoc struct {
		HostGroups []string `json:"hostGroups,omitempty"`
	}
	vmmHostDoc struct {
		Cluster   string      `json:"cluster,omitempty"`
		OS        string      `json:"os,omitempty"`
		HostGroup string      `json:"hostGroup,omitempty"`
		Clouds    []string    `json:"clouds,omitempty"`
		Switches  []switchDoc `json:"switches,omitempty"`
	}
	switchDoc struct {
		Name            string   `json:"name"`
		LogicalNetworks []string `json:"logicalNetworks,omitempty"`
	}
	logicalDoc struct {
		Description string          `json:"description,omitempty"`
		Virtualized bool            `json:"virtualized,omitempty"`
		Isolated    bool            `json:"isolated,omitempty"`
		Definitions []definitionDoc `json:"definitions,omitempty"`
	}
	definitionDoc struct {
		ID         string    `json:"id,omitempty"`
		Name       string    `json:"name"`
		Subnets    []vlanDoc `json:"subnets,omitempty"`
		HostGroups []string  `json:"hostGroups,omitempty"`
	}
	vlanDoc struct {
		Subnet string `json:"subnet,omitempty"`
		VLAN   int    `json:"vlan,omitempty"`
	}
	vmNetworkDoc struct {
		LogicalNetwork string      `json:"logicalNetwork,omitempty"`
		Isolation      string      `json:"isolation,omitempty"`
		Subnets        []subnetDoc `json:"subnets,omitempty"`
	}
	subnetDoc struct {
		ID    string   `json:"id,omitempty"`
		Name  string   `json:"name"`
		CIDRs []string `json:"cidrs,omitempty"`
		VLAN  int      `json:"vlan,omitempty"`
	}
	placeDoc struct {
		VMMID    string       `json:"vmmId,omitempty"`
		Host     string       `json:"host,omitempty"`
		Adapters []adapterDoc `json:"adapters,omitempty"`
	}
	adapterDoc struct {
		ID        string `json:"id"`
		MAC       string `json:"mac,omitempty"`
		VMNetwork string `json:"vmNetwork,omitempty"`
		VMSubnet  string `json:"vmSubnet,omitempty"`
		VLAN      int    `json:"vlan,omitempty"`
	}
)

// managed is one row.
type managed struct{ kind, id, name, cloud, doc string }

func managedRows(s vmm.Snapshot) []managed {
	rows := []managed{{managedServer, managedServer, s.Server.Name, "", encode(serverDoc{s.Server.Product, s.Warnings})}}
	for _, c := range s.Clouds {
		rows = append(rows, managed{managedCloud, c.ID, c.Name, "", encode(cloudDoc{c.HostGroups})})
	}
	for _, h := range s.Hosts {
		d := vmmHostDoc{Cluster: h.Cluster, OS: h.OS, HostGroup: h.HostGroup, Clouds: h.Clouds}
		for _, w := range h.Switches {
			d.Switches = append(d.Switches, switchDoc(w))
		}
		rows = append(rows, managed{managedHost, h.ID, h.Name, "", encode(d)})
	}
	for _, n := range s.LogicalNetworks {
		d := logicalDoc{Description: n.Description, Virtualized: n.Virtualized, Isolated: n.Isolated}
		for _, x := range n.Definitions {
			y := definitionDoc{ID: x.ID, Name: x.Name, HostGroups: x.HostGroups}
			for _, v := range x.Subnets {
				y.Subnets = append(y.Subnets, vlanDoc(v))
			}
			d.Definitions = append(d.Definitions, y)
		}
		rows = append(rows, managed{managedLogical, n.ID, n.Name, "", encode(d)})
	}
	for _, n := range s.VMNetworks {
		d := vmNetworkDoc{LogicalNetwork: n.LogicalNetwork, Isolation: n.Isolation}
		for _, x := range n.Subnets {
			d.Subnets = append(d.Subnets, subnetDoc(x))
		}
		rows = append(rows, managed{managedNetwork, n.ID, n.Name, "", encode(d)})
	}
	for _, c := range s.StorageClassifications {
		rows = append(rows, managed{managedStorage, c.ID, c.Name, "", ""})
	}
	for _, v := range s.VMs {
		d := placeDoc{VMMID: v.VMMID, Host: v.Host}
		for _, n := range v.Adapters {
			d.Adapters = append(d.Adapters, adapterDoc(n))
		}
		rows = append(rows, managed{managedVM, Key(v.ID), v.Name, v.Cloud, encode(d)})
	}
	return rows
}

// SaveVMM stores the complete state of a fabric's VMM server in place of what was
// there. It reports whether anything was different, and which VMs moved between
// clouds, by id: from and to.
func SaveVMM(ctx context.Context, q sqldb.Querier, f dr.FabricID, s vmm.Snapshot) (changed bool, moved map[dr.VMID][2]string, err error) {
	type key struct{ kind, id string }
	old := map[key]managed{}
	rows, err := list(ctx, q, "read what VMM manages", func(s scanner) (m managed, err error) {
		err = s.Scan(&m.kind, &m.id, &m.name, &m.cloud, &m.doc)
		return m, err
	}, "select kind, id, name, cloud, doc from managed where fabric = $1", f)
	if err != nil {
		return false, nil, err
	}
	for _, r := range rows {
		old[key{r.kind, r.id}] = r
	}
	moved = map[dr.VMID][2]string{}
	for _, r := range managedRows(s) {
		k := key{r.kind, r.id}
		have, known := old[k]
		delete(old, k)
		if known && have == r {
			continue
		}
		changed = true
		if known && r.kind == managedVM && have.cloud != r.cloud {
			moved[dr.VMID(r.id)] = [2]string{have.cloud, r.cloud}
		}
		if _, err := exec(ctx, q, "store what VMM manages", `insert into managed (fabric, kind, id, name, cloud, doc) values ($1, $2, $3, $4, $5, $6)
			on conflict (fabric, kind, id) do update set name = excluded.name, cloud = excluded.cloud, doc = excluded.doc`,
			f, r.kind, r.id, r.name, r.cloud, r.doc); err != nil {
			return false, nil, err
		}
	}
	for k := range old {
		changed = true
		if _, err := exec(ctx, q, "forget what VMM managed", "delete from managed where fabric = $1 and kind = $2 and id = $3", f, k.kind, k.id); err != nil {
			return false, nil, err
		}
	}
	return changed, moved, nil
}

// managedList reads the rows of a kind, by name; fill completes an object by its document.
func managedList[D, T any](ctx context.Context, q sqldb.Querier, f dr.FabricID, kind string, fill func(m managed, d D) T) ([]T, error) {
	return list(ctx, q, "read "+kind+" rows of VMM", func(s scanner) (out T, err error) {
		var m managed
		if err := s.Scan(&m.id, &m.name, &m.cloud, &m.doc); err != nil {
			return out, err
		}
		d, err := decode[D](m.doc)
		return fill(m, d), err
	}, "select id, name, cloud, doc from managed where fabric = $1 and kind = $2 order by name, id", f, kind)
}

// VMM returns what is known of a fabric's VMM server; without VMs, which Places
// has. A zero Version says that nothing was ever reported.
func VMM(ctx context.Context, q sqldb.Querier, f dr.FabricID) (vmm.Snapshot, error) {
	var s vmm.Snapshot
	var err error
	servers, err := managedList(ctx, q, f, managedServer, func(m managed, d serverDoc) vmm.Snapshot {
		return vmm.Snapshot{Version: vmm.Version, Server: vmm.Server{Name: m.name, Product: d.Product}, Warnings: d.Warnings}
	})
	if err != nil || len(servers) == 0 {
		return s, err
	}
	s = servers[0]
	if s.Clouds, err = Clouds(ctx, q, f); err != nil {
		return s, err
	}
	if s.Hosts, err = managedList(ctx, q, f, managedHost, func(m managed, d vmmHostDoc) vmm.Host {
		h := vmm.Host{ID: m.id, Name: m.name, Cluster: d.Cluster, OS: d.OS, HostGroup: d.HostGroup, Clouds: d.Clouds}
		for _, w := range d.Switches {
			h.Switches = append(h.Switches, vmm.Switch(w))
		}
		return h
	}); err != nil {
		return s, err
	}
	if s.LogicalNetworks, err = managedList(ctx, q, f, managedLogical, func(m managed, d logicalDoc) vmm.LogicalNetwork {
		n := vmm.LogicalNetwork{ID: m.id, Name: m.name, Description: d.Description, Virtualized: d.Virtualized, Isolated: d.Isolated}
		for _, x := range d.Definitions {
			y := vmm.Definition{ID: x.ID, Name: x.Name, HostGroups: x.HostGroups}
			for _, v := range x.Subnets {
				y.Subnets = append(y.Subnets, vmm.SubnetVLAN(v))
			}
			n.Definitions = append(n.Definitions, y)
		}
		return n
	}); err != nil {
		return s, err
	}
	if s.VMNetworks, err = managedList(ctx, q, f, managedNetwork, func(m managed, d vmNetworkDoc) vmm.VMNetwork {
		n := vmm.VMNetwork{ID: m.id, Name: m.name, LogicalNetwork: d.LogicalNetwork, Isolation: d.Isolation}
		for _, x := range d.Subnets {
			n.Subnets = append(n.Subnets, vmm.Subnet(x))
		}
		return n
	}); err != nil {
		return s, err
	}
	s.StorageClassifications, err = managedList(ctx, q, f, managedStorage, func(m managed, _ struct{}) vmm.StorageClassification {
		return vmm.StorageClassification{ID: m.id, Name: m.name}
	})
	return s, err
}

// Clouds lists the clouds of a fabric's VMM server.
func Clouds(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]vmm.Cloud, error) {
	return managedList(ctx, q, f, managedCloud, func(m managed, d cloudDoc) vmm.Cloud {
		return vmm.Cloud{ID: m.id, Name: m.name, HostGroups: d.HostGroups}
	})
}

func toPlace(m managed, d placeDoc) vmm.VM {
	v := vmm.VM{ID: m.id, VMMID: d.VMMID, Name: m.name, Cloud: m.cloud, Host: d.Host}
	for _, n := range d.Adapters {
		v.Adapters = append(v.Adapters, vmm.NIC(n))
	}
	return v
}

// Places lists the VMs of a fabric as its VMM server has them.
func Places(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]vmm.VM, error) {
	return managedList(ctx, q, f, managedVM, toPlace)
}

// PlacesByID maps the VMs of a fabric that its VMM server knows to the ids of their clouds.
func PlacesByID(ctx context.Context, q sqldb.Querier, f dr.FabricID) (map[dr.VMID]string, error) {
	rows, err := list(ctx, q, "read clouds of VMs", func(s scanner) (m managed, err error) {
		err = s.Scan(&m.id, &m.cloud)
		return m, err
	}, "select id, cloud from managed where fabric = $1 and kind = $2", f, managedVM)
	out := make(map[dr.VMID]string, len(rows))
	for _, r := range rows {
		out[dr.VMID(r.id)] = r.cloud
	}
	return out, err
}

// Place finds a VM as the VMM server has it.
func Place(ctx context.Context, q sqldb.Querier, f dr.FabricID, vm dr.VMID) (vmm.VM, error) {
	return one(ctx, q, "read VM of VMM", notFound("vaultdb.Place", "VM", string(vm)), func(s scanner) (vmm.VM, error) {
		var m managed
		if err := s.Scan(&m.id, &m.name, &m.cloud, &m.doc); err != nil {
			return vmm.VM{}, err
		}
		d, err := decode[placeDoc](m.doc)
		return toPlace(m, d), err
	}, "select id, name, cloud, doc from managed where fabric = $1 and kind = $2 and id = $3", f, managedVM, Key(string(vm)))
}

// NetworkMapping leads from a network of a fabric to one of a recovery fabric, or
// to a network of the cloud.
type NetworkMapping struct {
	Fabric       dr.FabricID
	Network      string // id of the source network
	Name         string
	TargetFabric dr.FabricID // empty = the cloud
	Target       string      // id of the target network: of the fabric, or the cloud's resource id
	Created      time.Time
}

const networkMappingColumns = "fabric, network, name, target_fabric, target, created"

func scanNetworkMapping(s scanner) (m NetworkMapping, err error) {
	var created int64
	err = s.Scan(&m.Fabric, &m.Network, &m.Name, &m.TargetFabric, &m.Target, &created)
	m.Created = sqldb.Time(created)
	return m, err
}

// InsertNetworkMapping adds a mapping; KindConflict if the name is taken, or the
// network is mapped to the target fabric already.
func InsertNetworkMapping(ctx context.Context, q sqldb.Querier, m NetworkMapping) error {
	n, err := exec(ctx, q, "add network mapping "+m.Name, `insert into network_mapping (fabric, network, name, name_key, target_fabric, target, created)
		values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing`, m.Fabric, Key(m.Network), m.Name, Key(m.Name), m.TargetFabric, m.Target, sqldb.Micros(m.Created))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertNetworkMapping", "network mapping", m.Name)
	}
	return err
}

// UpdateNetworkMapping changes where a mapping leads.
func UpdateNetworkMapping(ctx context.Context, q sqldb.Querier, m NetworkMapping) error {
	n, err := exec(ctx, q, "change network mapping "+m.Name, `update network_mapping set target_fabric = $4, target = $5
		where fabric = $1 and network = $2 and name_key = $3`, m.Fabric, Key(m.Network), Key(m.Name), m.TargetFabric, m.Target)
	if err == nil && n == 0 {
		return notFound("vaultdb.UpdateNetworkMapping", "network mapping", m.Name)
	}
	return err
}

// NetworkMappings lists the mappings of a fabric's networks, of all fabrics for "".
func NetworkMappings(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]NetworkMapping, error) {
	return list(ctx, q, "list network mappings", scanNetworkMapping, "select "+networkMappingColumns+
		" from network_mapping where $1 = '' or fabric = $1 order by fabric, network, name_key", string(f))
}

// DeleteNetworkMapping removes a mapping; KindNotFound if there is none.
func DeleteNetworkMapping(ctx context.Context, q sqldb.Querier, f dr.FabricID, network, name string) error {
	n, err := exec(ctx, q, "remove network mapping "+name, "delete from network_mapping where fabric = $1 and network = $2 and name_key = $3",
		f, Key(network), Key(name))
	if err == nil && n == 0 {
		return notFound("vaultdb.DeleteNetworkMapping", "network mapping", name)
	}
	return err
}

// StorageMapping pairs storage classifications; it is a label of the target only.
type StorageMapping struct {
	Fabric         dr.FabricID
	Classification string // id
	Name           string
	TargetFabric   dr.FabricID
	Target         string // id of the classification there
	Created        time.Time
}

// InsertStorageMapping adds a mapping; KindConflict if the name is taken.
func InsertStorageMapping(ctx context.Context, q sqldb.Querier, m StorageMapping) error {
	n, err := exec(ctx, q, "add storage mapping "+m.Name, `insert into storage_mapping (fabric, classification, name, name_key, target_fabric, target, created)
		values ($1, $2, $3, $4, $5, $6, $7) on conflict (fabric, classification, name_key) do nothing`,
		m.Fabric, Key(m.Classification), m.Name, Key(m.Name), m.TargetFabric, m.Target, sqldb.Micros(m.Created))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertStorageMapping", "storage classification mapping", m.Name)
	}
	return err
}

// StorageMappings lists the mappings of a fabric's classifications, of all fabrics for "".
func StorageMappings(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]StorageMapping, error) {
	return list(ctx, q, "list storage mappings", func(s scanner) (m StorageMapping, err error) {
		var created int64
		err = s.Scan(&m.Fabric, &m.Classification, &m.Name, &m.TargetFabric, &m.Target, &created)
		m.Created = sqldb.Time(created)
		return m, err
	}, `select fabric, classification, name, target_fabric, target, created from storage_mapping
		where $1 = '' or fabric = $1 order by fabric, classification, name_key`, string(f))
}

// DeleteStorageMapping removes a mapping; KindNotFound if there is none.
func DeleteStorageMapping(ctx context.Context, q sqldb.Querier, f dr.FabricID, classification, name string) error {
	n, err := exec(ctx, q, "remove storage mapping "+name, "delete from storage_mapping where fabric = $1 and classification = $2 and name_key = $3",
		f, Key(classification), Key(name))
	if err == nil && n == 0 {
		return notFound("vaultdb.DeleteStorageMapping", "storage classification mapping", name)
	}
	return err
}
