package booting

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/site"
	"holdfast/internal/nbd"
	"holdfast/internal/pageblob"
	"holdfast/internal/vhd"
)

// fillAll makes the disks, some at a time: a single one takes 60 MiB/s at most.
func (h *Booter) fillAll(ctx context.Context, p *plan, before map[string]armcompute.Disk) error {
	var mu sync.Mutex
	done := make([]int64, len(p.disks))
	var total int64
	for _, d := range p.disks {
		total += d.Size
	}
	progress := func(i int, n int64) {
		mu.Lock()
		defer mu.Unlock()
		done[i] = max(done[i], n)
		if h.cfg.Progress == nil {
			return
		}
		var sum int64
		for _, n := range done {
			sum += n
		}
		h.cfg.Progress(p.name, sum, total)
	}
	return site.EachOf(ctx, len(p.disks), h.cfg.Parallel, func(ctx context.Context, i int) error {
		d := p.disks[i]
		var old *armcompute.Disk
		if v, ok := before[d.name]; ok {
			old = &v
		}
		if err := h.fill(ctx, p, d, old, func(n int64) { progress(i, n) }); err != nil {
			return h.az.Say("Boot", "make disk "+d.ID, err)
		}
		progress(i, d.Size)
		return nil
	})
}

// mark is what a disk that is complete carries in tagFilled: another point, another mark.
func (p *plan) mark(d disk) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{p.spec.Owner, p.name, d.ID, d.Export, d.Image, time.Duration(d.size).String()}, "\x00")))
	return hex.EncodeToString(sum[:12])
}

// fill makes one disk. What an earlier call left of it is taken over where that is
// safe: a whole disk as it is, one that is being written to by comparing what it holds.
func (h *Booter) fill(ctx context.Context, p *plan, d disk, old *armcompute.Disk, progress func(int64)) error {
	if old != nil {
		whole, open := h.usable(p, d, old)
		switch {
		case whole:
			return nil
		case open:
			err := h.upload(ctx, p, d, true, progress)
			if err == nil || ctx.Err() != nil || !refusedAddress(err) {
				return err
			}
			h.cfg.Log.Warn("a disk that was being filled can't be written to any more; it is made anew", "disk", p.place.ID(arm.TypeDisk, d.name), "err", err)
		}
		if err := h.deleteDisk(ctx, p, d); err != nil {
			return err
		}
	}
	for attempt := 1; ; attempt++ {
		if err := h.putDisk(ctx, p, d); err != nil {
			return err
		}
		if !d.uploaded() {
			return nil
		}
		err := h.upload(ctx, p, d, false, progress)
		if err == nil || ctx.Err() != nil || attempt > 1 || !refusedAddress(err) {
			return err
		}
		// The address ended under way and no new one did: from the beginning, once.
		h.cfg.Log.Warn("the address of a disk is refused; the disk is made anew", "disk", p.place.ID(arm.TypeDisk, d.name), "err", err)
		if err := h.deleteDisk(ctx, p, d); err != nil {
			return err
		}
	}
}

// uploaded reports whether the disk is filled by this machine.
func (d disk) uploaded() bool { return d.Image == "" && d.Socket != "" }

// usable judges a disk of ours that exists: whole (as it is to be) or open (can be written to further).
func (h *Booter) usable(p *plan, d disk, v *armcompute.Disk) (whole, open bool) {
	c := v.Properties.CreationData
	if c == nil || c.CreateOption == nil || v.Properties.ProvisioningState == nil || *v.Properties.ProvisioningState != site.Succeeded || v.SKU == nil || v.SKU.Name == nil || string(*v.SKU.Name) != p.diskType {
		return false, false
	}
	want := h.creation(p, d)
	if *c.CreateOption != *want.CreateOption || site.Tag(v.Tags, TagDisk) != d.ID {
		return false, false
	}
	if !d.uploaded() {
		return site.Tag(v.Tags, tagFilled) == p.mark(d), false
	}
	if v.Properties.DiskState == nil || c.UploadSizeBytes == nil || *c.UploadSizeBytes != *want.UploadSizeBytes {
		return false, false
	}
	switch *v.Properties.DiskState {
	case armcompute.DiskStateReadyToUpload, armcompute.DiskStateActiveUpload:
		return false, true
	case armcompute.DiskStateUnattached:
		return site.Tag(v.Tags, tagFilled) == p.mark(d), false
	}
	return false, false
}

