package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/vhd"
)

// doctorPrefix is the folder of the doctor's blobs.
const doctorPrefix = "holdfast-doctor/"

func (d *doctor) storage(ctx context.Context) {
	key, kerr := d.cfg.StorageKey()
	switch {
	case d.cfg.StorageAccount == "":
		d.add(CheckStorage, StatusSkipped, "no storage account is configured", "")
		return
	case d.opts.ReadOnly:
		d.add(CheckStorage, StatusSkipped, "would write a blob", "")
		return
	case kerr != nil:
		d.fail(CheckStorage, kerr)
		return
	case key == "" && d.failedOf([]string{CheckSignIn}) != "":
		d.add(CheckStorage, StatusSkipped, CheckSignIn+" failed", "")
		return
	}
	c, err := d.s.Container()
	if err != nil {
		d.fail(CheckStorage, err)
		return
	}
	began := time.Now()
	b := c.NewBlockBlobClient(doctorPrefix + d.run)
	where := "blob " + doctorPrefix + d.run + " in " + d.cfg.StorageAccount + "/" + d.cfg.Container
	err = d.blobTrip(ctx, b, where)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), doctorClean)
	defer cancel()
	_, derr := b.Delete(clean, nil)
	if responseCode(derr) == "BlobNotFound" {
		derr = nil
	}
	switch {
	case err != nil:
		d.fail(CheckStorage, err)
		return
	case responseCode(derr) == "BlobImmutableDueToPolicy":
		d.add(CheckStorage, StatusWarning, where+" was written and read, and the account keeps it: immutability is on", "Choose an account without default immutability for warm replicas: their page blobs change all the time.")
		return
	case derr != nil:
		d.fail(CheckStorage, arm.Classify("azure.Doctor", "deleting "+where, derr))
		return
	}
	if _, err := b.GetProperties(clean, nil); responseCode(err) != "BlobNotFound" {
		d.add(CheckStorage, StatusWarning, where+" was deleted and is still there", "Look at the account's soft delete and versions; the blob is small.")
		return
	}
	d.add(CheckStorage, StatusOK, fmt.Sprintf("%s: written once, read, not overwritten, deleted in %s", where, time.Since(began).Round(time.Millisecond)), "")
}

// blobTrip writes a blob, reads it, and sees a second write refused.
func (d *doctor) blobTrip(ctx context.Context, b *blockblob.Client, where string) error {
	const op = "azure.Doctor"
	content := make([]byte, 4096)
	_, _ = rand.Read(content) // never fails
	put := func(p []byte) error {
		sent, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*d.opts.CallTimeout) // as for the disk
		defer cancel()
		_, err := b.Upload(sent, streaming.NopCloser(bytes.NewReader(p)), &blockblob.UploadOptions{
			AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: ptr(azcore.ETagAny)}}})
		return err
	}
	if err := put(content); err != nil && !exists(err) { // its own write whose answer was lost: the content tells
		return arm.Classify(op, "writing "+where, err)
	}
	got, err := download(ctx, func() (io.ReadCloser, error) {
		r, err := b.DownloadStream(ctx, nil)
		return r.Body, err
	}, len(content)+1)
	if err != nil {
		return arm.Classify(op, "reading "+where, err)
	}
	if !bytes.Equal(got, content) {
		return dr.New(dr.KindCorrupt, "", op, "reading %s: it is not what was written", where).WithHint("Look for a proxy that changes what passes through.")
	}
	if err := put([]byte("second")); !exists(err) {
		if err != nil {
			return arm.Classify(op, "overwriting "+where, err)
		}
		return dr.New(dr.KindPrecondition, "", op, "%s could be overwritten though the request forbade it", where).WithHint("Look for a proxy that drops the header If-None-Match.")
	}
	return nil
}

// exists tells that a create-only write was refused because the blob is there.
func exists(err error) bool {
	var r *azcore.ResponseError
	return errors.As(err, &r) && (r.ErrorCode == "BlobAlreadyExists" || r.StatusCode == http.StatusPreconditionFailed)
}

func ptr[T any](v T) *T { return &v }

func download(_ context.Context, open func() (io.ReadCloser, error), most int) ([]byte, error) {
	body, err := open()
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(io.LimitReader(body, int64(most)))
	return p, errors.Join(err, body.Close())
}

// The doctor's disk. Azure takes uploads of 20 MiB and more ("Disks - Create Or
// Update", uploadSizeBytes); only so much of it is written.
const (
	doctorDisk  = 20 << 20
	doctorBytes = 64 << 10
	accessTime  = 15 * time.Minute
)

