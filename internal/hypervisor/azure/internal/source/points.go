package source

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/pageblob"
)

const (
	tokenPrefix = "hf-"           // of the names of restore points that are tokens
	tagOpen     = "holdfast-open" // on a collection: the restore point whose cut is open
	typePoint   = arm.TypeRestoreCollection + "/restorePoints"
	succeeded   = "Succeeded"
)

// collection is a restore point collection of ours, or the place of one.
type collection struct {
	group, name string
	exists      bool
	open        string // restore point of the cut that some process has open
	points      []point
}

func (c collection) has(name string) *point {
	for i := range c.points {
		if strings.EqualFold(c.points[i].name, name) {
			return &c.points[i]
		}
	}
	return nil
}

// point is a restore point.
type point struct {
	name  string
	state string
	disks map[string]string // managed disk's id in lower case → name of the disk restore point
}

func str(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// last is the last part of an id.
func last(id string) string { return id[strings.LastIndex(id, "/")+1:] }

func (s *Source) id(c collection, parts ...string) string {
	id := arm.ID{Subscription: s.cfg.Session.Config().Subscription, Group: c.group, Type: arm.TypeRestoreCollection, Name: c.name}
	if len(parts) > 0 {
		id.Type, id.Name = typePoint, c.name+"/"+parts[0]
	}
	return id.String()
}

func (s *Source) owner() string { return "source:" + s.cfg.Owner }

// read looks at the collection of a VM and its restore points.
func (s *Source) read(ctx context.Context, group, vm string) (collection, error) {
	c := collection{group: group, name: s.collectionName(vm)}
	r, err := s.cfg.Session.RestoreCollection.Get(ctx, group, c.name, &armcompute.RestorePointCollectionsClientGetOptions{Expand: to.Ptr(armcompute.RestorePointCollectionExpandOptionsRestorePoints)})
	err = arm.Classify("azure.Restore points", s.id(c), err)
	if arm.IsAbsent(err) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if o := tag(r.Tags, arm.TagOwner); o != s.owner() {
		return c, dr.New(dr.KindConflict, dr.CodeAzureNameTaken, "azure.Restore points", "%s carries the owner tag %q, expected %q; it is left alone", s.id(c), o, s.owner())
	}
	c.exists, c.open = true, tag(r.Tags, tagOpen)
	if r.Properties == nil {
		return c, nil
	}
	for _, p := range r.Properties.RestorePoints {
		if p != nil && p.Name != nil {
			c.points = append(c.points, pointOf(last(*p.Name), p.Properties))
		}
	}
	return c, nil
}

func tag(tags map[string]*string, name string) string {
	for k, v := range tags {
		if strings.EqualFold(k, name) {
			return str(v)
		}
	}
	return ""
}

func pointOf(name string, p *armcompute.RestorePointProperties) point {
	out := point{name: name, disks: map[string]string{}}
	if p == nil {
		return out
	}
	out.state = str(p.ProvisioningState)
	if p.SourceMetadata == nil || p.SourceMetadata.StorageProfile == nil {
		return out
	}
	add := func(d *armcompute.ManagedDiskParameters, r *armcompute.DiskRestorePointAttributes) {
		if d != nil && r != nil && str(d.ID) != "" && str(r.ID) != "" {
			out.disks[strings.ToLower(*d.ID)] = last(*r.ID)
		}
	}
	if d := p.SourceMetadata.StorageProfile.OSDisk; d != nil {
		add(d.ManagedDisk, d.DiskRestorePoint)
	}
	for _, d := range p.SourceMetadata.StorageProfile.DataDisks {
		if d != nil {
			add(d.ManagedDisk, d.DiskRestorePoint)
		}
	}
	return out
}

// tags of a collection whose cut of the restore point open is open.
func (s *Source) tags(vm, open string) map[string]*string {
	t := map[string]*string{arm.TagOwner: to.Ptr(s.owner()), arm.TagPurpose: to.Ptr(arm.PurposeSource), arm.TagVM: &vm}
	if open != "" {
		t[tagOpen] = &open
	}
	return t
}

// ensure makes the collection, or marks it.
func (s *Source) ensure(ctx context.Context, c *collection, m Machine, open string) error {
	const op = "azure.BeginCut"
	if c.exists {
		return s.mark(ctx, c, open)
	}
	_, err := s.cfg.Session.RestoreCollection.CreateOrUpdate(ctx, c.group, c.name, armcompute.RestorePointCollection{
		Location: to.Ptr(s.cfg.Session.Location()), Tags: s.tags(key(m.ID), open),
		Properties: &armcompute.RestorePointCollectionProperties{Source: &armcompute.RestorePointCollectionSourceProperties{ID: &m.Resource}}}, nil)
	if err != nil {
		return arm.Classify(op, s.id(*c), err)
	}
	c.exists, c.open = true, open
	return nil
}

// mark tells later processes which cut is open; "" = none.
func (s *Source) mark(ctx context.Context, c *collection, open string) error {
	vm := strings.TrimPrefix(c.name, s.collectionName(""))
	_, err := s.cfg.Session.RestoreCollection.Update(ctx, c.group, c.name, armcompute.RestorePointCollectionUpdate{Tags: s.tags(vm, open)}, nil)
	if err != nil {
		return arm.Classify("azure.Restore points", s.id(*c), err)
	}
	c.open = open
	return nil
}

// create makes a restore point of all disks of the VM but the excluded ones.
func (s *Source) create(ctx context.Context, op string, c collection, name string, exclude []string) (point, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OperationTimeout)
	defer cancel()
	props := &armcompute.RestorePointProperties{ConsistencyMode: to.Ptr(armcompute.ConsistencyModeTypesCrashConsistent)}
	for _, id := range exclude {
		props.ExcludeDisks = append(props.ExcludeDisks, &armcompute.APIEntityReference{ID: &id})
	}
	id := s.id(c, name)
	poller, err := s.cfg.Session.RestorePoints.BeginCreate(ctx, c.group, c.name, name, armcompute.RestorePoint{Properties: props}, nil)
	if _, err = arm.Wait(ctx, s.cfg.Session, "azure."+op, id, poller, err); err != nil {
		return point{}, err
	}
	p, err := s.point(ctx, op, c, name)
	if err == nil && p.state != "" && p.state != succeeded {
		return p, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s was made and is in state %s", id, p.state)
	}
	return p, err
}

