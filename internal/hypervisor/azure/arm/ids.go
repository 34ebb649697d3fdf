package arm

import (
	"fmt"
	"strings"
)

// The types of resources that Holdfast makes or refers to.
const (
	TypeVM                = "Microsoft.Compute/virtualMachines"
	TypeDisk              = "Microsoft.Compute/disks"
	TypeSnapshot          = "Microsoft.Compute/snapshots"
	TypeRestoreCollection = "Microsoft.Compute/restorePointCollections"
	TypeAvailabilitySet   = "Microsoft.Compute/availabilitySets"
	TypeNIC               = "Microsoft.Network/networkInterfaces"
	TypePublicIP          = "Microsoft.Network/publicIPAddresses"
	TypeSecurityGroup     = "Microsoft.Network/networkSecurityGroups"
	TypeNetwork           = "Microsoft.Network/virtualNetworks"
	TypeStorageAccount    = "Microsoft.Storage/storageAccounts"
)

// The versions of the REST interfaces that are called with JSON of our own.
// Typed clients send those that armcompute was made for.
const (
	ComputeAPI       = "2025-04-01"
	DiskAPI          = "2025-01-02"
	NetworkAPI       = "2024-05-01"
	ResourcesAPI     = "2021-04-01"
	SubscriptionsAPI = "2022-12-01"
	PermissionsAPI   = "2022-04-01"
	LocksAPI         = "2020-05-01"
	StorageAPI       = "2023-05-01"
)

// APIVersion is the version to be used for resources of a type.
func APIVersion(kind string) string {
	switch {
	case strings.EqualFold(kind, TypeDisk), strings.EqualFold(kind, TypeSnapshot):
		return DiskAPI
	case strings.HasPrefix(strings.ToLower(kind), "microsoft.compute/"):
		return ComputeAPI
	case strings.HasPrefix(strings.ToLower(kind), "microsoft.network/"):
		return NetworkAPI
	case strings.HasPrefix(strings.ToLower(kind), "microsoft.storage/"):
		return StorageAPI
	}
	return ResourcesAPI
}

// ID is the parsed id of a resource in a resource group.
type ID struct {
	Subscription, Group string
	Type                string // "Microsoft.Network/virtualNetworks"; of children with all types
	Name                string // of children "parent/child"
}

// String is the id as Azure writes it.
func (i ID) String() string {
	kinds, names := strings.Split(i.Type, "/"), strings.Split(i.Name, "/")
	var b strings.Builder
	fmt.Fprintf(&b, "/subscriptions/%s/resourceGroups/%s/providers/%s", i.Subscription, i.Group, kinds[0])
	for k, name := range names {
		if k+1 < len(kinds) {
			b.WriteString("/" + kinds[k+1] + "/" + name)
		}
	}
	return b.String()
}

// ParseID reads the id of a resource in a resource group. Azure does not tell
// letters' case apart in ids; the id is kept as it is written.
func ParseID(id string) (ID, bool) {
	p := strings.Split(strings.TrimPrefix(id, "/"), "/")
	if !strings.HasPrefix(id, "/") || len(p) < 8 || len(p)%2 != 0 || !strings.EqualFold(p[0], "subscriptions") ||
		!strings.EqualFold(p[2], "resourceGroups") || !strings.EqualFold(p[4], "providers") || len(id) > 2000 {
		return ID{}, false
	}
	for _, s := range p {
		if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "?#%\\ \t\r\n") {
			return ID{}, false
		}
	}
	out := ID{Subscription: p[1], Group: p[3], Type: p[5]}
	var names []string
	for i := 6; i < len(p); i += 2 {
		out.Type += "/" + p[i]
		names = append(names, p[i+1])
	}
	out.Name = strings.Join(names, "/")
	return out, true
}

// SameID tells whether two ids name the same resource.
func SameID(a, b string) bool {
	return strings.EqualFold(strings.TrimRight(a, "/"), strings.TrimRight(b, "/"))
}

// ID is the id of a resource of a type in the site's resource group. The name of
// a child is "parent/child", its type "Microsoft.Network/virtualNetworks/subnets".
func (c Config) ID(kind, name string) string {
	return ID{c.Subscription, c.ResourceGroup, kind, name}.String()
}

// Reference is the id that a setting means: an id, a name in the site's resource
// group, or "group/name".
func (c Config) Reference(kind, ref string) (string, error) {
	bad := configError("azure.Reference", "%.200q is neither a name, nor group/name, nor the id of a resource of type %s", ref, kind)
	if strings.HasPrefix(ref, "/") {
		id, ok := ParseID(ref)
		if !ok || !strings.EqualFold(id.Type, kind) {
			return "", bad
		}
		return ref, nil
	}
	group, name, two := strings.Cut(ref, "/")
	if !two {
		group, name = c.ResourceGroup, ref
	}
	if !nameForm.MatchString(name) || !groupForm.MatchString(group) || strings.HasSuffix(group, ".") {
		return "", bad
	}
	return ID{c.Subscription, group, kind, name}.String(), nil
}

const tagPrefix = "holdfast-"

// The tags of everything that Holdfast makes in Azure.
const (
	TagOwner   = "holdfast-owner"   // which site of which vault, or "doctor"; nothing without it is ever changed
	TagVM      = "holdfast-vm"      // the recovery VM that the resource belongs to
	TagPurpose = "holdfast-purpose" // one of the purposes
	TagPoint   = "holdfast-point"   // the recovery point that a disk holds
	TagUntil   = "holdfast-until"   // RFC 3339, UTC: after that moment a doctor's or a test's resource is litter
)

// The values of TagPurpose.
const (
	PurposeDoctor   = "doctor"
	PurposeTest     = "test"
	PurposeRecovery = "recovery"
	PurposeSource   = "source" // snapshots and restore points of VMs that are replicated from Azure
)