func (d *doctor) disk(ctx context.Context) {
	if d.opts.ReadOnly {
		d.add(CheckDisk, StatusSkipped, "would make a disk", "")
		return
	}
	if d.keeps {
		d.add(CheckDisk, StatusSkipped, "the identity may not delete the disk that would be made", "")
		return
	}
	name := "holdfast-" + d.run
	id := d.cfg.ID(arm.TypeDisk, name)
	began := time.Now()
	err := d.diskTrip(ctx, name, id)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), doctorClean)
	defer cancel()
	mine := arm.Resource{ID: id, Name: name, Type: arm.TypeDisk, Tags: map[string]string{arm.TagOwner: d.run}}
	if derr := d.s.Remove(clean, []arm.Resource{mine}); derr != nil {
		err = errors.Join(err, derr)
	}
	if err != nil {
		d.fail(CheckDisk, err)
		return
	}
	if err := d.s.Resource(clean, id, arm.DiskAPI, nil); !arm.IsAbsent(err) {
		d.add(CheckDisk, StatusWarning, id+" was deleted and is still told of", "Run 'holdfast azure cleanup' in half an hour.")
		return
	}
	d.add(CheckDisk, StatusOK, fmt.Sprintf("%s: made, written, read and deleted in %s", name, time.Since(began).Round(time.Millisecond)), "")
}

// diskTrip makes a disk, uploads a little into it, and reads it back.
func (d *doctor) diskTrip(ctx context.Context, name, id string) error {
	const op = "azure.Doctor"
	tags := map[string]*string{}
	for k, v := range d.cfg.Tags {
		tags[k] = ptr(v)
	}
	tags[arm.TagOwner], tags[arm.TagPurpose] = ptr(d.run), ptr(arm.PurposeDoctor)
	tags[arm.TagUntil] = ptr(d.opts.Now().Add(doctorLife).UTC().Format(time.RFC3339))
	kind := d.cfg.DiskType
	if kind == "" {
		kind = arm.DefaultDiskType
	}
	size := int64(doctorDisk + vhd.SectorSize)
	spec := armcompute.Disk{Location: ptr(d.s.Location()), Tags: tags, SKU: &armcompute.DiskSKU{Name: ptr(armcompute.DiskStorageAccountTypes(kind))},
		Properties: &armcompute.DiskProperties{CreationData: &armcompute.CreationData{CreateOption: ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: &size},
			HyperVGeneration: ptr(armcompute.HyperVGenerationV2), OSType: ptr(armcompute.OperatingSystemTypesLinux)}}
	if d.cfg.Zone != "" && strings.HasSuffix(kind, "_LRS") {
		spec.Zones = []*string{ptr(d.cfg.Zone)}
	}
	// What was sent is not given up before its answer: else it could be made after the clean-up.
	sent, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*d.opts.CallTimeout)
	defer cancel()
	p, err := d.s.Disks.BeginCreateOrUpdate(sent, d.cfg.ResourceGroup, name, spec, nil)
	if _, err = arm.Wait(ctx, d.s, op, "making "+id, p, err); err != nil {
		return err
	}
	content := make([]byte, doctorBytes)
	_, _ = rand.Read(content) // never fails
	err = d.access(ctx, name, id, armcompute.AccessLevelWrite, func(c *pageblob.Client) error {
		footer := vhd.Footer{Size: doctorDisk, Time: d.opts.Now(), Kind: vhd.Fixed}
		_, _ = rand.Read(footer.ID[:]) // never fails
		end, err := vhd.EncodeFooter(footer)
		if err != nil {
			return err
		}
		for _, w := range []struct {
			off int64
			p   []byte
		}{{0, content}, {doctorDisk, end}} {
			if _, err := c.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(w.p)), blob.HTTPRange{Offset: w.off, Count: int64(len(w.p))}, nil); err != nil {
				return arm.Classify(op, "writing "+id, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.access(ctx, name, id, armcompute.AccessLevelRead, func(c *pageblob.Client) error {
		got, err := download(ctx, func() (io.ReadCloser, error) {
			r, err := c.DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: 0, Count: doctorBytes}})
			return r.Body, err
		}, doctorBytes+1)
		if err != nil {
			return arm.Classify(op, "reading "+id, err)
		}
		if !bytes.Equal(got, content) {
			return dr.New(dr.KindCorrupt, "", op, "reading %s: it is not what was written", id).WithHint("Look for a proxy that changes what passes through.")
		}
		return nil
	})
}

