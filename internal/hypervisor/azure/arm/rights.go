package arm

// Actions are the control-plane actions that Holdfast uses in the resource group of
// a recovery site: the custom role of docs/azure.md has exactly these.
func Actions() []string {
	var out []string
	add := func(kind string, actions ...string) {
		for _, a := range actions {
			out = append(out, kind+"/"+a)
		}
	}
	add("Microsoft.Resources/subscriptions/resourceGroups", "read")
	add("Microsoft.Authorization/permissions", "read")
	add("Microsoft.Authorization/locks", "read")
	add(TypeVM, "read", "write", "delete", "start/action", "powerOff/action", "deallocate/action", "instanceView/read", "retrieveBootDiagnosticsData/action")
	for _, kind := range []string{TypeDisk, TypeSnapshot} {
		add(kind, "read", "write", "delete", "beginGetAccess/action", "endGetAccess/action")
	}
	add(TypeRestoreCollection, "read", "write", "delete")
	add(TypeRestoreCollection+"/restorePoints", "read", "write", "delete")
	add(TypeRestoreCollection+"/restorePoints/diskRestorePoints", "read", "beginGetAccess/action", "endGetAccess/action")
	add(TypeAvailabilitySet, "read")
	for _, kind := range []string{TypeNIC, TypePublicIP, TypeSecurityGroup} {
		add(kind, "read", "write", "delete", "join/action")
	}
	add(TypeNetwork, "read", "write", "delete")
	add(TypeNetwork+"/subnets", "read", "write", "delete", "join/action")
	return out
}

// ImportActions are needed besides if disks are made from the page blobs of a
// warm replica: Compute checks the caller's right to the account.
func ImportActions() []string { return []string{TypeStorageAccount + "/read"} }

// SubscriptionActions are the actions that are used at the subscription: reading
// what the region offers and what is left of quotas.
func SubscriptionActions() []string {
	return []string{"Microsoft.Resources/subscriptions/read", "Microsoft.Resources/subscriptions/providers/read",
		"Microsoft.Compute/skus/read", "Microsoft.Compute/locations/usages/read", "Microsoft.Network/locations/usages/read"}
}

// DataActions are the data-plane actions that are used in the storage account,
// where it is used with Entra ID.
func DataActions() []string {
	const blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
	return []string{blobs + "read", blobs + "write", blobs + "add/action", blobs + "delete"}
}
