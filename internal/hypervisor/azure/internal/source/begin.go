package source

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/pageblob"
	"holdfast/internal/vhd"
)

const (
	granularity = 4 << 10 // of the changes of managed disks, bytes
	shortUndo   = 3 * time.Second
)

func validate(req hypervisor.CutRequest) error {
	const op = "azure.BeginCut"
	if len(req.Disks) == 0 {
		return dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "the cut of VM %s names no disk", req.VM)
	}
	for i, d := range req.Disks {
		if slices.Contains(req.Disks[:i], d) {
			return dr.Errorf(dr.KindInvalid, op, "the cut of VM %s names disk %s twice", req.VM, d)
		}
	}
	if !hypervisor.ValidTag(req.Tag) {
		return dr.Errorf(dr.KindInvalid, op, "%q can't be the tag of a cut: 1 to 64 letters, digits and hyphens", req.Tag)
	}
	return nil
}

// BeginCut makes a restore point of the VM and finds out what changed since the base; see
// hypervisor.Source. Azure allows one restore point of a VM to be made at a time, and 200 of one VM to exist.
func (s *Source) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	if err := validate(req); err != nil {
		return nil, err
	}
	vm, name := key(req.VM), tokenPrefix+req.Tag
	if !s.claim(vm, name) {
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "azure.BeginCut", "a cut of VM %s is open in this process", req.VM)
	}
	c, err := s.begin(ctx, req, name)
	if err != nil {
		s.release(vm, name)
		return nil, err
	}
	return c, nil
}

// basis is what a cut takes its changes since.
type basis struct {
	point  *point
	unique map[string]string // disk → incarnation, of those that the base has
}

func (s *Source) begin(ctx context.Context, req hypervisor.CutRequest, name string) (_ *cut, err error) {
	const op = "BeginCut"
	vm := key(req.VM)
	done, err := s.turn(ctx, op, vm)
	if err != nil {
		return nil, err
	}
	defer done()
	m, err := s.cfg.Find(ctx, op, req.VM)
	if err != nil {
		return nil, err
	}
	disks, exclude, err := choose(m, req.Disks)
	if err != nil {
		return nil, err
	}
	if !m.Running && !req.Offline {
		return nil, notRunning(op, m)
	}
	col, err := s.read(ctx, m.Group, vm)
	if err != nil {
		return nil, err
	}
	base, err := s.basis(ctx, op, col, m, disks, req.Base)
	if err != nil {
		return nil, err
	}
	if err := s.makeRoom(ctx, &col, vm, name); err != nil {
		return nil, err
	}
	began := s.cfg.Now()
	if err := s.ensure(ctx, &col, m, name); err != nil {
		s.undo(ctx, col, vm, name, "")
		return nil, err
	}
	now, err := s.create(ctx, op, col, name, exclude)
	if err != nil {
		s.undo(ctx, col, vm, name, "")
		return nil, err
	}
	frozen, err := s.freezeAll(ctx, op, col, now, disks, base)
	if err != nil {
		s.undo(ctx, col, vm, name, "")
		return nil, err
	}
	c := &cut{s: s, vm: vm, col: col, point: name, disks: map[string]*disk{},
		info: hypervisor.CutInfo{Token: name, Time: began, Consistency: dr.CrashConsistent, Note: note(req, disks)}}
	var changed int64
	for _, d := range frozen {
		c.disks[d.ID] = d
		c.info.Disks = append(c.info.Disks, d.CutDisk)
		c.info.Incremental = c.info.Incremental || base != nil && base.unique[d.ID] != ""
		changed += d.changed.Len()
		c.egress += d.wanted.Len()
	}
	s.cfg.Log.Info("restore point made", "vm", m.Name, "point", name, "base", req.Base, "disks", len(frozen), "changed", changed, "egress", c.egress)
	return c, nil
}

func notRunning(op string, m Machine) error {
	return dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "azure."+op, "VM %s is not running", m.Name)
}

// choose finds the disks of a request, and the managed disks that are not in it.
func choose(m Machine, ids []string) (disks []Disk, exclude []string, err error) {
	const op = "azure.BeginCut"
	for _, id := range ids {
		i := slices.IndexFunc(m.Disks, func(d Disk) bool { return d.ID == id })
		if i < 0 {
			return nil, nil, dr.New(dr.KindNotFound, dr.CodeNotFound, op, "VM %s has no disk %s", m.Name, id)
		}
		switch d := m.Disks[i]; {
		case d.Shared:
			return nil, nil, dr.New(dr.KindUnsupported, dr.CodeDiskShared, op, "disk %s of VM %s is shared with other VMs", id, m.Name)
		case d.Problem != "" || d.Resource == "":
			return nil, nil, dr.New(dr.KindUnsupported, dr.CodeDiskNotTrackable, op, "disk %s of VM %s: %s", id, m.Name, d.Problem)
		default:
			disks = append(disks, d)
		}
	}
	for _, d := range m.Disks {
		if d.Resource != "" && !slices.Contains(ids, d.ID) {
			exclude = append(exclude, d.Resource)
		}
	}
	return disks, exclude, nil
}

