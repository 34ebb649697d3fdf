package vaultdb

import (
	"context"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// vmDoc is the durable form of what has no column of its own.
type vmDoc struct {
	Generation int      `json:"generation,omitempty"`
	CPUs       int      `json:"cpus,omitempty"`
	MemoryMB   int      `json:"memoryMb,omitempty"`
	OSType     string   `json:"osType,omitempty"`
	Disks      []vmDisk `json:"disks,omitempty"`
	NICs       []vmNIC  `json:"nics,omitempty"`
	Facts      vmFacts  `json:"facts,omitzero"`
}

type vmDisk struct {
	ID             string `json:"id"`
	Path           string `json:"path,omitempty"`
	Format         string `json:"format,omitempty"`
	Size           int64  `json:"size"`
	Boot           bool   `json:"boot,omitempty"`
	Shared         bool   `json:"shared,omitempty"`
	PassThru       bool   `json:"passThru,omitempty"`
	Unreplicatable string `json:"unreplicatable,omitempty"`
	Controller     string `json:"controller,omitempty"`
	Slot           int    `json:"slot,omitempty"`
	Layout         string `json:"layout,omitempty"`
	Sector         int    `json:"sector,omitempty"`
	Allocated      int64  `json:"allocated,omitempty"`
	Chain          int    `json:"chain,omitempty"`
}

type vmNIC struct {
	ID      string   `json:"id"`
	MAC     string   `json:"mac,omitempty"`
	Network string   `json:"network,omitempty"`
	Type    string   `json:"type,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	VLAN    int      `json:"vlan,omitempty"`
}

type vmFacts struct {
	Version       string `json:"version,omitempty"`
	SecureBoot    bool   `json:"secureBoot,omitempty"`
	OSName        string `json:"osName,omitempty"`
	OSVersion     string `json:"osVersion,omitempty"`
	GuestTools    string `json:"guestTools,omitempty"`
	AppConsistent string `json:"appConsistent,omitempty"`
	Checkpoints   int    `json:"checkpoints,omitempty"`
	Clustered     bool   `json:"clustered,omitempty"`
	DynamicMemory bool   `json:"dynamicMemory,omitempty"`
	Replicated    string `json:"replicated,omitempty"`
	Cloud         string `json:"cloud,omitempty"`
}

func encodeVM(vm dr.VM) string {
	d := vmDoc{Generation: vm.Generation, CPUs: vm.CPUs, MemoryMB: vm.MemoryMB, OSType: vm.OSType, Facts: vmFacts(vm.Facts)}
	for _, x := range vm.Disks {
		d.Disks = append(d.Disks, vmDisk(x))
	}
	for _, x := range vm.NICs {
		d.NICs = append(d.NICs, vmNIC(x))
	}
	return encode(d)
}

const vmColumns = "fabric, id, name, agent, running, doc, seen, gone"

// vmSelect reads VMs; where a VMM server manages them, it knows their cloud.
const vmSelect = `select v.fabric, v.id, v.name, v.agent, v.running, v.doc, v.seen, v.gone, coalesce(m.cloud, '')
	from vm v left join managed m on m.fabric = v.fabric and m.kind = 'vm' and m.id = v.id`

func scanVM(s scanner) (vm dr.VM, err error) {
	var running, gone int
	var seen int64
	var text, cloud string
	if err := s.Scan(&vm.Fabric, &vm.ID, &vm.Name, &vm.Agent, &running, &text, &seen, &gone, &cloud); err != nil {
		return vm, err
	}
	d, err := decode[vmDoc](text)
	if err != nil {
		return vm, err
	}
	vm.Running, vm.Gone, vm.Seen = running != 0, gone != 0, sqldb.Time(seen)
	vm.Generation, vm.CPUs, vm.MemoryMB, vm.OSType = d.Generation, d.CPUs, d.MemoryMB, d.OSType
	vm.Facts = dr.VMFacts(d.Facts)
	if cloud != "" {
		vm.Facts.Cloud = cloud
	}
	for _, x := range d.Disks {
		vm.Disks = append(vm.Disks, dr.Disk(x))
	}
	for _, x := range d.NICs {
		vm.NICs = append(vm.NICs, dr.NIC(x))
	}
	return vm, nil
}

// SaveVM adds or replaces a discovered VM.
func SaveVM(ctx context.Context, q sqldb.Querier, vm dr.VM) error {
	_, err := exec(ctx, q, "store VM "+string(vm.ID), "insert into vm ("+vmColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8)
		on conflict (fabric, id) do update set name = excluded.name, agent = excluded.agent, running = excluded.running,
		doc = excluded.doc, seen = excluded.seen, gone = excluded.gone`,
		vm.Fabric, vm.ID, vm.Name, vm.Agent, flag(vm.Running), encodeVM(vm), sqldb.Micros(vm.Seen), flag(vm.Gone))
	return err
}

// VM finds a discovered VM.
func VM(ctx context.Context, q sqldb.Querier, f dr.FabricID, id dr.VMID) (dr.VM, error) {
	return one(ctx, q, "read VM", notFound("vaultdb.VM", "VM", string(id)), scanVM,
		vmSelect+" where v.fabric = $1 and v.id = $2", f, Key(string(id)))
}

// VMs lists the VMs of a fabric by name.
func VMs(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]dr.VM, error) {
	return list(ctx, q, "list VMs", scanVM, vmSelect+" where v.fabric = $1 order by v.name, v.id", f)
}

// VMsOfAgent lists the VMs that an agent owns.
func VMsOfAgent(ctx context.Context, q sqldb.Querier, agent dr.AgentID) ([]dr.VM, error) {
	return list(ctx, q, "list VMs of agent", scanVM, vmSelect+" where v.agent = $1 order by v.id", agent)
}

// MarkGone marks a VM as no longer reported by its host.
func MarkGone(ctx context.Context, q sqldb.Querier, f dr.FabricID, id dr.VMID) error {
	_, err := exec(ctx, q, "mark VM gone", "update vm set gone = 1, running = 0 where fabric = $1 and id = $2", f, id)
	return err
}

// DeleteVMsOfAgent forgets what an agent discovered.
func DeleteVMsOfAgent(ctx context.Context, q sqldb.Querier, agent dr.AgentID) error {
	if _, err := exec(ctx, q, "forget VMs", "delete from vm where agent = $1", agent); err != nil {
		return err
	}
	_, err := exec(ctx, q, "forget VMs", "delete from vm_seen where agent = $1", agent)
	return err
}

// SeeVM records that an agent sees a VM that another one owns. It reports
// whether that is news.
func SeeVM(ctx context.Context, q sqldb.Querier, f dr.FabricID, vm dr.VMID, agent dr.AgentID, at time.Time) (bool, error) {
	n, err := exec(ctx, q, "record VM", `insert into vm_seen (fabric, vm, agent, at) values ($1, $2, $3, $4)
		on conflict (fabric, vm, agent) do nothing`, f, vm, agent, sqldb.Micros(at))
	if err != nil || n == 1 {
		return n == 1, err
	}
	_, err = exec(ctx, q, "record VM", "update vm_seen set at = $4 where fabric = $1 and vm = $2 and agent = $3",
		f, vm, agent, sqldb.Micros(at))
	return false, err
}

// UnseeVMs forgets what an agent saw without owning it and has not reported since at.
func UnseeVMs(ctx context.Context, q sqldb.Querier, agent dr.AgentID, at time.Time) error {
	_, err := exec(ctx, q, "forget VMs", "delete from vm_seen where agent = $1 and at < $2", agent, sqldb.Micros(at))
	return err
}
