package armapi

import (
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// onItem runs an operation on the item that the path names; the operation's
// result is the item.
func onItem(c *call, do func(dr.Fabric, dr.ProtectedItem) (dr.JobID, error)) (reply, error) {
	f, it, err := c.item()
	if err != nil {
		return reply{}, err
	}
	job, err := do(f, it)
	return started(job, err, c.itemID(f, it.Name))
}

// forward refuses the direction home, which this version can't go.
func forward(direction string) error {
	switch {
	case direction == "" || strings.EqualFold(direction, armwire.PrimaryToRecovery):
		return nil
	case strings.EqualFold(direction, armwire.RecoveryToPrimary):
		return failback()
	}
	return dr.New(dr.KindInvalid, codeInvalidBody, "armapi.failover", "failoverDirection %q is neither %s nor %s", clip(direction), armwire.PrimaryToRecovery, armwire.RecoveryToPrimary)
}

func failback() error {
	return dr.New(dr.KindUnsupported, codeNotSupported, "armapi.failover", "failback (failover from the recovery site to the primary site) is not supported by this version").
		WithHint("Disable the protection of the item, and protect the recovery VM as a new item of the recovery site.")
}

// pointOf turns the client's recovery point into the vault's: null, empty and
// "Latest" are the latest; otherwise the id or the name of a point of this item.
func (c *call) pointOf(it dr.ProtectedItem, ref *string) (string, error) {
	if ref == nil || *ref == "" {
		return "", nil
	}
	for _, word := range []string{"Latest", "LatestProcessed", "LatestApplicationConsistent"} {
		if strings.EqualFold(*ref, word) {
			return word, nil
		}
	}
	name, err := c.nameIn("recoveryPointId", *ref, tPoints)
	if err != nil {
		return "", err
	}
	if id, err := armwire.ParseID(*ref); err == nil && !strings.EqualFold(id.NameOf(tItems), it.Name) {
		return "", dr.New(dr.KindInvalid, codeInvalidBody, "armapi.failover", "recoveryPointId is of another item, %q", clip(id.NameOf(tItems)))
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
	if err := instanceType(v, armwire.HyperVReplicaAzure); err != nil {
		return d, err
	}
	return d, decodeVariant(v, &d)
}

func testFailover(c *call) (reply, error) {
	var in armwire.Input[armwire.TestFailoverInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	p := in.Properties
	if err := forward(p.FailoverDirection); err != nil {
		return reply{}, err
	}
	d, err := failoverDetails(p.ProviderSpecificDetails)
	if err != nil {
		return reply{}, err
	}
	network, none := networkName(p.NetworkID), false
	switch {
	case strings.EqualFold(p.NetworkType, armwire.NoNetworkAsInput):
		network, none = "", true
	case p.NetworkType != "" && !strings.EqualFold(p.NetworkType, armwire.NetworkAsInput):
		return reply{}, dr.New(dr.KindInvalid, codeInvalidBody, "armapi.testFailover", "networkType %q is neither %s nor %s (leave it out for an isolated network)",
			clip(p.NetworkType), armwire.NetworkAsInput, armwire.NoNetworkAsInput)
	case p.NetworkType != "" && network == "":
		return reply{}, dr.New(dr.KindInvalid, codeInvalidBody, "armapi.testFailover", "networkType is %s but networkId is empty", armwire.NetworkAsInput)
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := c.pointOf(it, d.RecoveryPointID)
		if err != nil {
			return "", err
		}
		if network == "" && !none {
			network = it.Settings.TestNetwork
		}
		return c.svc().StartFailover(c.ctx(), vault.FailoverRequest{Item: it.ID, Kind: dr.KindTestFailover, Point: point, Network: network, NoNetwork: none, By: c.who.Name})
	})
}

func cleanupTest(c *call) (reply, error) {
	var in armwire.Input[armwire.CleanupInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.svc().CleanupTest(c.ctx(), it.ID, in.Properties.Comments, c.who.Name)
	})
}

func plannedFailover(c *call) (reply, error)   { return realFailover(c, dr.KindPlannedFailover) }
func unplannedFailover(c *call) (reply, error) { return realFailover(c, dr.KindUnplannedFailover) }

func realFailover(c *call, kind dr.FailoverKind) (reply, error) {
	var in armwire.Input[armwire.FailoverInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	p := in.Properties
	if err := forward(p.FailoverDirection); err != nil {
		return reply{}, err
	}
	d, err := failoverDetails(p.ProviderSpecificDetails)
	if err != nil {
		return reply{}, err
	}
	action := strings.EqualFold(p.SourceSiteOperations, "Required")
	if !action && p.SourceSiteOperations != "" && !strings.EqualFold(p.SourceSiteOperations, "NotRequired") {
		return reply{}, dr.New(dr.KindInvalid, codeInvalidBody, "armapi.failover", "sourceSiteOperations %q is neither Required nor NotRequired", clip(p.SourceSiteOperations))
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := c.pointOf(it, d.RecoveryPointID)
		if err != nil {
			return "", err
		}
		return c.svc().StartFailover(c.ctx(), vault.FailoverRequest{Item: it.ID, Kind: kind, Point: point, Network: it.Settings.Network,
			SourceAction: action && kind == dr.KindUnplannedFailover, By: c.who.Name})
	})
}

func commitFailover(c *call) (reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.svc().Commit(c.ctx(), it.ID, c.who.Name)
	})
}