// point reads a restore point.
func (s *Source) point(ctx context.Context, op string, c collection, name string) (point, error) {
	r, err := s.cfg.Session.RestorePoints.Get(ctx, c.group, c.name, name, nil)
	return pointOf(name, r.Properties), arm.Classify("azure."+op, s.id(c, name), err)
}

// unique is the incarnation of the disk that a disk restore point is of; "" = Azure does not tell.
func (s *Source) unique(ctx context.Context, op string, c collection, p point, disk string) (string, error) {
	r, err := s.cfg.Session.DiskRestorePoints.Get(ctx, c.group, c.name, p.name, disk, nil)
	if err != nil {
		return "", arm.Classify("azure."+op, s.id(c, p.name)+"/diskRestorePoints/"+disk, err)
	}
	if r.Properties == nil {
		return "", nil
	}
	return str(r.Properties.SourceUniqueID), nil
}

// deletePoint deletes a restore point; it is no error if there is none.
func (s *Source) deletePoint(ctx context.Context, c collection, name string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OperationTimeout)
	defer cancel()
	err := s.cfg.Session.DeleteResource(ctx, s.id(c, name), arm.APIVersion(typePoint))
	if r := arm.RefusalOf(err); r == nil || r.Status != 409 {
		return err
	}
	// Signed addresses keep what they are of.
	if rerr := s.revokeAll(ctx, c, name); rerr != nil {
		return errors.Join(err, rerr)
	}
	return s.cfg.Session.DeleteResource(ctx, s.id(c, name), arm.APIVersion(typePoint))
}

// endStale takes back the addresses of a cut that another process left open. Its token stays.
func (s *Source) endStale(ctx context.Context, c collection) error {
	s.cfg.Log.Info("a cut that was left open is ended", "collection", s.id(c), "point", c.open)
	return s.revokeAll(ctx, c, c.open)
}

// revokeAll takes back the signed addresses of a restore point.
func (s *Source) revokeAll(ctx context.Context, c collection, name string) error {
	p, err := s.point(ctx, "Restore points", c, name)
	if arm.IsAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, disk := range p.disks {
		errs = append(errs, s.revoke(ctx, c, name, disk))
	}
	return errors.Join(errs...)
}

func (s *Source) revoke(ctx context.Context, c collection, name, disk string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OperationTimeout)
	defer cancel()
	poller, err := s.cfg.Session.DiskRestorePoints.BeginRevokeAccess(ctx, c.group, c.name, name, disk, nil)
	_, err = arm.Wait(ctx, s.cfg.Session, "azure.Restore points", s.id(c, name)+"/diskRestorePoints/"+disk, poller, err)
	if arm.IsAbsent(err) {
		return nil
	}
	return err
}

// tidy deletes a collection that has no more use, else it takes away the mark of a cut
// that is not open any more. open is the cut that this process has open.
func (s *Source) tidy(ctx context.Context, was collection, open string) error {
	c, err := s.read(ctx, was.group, strings.TrimPrefix(was.name, s.collectionName("")))
	switch {
	case err != nil || !c.exists:
		return err
	case len(c.points) == 0 && (c.open == "" || c.open == was.open && c.open != open):
		return s.cfg.Session.Remove(ctx, []arm.Resource{{ID: s.id(c), Name: c.name, Type: arm.TypeRestoreCollection, Tags: map[string]string{arm.TagOwner: s.owner()}}})
	case c.open != "" && c.open == was.open && c.open != open:
		return s.mark(ctx, &c, "")
	}
	return nil
}

// grant asks for an address to read a frozen disk at.
func (s *Source) grant(ctx context.Context, c collection, name, disk string) (*pageblob.Client, string, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OperationTimeout)
	defer cancel()
	id := s.id(c, name) + "/diskRestorePoints/" + disk
	until := s.cfg.Now().Add(s.cfg.Access)
	poller, err := s.cfg.Session.DiskRestorePoints.BeginGrantAccess(ctx, c.group, c.name, name, disk,
		armcompute.GrantAccessData{Access: to.Ptr(armcompute.AccessLevelRead), DurationInSeconds: to.Ptr(int32(s.cfg.Access / time.Second))}, nil) //nolint:gosec // some hours
	r, err := arm.Wait(ctx, s.cfg.Session, "azure.BeginCut", id, poller, err)
	if err == nil && str(r.AccessSAS) == "" {
		err = dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.BeginCut", "%s: Azure gave no address to read the disk at", id)
	}
	if err != nil {
		return nil, "", until, err
	}
	client, err := pageblob.Open(*r.AccessSAS, s.cfg.Pages)
	return client, *r.AccessSAS, until, err
}
