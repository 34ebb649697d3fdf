package item

import (
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// onItem runs an operation on the item that the path names; the operation's
// result is the item.
func onItem(c *route.Call, do func(dr.Fabric, dr.ProtectedItem) (dr.JobID, error)) (route.Reply, error) {
	f, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	job, err := do(f, it)
	return route.Started(job, err, c.ItemID(f, it.VM, it.Name))
}

// forward refuses the direction home, which this version can't go.
func forward(direction string) error {
	switch {
	case direction == "" || strings.EqualFold(direction, armwire.PrimaryToRecovery):
		return nil
	case strings.EqualFold(direction, armwire.RecoveryToPrimary):
		return failback()
	}
	return dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.failover", "failoverDirection %q is neither %s nor %s", route.Clip(direction), armwire.PrimaryToRecovery, armwire.RecoveryToPrimary)
}

func failback() error {
	return dr.New(dr.KindUnsupported, route.CodeNotSupported, "armapi.failover", "failback (failover from the recovery site to the primary site) is not supported by this version").
		WithHint("Disable the protection of the item, and protect the recovery VM as a new item of the recovery site.")
}

// pointOf turns the client's recovery point into the vault's: null, empty and
// "Latest" are the latest; otherwise the id or the name of a point of this item.
func pointOf(c *route.Call, it dr.ProtectedItem, ref *string) (string, error) {
	if ref == nil || *ref == "" {
		return "", nil
	}
	for _, word := range []string{"Latest", "LatestProcessed", "LatestApplicationConsistent"} {
		if strings.EqualFold(*ref, word) {
			return word, nil
		}
	}
	name, err := c.NameIn("recoveryPointId", *ref, route.TPoints)
	if err != nil {
		return "", err
	}
	if id, err := armwire.ParseID(*ref); err == nil && !strings.EqualFold(id.NameOf(route.TItems), it.Name) {
		return "", dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.failover", "recoveryPointId is of another item, %q", route.Clip(id.NameOf(route.TItems)))
	}
	name = strings.ToLower(name)
	if _, _, err := dr.ParsePointName(name); err != nil {
		return "", err
	}
	return name, nil
}

// failoverDetails reads the provider-specific part of a failover input.
func failoverDetails(v armwire.Variant) (armwire.FailoverDetails, error) {
	var d armwire.FailoverDetails
	if strings.EqualFold(v.InstanceType(), armwire.HyperVReplicaAzureFailback) {
		return d, failback()
	}
	if err := route.InstanceType(v, armwire.HyperVReplicaAzure); err != nil {
		return d, err
	}
	return d, route.DecodeVariant(v, &d)
}

func testFailover(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.TestFailoverInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	p := in.Properties
	if err := forward(p.FailoverDirection); err != nil {
		return route.Reply{}, err
	}
	d, err := failoverDetails(p.ProviderSpecificDetails)
	if err != nil {
		return route.Reply{}, err
	}
	network, none := networkName(p.NetworkID), false
	switch {
	case strings.EqualFold(p.NetworkType, armwire.NoNetworkAsInput):
		network, none = "", true
	case p.NetworkType != "" && !strings.EqualFold(p.NetworkType, armwire.NetworkAsInput):
		return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.testFailover", "networkType %q is neither %s nor %s (leave it out for an isolated network)",
			route.Clip(p.NetworkType), armwire.NetworkAsInput, armwire.NoNetworkAsInput)
	case p.NetworkType != "" && network == "":
		return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.testFailover", "networkType is %s but networkId is empty", armwire.NetworkAsInput)
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := pointOf(c, it, d.RecoveryPointID)
		if err != nil {
			return "", err
		}
		if network == "" && !none {
			network = it.Settings.TestNetwork
		}
		return c.Svc().StartFailover(c.Ctx(), vault.FailoverRequest{Item: it.ID, Kind: dr.KindTestFailover, Point: point, Network: network, NoNetwork: none, By: c.Who.Name})
	})
}

func cleanupTest(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.CleanupInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().CleanupTest(c.Ctx(), it.ID, in.Properties.Comments, c.Who.Name)
	})
}

func plannedFailover(c *route.Call) (route.Reply, error) {
	return realFailover(c, dr.KindPlannedFailover)
}

func unplannedFailover(c *route.Call) (route.Reply, error) {
	return realFailover(c, dr.KindUnplannedFailover)
}

func realFailover(c *route.Call, kind dr.FailoverKind) (route.Reply, error) {
	var in armwire.Input[armwire.FailoverInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	p := in.Properties
	if err := forward(p.FailoverDirection); err != nil {
		return route.Reply{}, err
	}
	d, err := failoverDetails(p.ProviderSpecificDetails)
	if err != nil {
		return route.Reply{}, err
	}
	action := strings.EqualFold(p.SourceSiteOperations, "Required")
	if !action && p.SourceSiteOperations != "" && !strings.EqualFold(p.SourceSiteOperations, "NotRequired") {
		return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.failover", "sourceSiteOperations %q is neither Required nor NotRequired", route.Clip(p.SourceSiteOperations))
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := pointOf(c, it, d.RecoveryPointID)
		if err != nil {
			return "", err
		}
		return c.Svc().StartFailover(c.Ctx(), vault.FailoverRequest{Item: it.ID, Kind: kind, Point: point, Network: it.Settings.Network,
			SourceAction: action && kind == dr.KindUnplannedFailover, By: c.Who.Name})
	})
}

func commitFailover(c *route.Call) (route.Reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().Commit(c.Ctx(), it.ID, c.Who.Name)
	})
}

func cancelFailover(c *route.Call) (route.Reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().CancelFailover(c.Ctx(), it.ID, c.Who.Name)
	})
}

func applyPoint(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.ApplyPointInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	if err := route.InstanceType(in.Properties.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return route.Reply{}, err
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := pointOf(c, it, in.Properties.RecoveryPointID)
		if err != nil {
			return "", err
		}
		return c.Svc().ChangePoint(c.Ctx(), it.ID, point, c.Who.Name)
	})
}

func reprotect(c *route.Call) (route.Reply, error) {
	if _, _, err := item(c); err != nil {
		return route.Reply{}, err
	}
	return route.Reply{}, dr.New(dr.KindUnsupported, route.CodeNotSupported, "armapi.reProtect", "reverse replication is not supported by this version").
		WithHint("Disable the protection of the item, and protect the recovery VM as a new item of the recovery site.")
}