// note says what is less than asked for.
func note(req hypervisor.CutRequest, disks []Disk) string {
	var out []string
	if req.Quiesce {
		out = append(out, "restore points of Azure are taken crash-consistent: the guest's file systems are not frozen")
	}
	for _, d := range disks {
		if d.WriteCache && len(disks) > 1 {
			out = append(out, "disk "+d.ID+" has a write cache in Azure's host, and for such disks Azure does not guarantee one instant with the others")
		}
	}
	return strings.Join(out, "; ")
}

// basis finds the restore point of a token; nil for none. dr.CodeTrackingLost if
// it is of use for no disk.
func (s *Source) basis(ctx context.Context, op string, col collection, m Machine, disks []Disk, token string) (*basis, error) {
	if token == "" {
		return nil, nil
	}
	lost := func(why string) error {
		return dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "azure."+op, "VM %s: restore point %s, which changes are asked for since, %s", m.Name, token, why)
	}
	p := col.has(token)
	if p == nil || p.name != token || !strings.HasPrefix(token, tokenPrefix) {
		return nil, lost("does not exist any more")
	}
	if s.isDoomed(key(m.ID), token) {
		return nil, lost("is of a cut that was aborted")
	}
	if p.state != "" && p.state != succeeded {
		return nil, lost("is in state " + p.state)
	}
	if len(p.disks) == 0 { // lists need not tell them
		full, err := s.point(ctx, op, col, token)
		if err != nil {
			return nil, err
		}
		p = &full
	}
	b := &basis{point: p, unique: map[string]string{}}
	for _, d := range disks {
		name := p.disks[strings.ToLower(d.Resource)]
		if name == "" {
			continue
		}
		u, err := s.unique(ctx, op, col, *p, name)
		if err != nil {
			return nil, err
		}
		if u != "" && (d.Unique == "" || strings.EqualFold(u, d.Unique)) {
			b.unique[d.ID] = u
		}
	}
	if len(b.unique) == 0 {
		return nil, lost("has none of its disks")
	}
	return b, nil
}

// makeRoom ends what an earlier process left open, and checks that the name is free.
func (s *Source) makeRoom(ctx context.Context, col *collection, vm, name string) error {
	if col.exists && col.open != "" {
		if err := s.endStale(ctx, *col); err != nil {
			return err
		}
	}
	p := col.has(name)
	if p == nil {
		return nil
	}
	if !s.isDoomed(vm, p.name) && (p.state == "" || p.state == succeeded || p.state == "Creating") {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "azure.BeginCut", "%s exists already", s.id(*col, name))
	}
	if err := s.deletePoint(ctx, *col, p.name); err != nil {
		return err
	}
	s.doom(vm, p.name, false)
	return nil
}

// undo takes back what a cut that failed has made, shortly where time is up. What
// can't be taken back now goes with the next cut of that tag or Forget.
// open is the mark of a cut that shall stay.
func (s *Source) undo(ctx context.Context, col collection, vm, name, open string) {
	s.doom(vm, name, true)
	limit := s.cfg.UndoTimeout
	if ctx.Err() != nil {
		limit = min(limit, shortUndo)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := s.deletePoint(ctx, col, name)
	if err == nil {
		s.doom(vm, name, false)
		err = s.tidy(ctx, col, open)
	}
	if err != nil {
		s.cfg.Log.Warn("the restore point of a cut that failed is left over; the next cut or Forget deletes it", "point", s.id(col, name), "err", err)
	}
}

// freezeAll opens the disks of a restore point and finds what changed.
func (s *Source) freezeAll(ctx context.Context, op string, col collection, now point, disks []Disk, base *basis) ([]*disk, error) {
	out := make([]*disk, len(disks))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, s.cfg.Parallel))
	for i, d := range disks {
		g.Go(func() (err error) {
			out[i], err = s.freeze(gctx, op, col, now, d, base)
			return err
		})
	}
	err := g.Wait()
	if err != nil && ctx.Err() != nil && dr.KindOf(err) != dr.KindOf(ctx.Err()) {
		err = dr.Errorf(dr.KindOf(ctx.Err()), "azure."+op, "%w", err)
	}
	return out, err
}

// freeze opens one disk of a restore point.
func (s *Source) freeze(ctx context.Context, op string, col collection, now point, d Disk, base *basis) (*disk, error) {
	name := now.disks[strings.ToLower(d.Resource)]
	if name == "" {
		return nil, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s lacks disk %s", s.id(col, now.name), d.Resource)
	}
	x := &disk{CutDisk: hypervisor.CutDisk{ID: d.ID, Granularity: granularity}, access: access{s: s, col: col, point: now.name, name: name}}
	c, err := x.access.client(ctx)
	if err != nil {
		return nil, err
	}
	if x.Size, err = sizeOf(ctx, c); err != nil {
		return nil, err
	}
	x.all = extent.Set{{Off: 0, Len: x.Size}}
	allocated, err := c.Ranges(ctx, 0, x.Size)
	if err != nil {
		return nil, err
	}
	x.allocated = allocated.Intersect(x.all)
	x.zero = x.all.Subtract(x.allocated)
	x.changed, x.Why = x.all, ""
	if base == nil {
		x.Whole = true
		x.wanted = x.allocated
		return x, nil
	}
	changed, why, err := s.since(ctx, op, col, now, x, d, *base)
	if err != nil {
		return nil, err
	}
	if x.Why = why; why == "" {
		x.changed = changed
	}
	x.Whole = why != ""
	x.wanted = x.changed.Intersect(x.allocated)
	return x, nil
}