func cancelFailover(c *call) (reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.svc().CancelFailover(c.ctx(), it.ID, c.who.Name)
	})
}

func applyPoint(c *call) (reply, error) {
	var in armwire.Input[armwire.ApplyPointInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	if err := instanceType(in.Properties.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return reply{}, err
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		point, err := c.pointOf(it, in.Properties.RecoveryPointID)
		if err != nil {
			return "", err
		}
		return c.svc().ChangePoint(c.ctx(), it.ID, point, c.who.Name)
	})
}

func repairReplication(c *call) (reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.svc().Resync(c.ctx(), it.ID, c.who.Name)
	})
}

// resolveHealthErrors acknowledges nothing: health is computed anew from the
// facts, so an error goes away when its cause does. The answer shows what is left.
func resolveHealthErrors(c *call) (reply, error) {
	var in armwire.Input[armwire.ResolveHealthInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	return getItem(c)
}

func reprotect(c *call) (reply, error) {
	if _, _, err := c.item(); err != nil {
		return reply{}, err
	}
	return reply{}, dr.New(dr.KindUnsupported, codeNotSupported, "armapi.reProtect", "reverse replication is not supported by this version").
		WithHint("Disable the protection of the item, and protect the recovery VM as a new item of the recovery site.")
}

func listPoints(c *call) (reply, error) {
	f, it, err := c.item()
	if err != nil {
		return reply{}, err
	}
	ps, err := c.svc().Points(c.ctx(), it.ID)
	if err != nil {
		return reply{}, err
	}
	return page(c, ps, dr.RecoveryPoint.Name, func(p dr.RecoveryPoint) (armwire.Resource[armwire.RecoveryPoint], error) {
		return c.pointResource(f, it, p), nil
	})
}

func getPoint(c *call) (reply, error) {
	f, it, err := c.item()
	if err != nil {
		return reply{}, err
	}
	ps, err := c.svc().Points(c.ctx(), it.ID)
	if err != nil {
		return reply{}, err
	}
	name := c.name(tPoints)
	for _, p := range ps {
		if strings.EqualFold(p.Name(), name) {
			return ok(c.pointResource(f, it, p))
		}
	}
	return reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi.getPoint", "item %q has no recovery point %q", it.Name, clip(name))
}

// pointResource renders a recovery point. The API knows two types; a
// file-system-consistent point shows as the weaker one and says more in our own field.
func (c *call) pointResource(f dr.Fabric, it dr.ProtectedItem, p dr.RecoveryPoint) armwire.Resource[armwire.RecoveryPoint] {
	kind := "CrashConsistent"
	if p.Consistency == dr.AppConsistent {
		kind = "ApplicationConsistent"
	}
	return armwire.Resource[armwire.RecoveryPoint]{
		ID: c.itemID(f, it.Name) + "/" + tPoints + "/" + p.Name(), Name: p.Name(), Type: armwire.ResourceType(tFabrics, "", tContainers, "", tItems, "", tPoints, ""),
		Properties: armwire.RecoveryPoint{RecoveryPointTime: armwire.Time(p.Time), RecoveryPointType: kind, Consistency: string(p.Consistency),
			DirtyBytes: p.DirtyBytes, DataBytes: p.DataBytes, StoredBytes: p.StoredBytes, Resync: p.Resync},
	}
}
