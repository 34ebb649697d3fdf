package msvm

import (
	"context"
	"strings"

	"holdfast/internal/cim"
)

// cimv2 is the namespace of Windows itself.
const cimv2 = "root/cimv2"

// Computer is the host itself.
type Computer struct {
	Name     string
	Windows  string // Caption of Win32_OperatingSystem
	Version  string
	CPUs     int
	MemoryMB int
}

// Computer describes the host (Win32_ComputerSystem, Win32_OperatingSystem).
func (c *Client) Computer(ctx context.Context) (Computer, error) {
	var h Computer
	list, err := c.s.Query(ctx, cimv2, "SELECT * FROM Win32_ComputerSystem")
	if err != nil {
		return h, err
	}
	for _, in := range list {
		h.Name = in.String("DNSHostName")
		if h.Name == "" {
			h.Name = in.String("Name")
		}
		n, _ := in.Uint("NumberOfLogicalProcessors")
		h.CPUs = int(min(n, 1<<16))
		n, _ = in.Uint("TotalPhysicalMemory")
		h.MemoryMB = int(n >> 20)
	}
	list, err = c.s.Query(ctx, cimv2, "SELECT * FROM Win32_OperatingSystem")
	if err != nil {
		return h, err
	}
	for _, in := range list {
		h.Windows, h.Version = strings.TrimSpace(in.String("Caption")), in.String("Version")
	}
	return h, nil
}

// Volume is a file system of the host.
type Volume struct {
	Path       string
	Size, Free int64
}

// Volumes lists the fixed drives (Win32_LogicalDisk) and the volumes mounted below them (Win32_Volume), such as cluster shared volumes.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	var out []Volume
	seen := map[string]bool{}
	for wql, key := range map[string]string{"SELECT * FROM Win32_LogicalDisk WHERE DriveType = 3": "DeviceID", "SELECT * FROM Win32_Volume WHERE DriveType = 3": "Name"} {
		list, err := c.s.Query(ctx, cimv2, wql)
		if CodeIs(err, cim.CodeInvalidClass) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, in := range list {
			p := strings.TrimRight(in.String(key), `\`)
			if p == "" || strings.HasPrefix(p, `\\?\`) || seen[strings.ToLower(p)] {
				continue
			}
			seen[strings.ToLower(p)] = true
			size, _ := in.Uint("Size")
			if n, ok := in.Uint("Capacity"); ok {
				size = n
			}
			free, _ := in.Uint("FreeSpace")
			out = append(out, Volume{Path: p + `\`, Size: int64(size), Free: int64(free)})
		}
	}
	return out, nil
}

// CodeIs reports whether an error has the code.
func CodeIs(err error, code cim.Code) bool { return cim.CodeOf(err) == code }

// clusterGroupVM is GroupType of a failover cluster's role that is a VM.
const clusterGroupVM = 111

// Clustered returns the names of the cluster's roles that are VMs; none if the host is in no cluster.
func (c *Client) Clustered(ctx context.Context) (map[string]bool, error) {
	list, err := c.s.Query(ctx, "root/MSCluster", "SELECT * FROM MSCluster_ResourceGroup")
	switch cim.CodeOf(err) {
	case cim.CodeInvalidClass, cim.CodeNotFound, cim.CodeInvalidQuery:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, in := range list {
		if n, ok := in.Uint("GroupType"); ok && n == clusterGroupVM {
			names[in.String("Name")] = true
		}
	}
	return names, nil
}