// since asks what changed; why says why Azure can't tell.
func (s *Source) since(ctx context.Context, op string, col collection, now point, x *disk, d Disk, base basis) (changed extent.Set, why string, err error) {
	u, err := s.unique(ctx, op, col, now, x.access.name)
	if err != nil {
		return nil, "", err
	}
	was := base.point.disks[strings.ToLower(d.Resource)]
	switch {
	case was == "":
		return nil, "the restore point before has no such disk", nil
	case base.unique[d.ID] == "" || !strings.EqualFold(u, base.unique[d.ID]):
		return nil, "it is another disk than in the restore point before", nil
	}
	before, address, _, err := s.grant(ctx, col, base.point.name, was)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		// Only the differences were of use. The address ends by itself if this fails.
		if rerr := s.revoke(ctx, col, base.point.name, was); rerr != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("address of a disk can't be taken back", "point", s.id(col, base.point.name), "disk", was, "err", rerr)
		}
	}()
	size, err := sizeOf(ctx, before)
	if err != nil {
		return nil, "", err
	}
	if size != x.Size {
		return nil, "its size has changed", nil
	}
	c, err := x.access.client(ctx)
	if err != nil {
		return nil, "", err
	}
	written, cleared, err := c.Diff(ctx, address, 0, x.Size)
	if refusesDiff(err) {
		s.cfg.Log.Info("Azure does not tell the differences of two restore points; the disk is compared", "point", s.id(col, now.name), "disk", d.ID, "err", err)
		return nil, "Azure does not tell what differs from the restore point before", nil
	}
	if err != nil {
		return nil, "", err
	}
	return written.Union(cleared).AlignOut(granularity, x.Size).Intersect(x.all), "", nil
}

// refusesDiff tells that the service does not answer the question, as against that
// it could not be asked.
func refusesDiff(err error) bool {
	var e *dr.Error
	return errors.As(err, &e) && e.Code == dr.CodeAzureOperation && (e.Kind == dr.KindInvalid || e.Kind == dr.KindConflict)
}

// sizeOf is the size of a disk without the footer that its export has: managed disks are whole MiB.
func sizeOf(ctx context.Context, c *pageblob.Client) (int64, error) {
	st, err := c.Stat(ctx)
	if err != nil {
		return 0, err
	}
	if st.Size%(1<<20) == vhd.FooterSize {
		return st.Size - vhd.FooterSize, nil
	}
	return st.Size, nil
}

// Estimate makes a restore point for a moment and returns how much of the VM's disks a cut since
// base would report as changed; see hypervisor.Estimator. With an empty base it is what
// a first replication would read: the allocated ranges.
func (s *Source) Estimate(ctx context.Context, id dr.VMID, token string) (int64, error) {
	const op = "Estimate"
	vm := key(id)
	done, err := s.turn(ctx, op, vm)
	if err != nil {
		return 0, err
	}
	defer done()
	m, err := s.cfg.Find(ctx, op, id)
	if err != nil {
		return 0, err
	}
	if !m.Running {
		return 0, notRunning(op, m)
	}
	col, err := s.read(ctx, m.Group, vm)
	if err != nil {
		return 0, err
	}
	var disks []Disk
	var exclude []string
	p := col.has(token)
	for _, d := range m.Disks {
		if covered := token == "" || p != nil && p.disks[strings.ToLower(d.Resource)] != ""; covered && !d.Shared && d.Problem == "" && d.Resource != "" {
			disks = append(disks, d)
		} else if d.Resource != "" {
			exclude = append(exclude, d.Resource)
		}
	}
	base, err := s.basis(ctx, op, col, m, disks, token)
	if err != nil || len(disks) == 0 {
		return 0, err
	}
	name := tokenPrefix + "estimate-" + s.cfg.Now().UTC().Format("20060102-150405-000000000")
	if !col.exists {
		if err := s.ensure(ctx, &col, m, ""); err != nil {
			return 0, err
		}
	}
	defer s.undo(ctx, col, vm, name, col.open)
	now, err := s.create(ctx, op, col, name, exclude)
	if err != nil {
		return 0, err
	}
	frozen, err := s.freezeAll(ctx, op, col, now, disks, base)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, d := range frozen {
		if token == "" {
			sum += d.wanted.Len()
		} else {
			sum += d.changed.Len()
		}
	}
	return sum, nil
}