// creation says where a disk's content comes from.
func (h *Booter) creation(p *plan, d disk) *armcompute.CreationData {
	switch {
	case d.Image != "":
		return &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionImport), SourceURI: to.Ptr(d.Image), StorageAccountID: to.Ptr(h.accountOf(d.Image))}
	case d.Socket != "":
		return &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: to.Ptr(d.size + vhd.FooterSize)}
	}
	return &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionEmpty)}
}

// accountOf is the id of the storage account of an image, which Azure wants with
// its address: the site's, or the one that the address begins with, in the site's group.
func (h *Booter) accountOf(image string) string {
	name := h.site.StorageAccount
	if u, err := url.Parse(image); err == nil {
		if first, _, dots := strings.Cut(u.Hostname(), "."); dots && strings.Contains(u.Hostname(), ".blob.") {
			name = first
		}
	}
	return h.site.ID(arm.TypeStorageAccount, name)
}

// putDisk makes a disk that is empty, imported, or ready to be written to.
func (h *Booter) putDisk(ctx context.Context, p *plan, d disk) error {
	props := &armcompute.DiskProperties{CreationData: h.creation(p, d)}
	if d.lun < 0 {
		props.OSType = to.Ptr(p.osType())
		props.HyperVGeneration = to.Ptr(armcompute.HyperVGenerationV1)
		if p.generation == 2 {
			props.HyperVGeneration = to.Ptr(armcompute.HyperVGenerationV2)
		}
	}
	tags := p.diskTags(d)
	if !d.uploaded() { // complete as soon as it exists
		tags[tagFilled] = p.mark(d)
	}
	if *props.CreationData.CreateOption == armcompute.DiskCreateOptionEmpty {
		props.DiskSizeGB = to.Ptr(int32((d.size + 1<<30 - 1) >> 30)) //nolint:gosec // at most 32767
	}
	v := armcompute.Disk{Location: to.Ptr(h.s.Location()), Tags: site.Pointers(tags), SKU: &armcompute.DiskSKU{Name: to.Ptr(armcompute.DiskStorageAccountTypes(p.diskType))}, Properties: props}
	if p.zone != "" && !strings.HasSuffix(p.diskType, "_ZRS") {
		v.Zones = []*string{&p.zone}
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	return h.s.PutResource(ctx, p.place.ID(arm.TypeDisk, d.name), arm.DiskAPI, v, nil)
}

func (p *plan) diskTags(d disk) map[string]string {
	tags := map[string]string{TagDisk: d.ID}
	for k, v := range p.tags {
		tags[k] = v
	}
	return tags
}

// deleteDisk deletes a disk of ours, with its address.
func (h *Booter) deleteDisk(ctx context.Context, p *plan, d disk) error {
	return h.s.Remove(ctx, []arm.Resource{{ID: p.place.ID(arm.TypeDisk, d.name), Name: d.name, Type: arm.TypeDisk, Tags: map[string]string{arm.TagOwner: p.spec.Owner}}})
}

// refusedAddress reports whether a disk's address is refused, or Azure gives none any more.
func refusedAddress(err error) bool {
	if dr.CodeOf(err) == dr.CodeAzureSignature {
		return true
	}
	r := arm.RefusalOf(err)
	return r != nil && site.Passing(err) && (r.Status == 409 || r.Status == 400 || r.Status == 403)
}

// addresses is how many addresses one disk may need.
const addresses = 5

// upload writes the served point to a disk, seals it and marks it as filled.
func (h *Booter) upload(ctx context.Context, p *plan, d disk, resume bool, progress func(int64)) error {
	for n := 1; ; n++ {
		err := h.uploadOnce(ctx, p, d, resume, progress)
		if err == nil {
			break
		}
		if ctx.Err() != nil || n >= addresses || dr.CodeOf(err) != dr.CodeAzureSignature {
			return err
		}
		resume = true // with a new address
	}
	id := p.place.ID(arm.TypeDisk, d.name)
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	poller, err := h.s.Disks.BeginRevokeAccess(ctx, p.place.Group, d.name, nil)
	if _, err = arm.Wait(ctx, h.s, "azure.Boot", id, poller, err); err != nil {
		return err
	}
	tags := p.diskTags(d)
	tags[tagFilled] = p.mark(d)
	update, err := h.s.Disks.BeginUpdate(ctx, p.place.Group, d.name, armcompute.DiskUpdate{Tags: site.Pointers(tags)}, nil)
	_, err = arm.Wait(ctx, h.s, "azure.Boot", id, update, err)
	return err
}

// uploadOnce writes with one address.
func (h *Booter) uploadOnce(ctx context.Context, p *plan, d disk, resume bool, progress func(int64)) (err error) {
	const op = "azure.Boot"
	address, err := h.grant(ctx, p, d)
	if err != nil {
		return err
	}
	cfg := nbd.ClientConfig{Network: "unix", Address: d.Socket, Export: d.Export, Contexts: []string{nbd.ContextAllocation}}
	from, err := nbd.Dial(ctx, cfg)
	if errors.Is(err, nbd.ErrContextNotGranted) { // zeroes are read then, not sent all the same
		cfg.Contexts = nil
		from, err = nbd.Dial(ctx, cfg)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "disk %s of the recovery point can't be reached at %s: %w", d.ID, d.Socket, err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if from.Size() != d.Size {
		return dr.Errorf(dr.KindInvalid, op, "disk %s of the recovery point has %d bytes, not %d", d.ID, from.Size(), d.Size)
	}
	c, err := pageblob.Open(address, pageblob.Config{Transport: h.cfg.Transport, Timeout: h.cfg.CallTimeout, BaseDelay: h.cfg.RetryDelay, MaxDelay: 100 * h.cfg.RetryDelay})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	res, err := pageblob.Upload(ctx, c, point{pageblob.FromNBD(from), d.ID}, pageblob.Options{Workers: h.cfg.Workers, Rate: h.cfg.Rate, Requests: h.cfg.Requests, Resume: resume,
		Progress: func(done, _ int64) { progress(min(done, d.Size)) }})
	if err == nil {
		h.cfg.Log.Info("disk filled", "vm", p.name, "disk", d.ID, "written", res.Written, "skipped", res.Skipped, "requests", res.Requests, "seconds", res.Seconds)
	}
	return err
}

// grant asks for an address to write a disk at. It is valid for as long as the disk may take at 10 MiB/s, 1 to 24 hours.
func (h *Booter) grant(ctx context.Context, p *plan, d disk) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	id := p.place.ID(arm.TypeDisk, d.name)
	span := min(max(d.size/(10<<20), 3600), 86400)
	poller, err := h.s.Disks.BeginGrantAccess(ctx, p.place.Group, d.name, armcompute.GrantAccessData{Access: to.Ptr(armcompute.AccessLevelWrite), DurationInSeconds: to.Ptr(int32(span))}, nil) //nolint:gosec // at most a day
	r, err := arm.Wait(ctx, h.s, "azure.Boot", id, poller, err)
	if err == nil && site.Str(r.AccessSAS) == "" {
		err = dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Boot", "%s: Azure gave no address to write the disk at", id)
	}
	return site.Str(r.AccessSAS), err
}

// point makes the errors of reading the recovery point say so: they are not Azure's.
type point struct {
	pageblob.Source
	disk string
}

func (s point) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.say(ctx, s.Source.ReadAt(ctx, p, off))
}

func (s point) Extents(ctx context.Context, off, length int64, fn func(off, n int64, zero bool) error) error {
	var inner error
	err := s.Source.Extents(ctx, off, length, func(off, n int64, zero bool) error {
		inner = fn(off, n, zero)
		return inner
	})
	switch {
	case inner != nil:
		return inner
	case errors.Is(err, nbd.ErrContextNotGranted) && length > 0: // a server that does not tell
		return fn(off, length, false)
	}
	return s.say(ctx, err)
}

func (s point) say(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return dr.Errorf(dr.KindUnavailable, "azure.Boot", "disk %s of the recovery point can't be read: %w", s.disk, err)
}