// access gives f a client of the disk's signed address, and takes the address back.
func (d *doctor) access(ctx context.Context, name, id string, level armcompute.AccessLevel, f func(*pageblob.Client) error) error {
	const op = "azure.Doctor"
	g, err := d.s.Disks.BeginGrantAccess(ctx, d.cfg.ResourceGroup, name, armcompute.GrantAccessData{Access: &level, DurationInSeconds: ptr(int32(accessTime / time.Second))}, nil)
	granted, err := arm.Wait(ctx, d.s, op, "getting an address of "+id, g, err)
	if err != nil {
		return err
	}
	c, err := pageblob.NewClientWithNoCredential(deref(granted.AccessSAS), &pageblob.ClientOptions{ClientOptions: d.s.ClientOptions()})
	if err != nil {
		return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: Azure gave an address that is none", id)
	}
	err = f(c)
	r, rerr := d.s.Disks.BeginRevokeAccess(context.WithoutCancel(ctx), d.cfg.ResourceGroup, name, nil)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), doctorClean)
	defer cancel()
	_, rerr = arm.Wait(clean, d.s, op, "taking back the address of "+id, r, rerr)
	return errors.Join(err, rerr)
}

// Leftover is a resource of a doctor or of a test failover.
type Leftover struct {
	arm.Resource
	Purpose string    `json:"purpose"`
	Owner   string    `json:"owner"`
	Until   time.Time `json:"until,omitzero"` // zero = it does not say
	Over    bool      `json:"over"`           // its time has passed: nothing works with it any more
}

// Leftovers lists what doctors and tests have made and not removed, in the order
// in which it can be deleted. Of what is Over nobody makes use any more; the rest
// may belong to a test that runs.
func Leftovers(ctx context.Context, s *arm.Session, now time.Time) ([]Leftover, error) {
	list, err := s.ListByTag(ctx, arm.TagOwner, "")
	if err != nil {
		return nil, err
	}
	var out []Leftover
	for _, r := range list {
		l := Leftover{Resource: r, Purpose: r.Tag(arm.TagPurpose), Owner: r.Tag(arm.TagOwner)}
		if l.Owner == "" || l.Purpose != arm.PurposeDoctor && l.Purpose != arm.PurposeTest {
			continue
		}
		if until, err := time.Parse(time.RFC3339, r.Tag(arm.TagUntil)); err == nil {
			l.Until, l.Over = until, now.After(until)
		}
		out = append(out, l)
	}
	return out, nil
}

// RemoveBlobs deletes what killed doctors left in the configured container, and
// says how many blobs that were. Without a container there is nothing to do.
func RemoveBlobs(ctx context.Context, s *arm.Session, now time.Time) (int, error) {
	const op = "azure.RemoveBlobs"
	if s.Config().StorageAccount == "" {
		return 0, nil
	}
	c, err := s.Container()
	if err != nil {
		return 0, err
	}
	where := s.Config().StorageAccount + "/" + s.Config().Container
	n := 0
	pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: ptr(doctorPrefix)})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return n, arm.Classify(op, "listing "+where, err)
		}
		if page.Segment == nil {
			continue
		}
		for _, b := range page.Segment.BlobItems {
			if b == nil || b.Properties == nil || b.Properties.LastModified == nil || now.Sub(*b.Properties.LastModified) < doctorLife {
				continue
			}
			if _, err := c.NewBlobClient(deref(b.Name)).Delete(ctx, nil); err != nil && responseCode(err) != "BlobNotFound" {
				return n, arm.Classify(op, "deleting "+deref(b.Name)+" in "+where, err)
			}
			n++
		}
	}
	return n, nil
}

// leftovers removes what killed doctors left, and tells of tests' litter.
func (d *doctor) leftovers(ctx context.Context) {
	list, err := Leftovers(ctx, d.s, d.opts.Now())
	if err != nil {
		d.fail(CheckLeftovers, err)
		return
	}
	var mine []arm.Resource
	others := 0
	for _, l := range list {
		switch {
		case l.Over && l.Purpose == arm.PurposeDoctor:
			mine = append(mine, l.Resource)
		case l.Over:
			others++
		}
	}
	if d.opts.ReadOnly {
		others, mine = others+len(mine), nil
	}
	if err := d.s.Remove(ctx, mine); err != nil {
		d.fail(CheckLeftovers, err)
		return
	}
	switch {
	case others > 0:
		d.add(CheckLeftovers, StatusWarning, fmt.Sprintf("%d resources of earlier runs are still there", others), "'holdfast azure cleanup' lists and removes them.")
	case len(mine) > 0:
		d.add(CheckLeftovers, StatusOK, fmt.Sprintf("removed %d resources that an earlier doctor had left", len(mine)), "")
	default:
		d.add(CheckLeftovers, StatusOK, "none", "")
	}
	if !d.opts.ReadOnly && d.cfg.StorageAccount != "" && d.failedOf([]string{CheckReach}) == "" {
		_, _ = RemoveBlobs(ctx, d.s, d.opts.Now()) // the step "storage" says what is wrong with the account
	}
}
