package network

import (
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

// Server is what is shown of a site's VMM server.
type Server struct {
	Known         bool // it has reported
	Name, Product string
	Taken         time.Time
	Warnings      []string
	Clouds        []Cloud
	Storage       []string // names of storage classifications
}

// Cloud is a cloud as the protection container that it is.
type Cloud struct {
	Name, Container string
	HostGroups      []string
	Hosts, VMs      int
	None            bool // the VMs that are in no cloud
}

// ServerOf makes it of what is known; vms are the discovered VMs of the site.
func ServerOf(f dr.Fabric, s vmm.Snapshot, vms []dr.VM) *Server {
	out := &Server{Known: s.Version != 0, Name: s.Server.Name, Product: s.Server.Product, Taken: s.Taken, Warnings: s.Warnings}
	in := map[string]int{}
	for _, vm := range vms {
		if !vm.Gone {
			in[vm.Facts.Cloud]++
		}
	}
	hosts := map[string]int{}
	for _, h := range s.Hosts {
		for _, c := range h.Clouds {
			hosts[c]++
		}
	}
	for _, c := range s.Clouds {
		out.Clouds = append(out.Clouds, Cloud{Name: c.Name, Container: f.ContainerOf(c.ID), HostGroups: c.HostGroups, Hosts: hosts[c.ID], VMs: in[c.ID]})
	}
	if in[""] > 0 {
		out.Clouds = append(out.Clouds, Cloud{Name: "In no cloud", Container: f.ContainerName(), VMs: in[""], None: true})
	}
	for _, c := range s.StorageClassifications {
		out.Storage = append(out.Storage, c.Name)
	}
	return out
}
