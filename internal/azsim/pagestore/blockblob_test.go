package pagestore_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"hash/crc64"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/dr"
)

func ifAbsent() *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: ptr(azcore.ETagAny)}}
}

func (w *world) upload(cl *blockblob.Client, p []byte) {
	w.t.Helper()
	_, err := cl.Upload(w.ctx, body(p), nil)
	w.must(err)
}

func TestBlockBlob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	for _, size := range []int{0, 5, 256 << 10, 1 << 20} { // in memory and in a file
		cl := box.NewBlockBlobClient(fmt.Sprintf("dir/b %d+ü", size))
		data := noise(seeded(uint64(30+size)), size)
		sum := md5.Sum(data)
		out, err := cl.Upload(w.ctx, body(data), &blockblob.UploadOptions{AccessConditions: ifAbsent(), TransactionalValidation: blob.TransferValidationTypeMD5(sum[:]),
			Metadata: map[string]*string{"a": ptr("1"), "b_c": ptr("2")}, HTTPHeaders: &blob.HTTPHeaders{BlobContentType: ptr("text/plain")}})
		w.must(err)
		if !bytes.Equal(out.ContentMD5, sum[:]) {
			t.Errorf("%d: MD5 %x", size, out.ContentMD5)
		}
		_, err = cl.Upload(w.ctx, body(nil), &blockblob.UploadOptions{AccessConditions: ifAbsent()})
		w.refused(err, 409, "BlobAlreadyExists")
		if !bytes.Equal(w.get(cl, 0, 0), data) {
			t.Errorf("%d: reads differently", size)
		}
		props, err := cl.GetProperties(w.ctx, nil)
		w.must(err)
		if *props.ContentLength != int64(size) || !bytes.Equal(props.ContentMD5, sum[:]) || *props.ContentType != "text/plain" || *props.ETag != *out.ETag || *props.Metadata["B_c"] != "2" || *props.BlobType != blob.BlobTypeBlockBlob {
			t.Errorf("%d: %+v", size, props)
		}
		if size > 4 && !bytes.Equal(w.get(cl, 1, 3), data[1:4]) {
			t.Errorf("%d: the range differs", size)
		}
		_, err = cl.DownloadStream(w.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: int64(size)}})
		if size > 0 {
			w.refused(err, 416, "InvalidRange")
		}
		_, err = cl.DownloadStream(w.ctx, &blob.DownloadStreamOptions{AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: ptr(azcore.ETag(`"old"`))}}})
		w.refused(err, 412, "ConditionNotMet")
		wrong := blob.TransferValidationTypeMD5(make([]byte, 16))
		_, err = cl.Upload(w.ctx, body([]byte("x")), &blockblob.UploadOptions{TransactionalValidation: wrong})
		w.refused(err, 400, "Md5Mismatch")
		_, err = cl.Upload(w.ctx, body([]byte("x")), &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeCRC64(5)})
		w.refused(err, 400, "Crc64Mismatch")
		_, err = cl.Upload(w.ctx, body([]byte("x")), &blockblob.UploadOptions{AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: ptr(azcore.ETag(`"old"`))}}})
		w.refused(err, 412, "ConditionNotMet")
		if !bytes.Equal(w.get(cl, 0, 0), data) {
			t.Errorf("%d: a refused upload changed it", size)
		}
		data = []byte("new")
		_, err = cl.Upload(w.ctx, body(data), &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeCRC64(crc64.Checksum(data, crc64.MakeTable(0x9A6C9329AC4BC9B5)))})
		w.must(err)
		if !bytes.Equal(w.get(cl, 0, 0), data) {
			t.Errorf("%d: was not overwritten", size)
		}
		snap, err := cl.CreateSnapshot(w.ctx, nil)
		w.must(err)
		w.upload(cl, []byte("newer"))
		at, err := cl.WithSnapshot(*snap.Snapshot)
		w.must(err)
		if !bytes.Equal(w.get(at, 0, 0), data) {
			t.Errorf("%d: the snapshot changed", size)
		}
	}
	cl := box.NewBlockBlobClient("kind")
	w.upload(cl, []byte("x"))
	pages := box.NewPageBlobClient("kind")
	_, err := pages.UploadPages(w.ctx, body(make([]byte, 512)), blob.HTTPRange{Count: 512}, nil)
	w.refused(err, 409, "InvalidBlobType")
	_, err = pages.Resize(w.ctx, 512, nil)
	w.refused(err, 409, "InvalidBlobType")
	_, err = w.raw(pages, nil)
	w.refused(err, 409, "InvalidBlobType")
	cp := box.NewBlockBlobClient("cp")
	_, err = cp.CopyFromURL(w.ctx, w.sas("box", "kind", "r", time.Hour), nil)
	w.must(err)
	put := box.NewBlockBlobClient("put")
	_, err = put.UploadBlobFromURL(w.ctx, w.sas("box", "kind", "r", time.Hour), nil)
	w.must(err)
	w.upload(cl, []byte("y"))
	if string(w.get(cp, 0, 0))+string(w.get(put, 0, 0)) != "xx" {
		t.Error("a copy follows its source")
	}
	old, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	for _, tt := range []struct {
		c  blob.ModifiedAccessConditions
		ok bool
	}{
		{blob.ModifiedAccessConditions{IfMatch: old.ETag}, true}, {blob.ModifiedAccessConditions{IfMatch: ptr(azcore.ETagAny)}, true},
		{blob.ModifiedAccessConditions{IfNoneMatch: old.ETag}, false}, {blob.ModifiedAccessConditions{IfNoneMatch: ptr(azcore.ETag(`"x"`))}, true},
		{blob.ModifiedAccessConditions{IfUnmodifiedSince: old.LastModified}, true}, {blob.ModifiedAccessConditions{IfUnmodifiedSince: ptr(old.LastModified.Add(-time.Hour))}, false},
		{blob.ModifiedAccessConditions{IfModifiedSince: old.LastModified}, false}, {blob.ModifiedAccessConditions{IfModifiedSince: ptr(old.LastModified.Add(-time.Hour))}, true},
	} {
		c := &blob.AccessConditions{ModifiedAccessConditions: &tt.c}
		_, readErr := cl.GetProperties(w.ctx, &blob.GetPropertiesOptions{AccessConditions: c})
		_, writeErr := cl.CreateSnapshot(w.ctx, &blob.CreateSnapshotOptions{AccessConditions: c})
		if tt.ok {
			w.must(readErr)
			w.must(writeErr)
			continue
		}
		if status := 304; tt.c.IfUnmodifiedSince == nil {
			w.refused(readErr, status, "ConditionNotMet")
		}
		w.refused(writeErr, 412, "ConditionNotMet")
	}
	_, err = cl.SetHTTPHeaders(w.ctx, blob.HTTPHeaders{BlobCacheControl: ptr("none")}, nil)
	w.must(err)
	props, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	if *props.CacheControl != "none" || props.ContentMD5 != nil {
		t.Errorf("headers: %+v", props)
	}
}

func TestContainers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cl := w.service().NewContainerClient("box")
	_, err := cl.GetProperties(w.ctx, nil)
	w.refused(err, 404, "ContainerNotFound")
	_, err = cl.Create(w.ctx, &container.CreateOptions{Metadata: map[string]*string{"k": ptr("v")}})
	w.must(err)
	_, err = cl.Create(w.ctx, nil)
	w.refused(err, 409, "ContainerAlreadyExists")
	for _, name := range []string{"UP", "a", "a--b", "-ab", "ab-", strings.Repeat("a", 64)} {
		_, err = w.service().NewContainerClient(name).Create(w.ctx, nil)
		w.refused(err, 400, "InvalidResourceName")
	}
	props, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	if *props.Metadata["K"] != "v" {
		t.Errorf("%+v", props)
	}
	_, err = cl.SetMetadata(w.ctx, &container.SetMetadataOptions{Metadata: map[string]*string{"k": ptr("w")}})
	w.must(err)
	if props, err = cl.GetProperties(w.ctx, nil); err != nil || *props.Metadata["K"] != "w" {
		t.Errorf("%+v, %v", props, err)
	}
	bb := cl.NewBlockBlobClient("b")
	w.upload(bb, make([]byte, 1<<20))
	_, err = cl.Delete(w.ctx, nil)
	w.must(err)
	_, err = cl.Create(w.ctx, nil)
	w.refused(err, 409, "ContainerBeingDeleted")
	_, err = bb.Upload(w.ctx, body(nil), nil)
	w.refused(err, 404, "ContainerNotFound")
	_, err = bb.DownloadStream(w.ctx, nil)
	w.refused(err, 404, "ContainerNotFound")
	w.clock.move(31 * time.Second)
	_, err = cl.Create(w.ctx, nil)
	w.must(err)
	_, err = bb.GetProperties(w.ctx, nil)
	w.refused(err, 404, "BlobNotFound")
	w.box("box2")
	var names []string
	for p := w.service().NewListContainersPager(&service.ListContainersOptions{MaxResults: ptr(int32(1))}); p.More(); {
		page, err := p.NextPage(w.ctx)
		w.must(err)
		for _, c := range page.ContainerItems {
			names = append(names, *c.Name)
		}
	}
	if !slices.Equal(names, []string{"box", "box2"}) {
		t.Errorf("containers %v", names)
	}
	info, err := w.service().GetAccountInfo(w.ctx, nil)
	w.must(err)
	if *info.AccountKind != service.AccountKindStorageV2 {
		t.Errorf("%+v", info)
	}
	w.must(w.s.DeleteAccount("acct"))
	if err := w.s.DeleteAccount("acct"); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("deleted twice: %v", err)
	}
	_, err = cl.GetProperties(w.ctx, nil)
	w.refused(err, 404, "ResourceNotFound")
}

func TestList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	var want []string
	for i := range 23 {
		name := fmt.Sprintf("p/%02d/<&>", i)
		want = append(want, name)
		w.upload(box.NewBlockBlobClient(name), []byte(name))
	}
	page := w.page(box, "q/page", mib)
	_, err := page.SetMetadata(w.ctx, map[string]*string{"point": ptr("3")}, nil)
	w.must(err)
	snap, err := page.CreateSnapshot(w.ctx, nil)
	w.must(err)
	for _, most := range []int32{0, 1, 5, 23, 100} {
		o := &container.ListBlobsFlatOptions{Prefix: ptr("p/")}
		if most > 0 {
			o.MaxResults = &most
		}
		var got []string
		pages := 0
		for p := box.NewListBlobsFlatPager(o); p.More(); pages++ {
			out, err := p.NextPage(w.ctx)
			w.must(err)
			for _, b := range out.Segment.BlobItems {
				got = append(got, *b.Name)
				if *b.Properties.ContentLength != int64(len(*b.Name)) || *b.Properties.BlobType != blob.BlobTypeBlockBlob || len(b.Properties.ContentMD5) != 16 {
					t.Errorf("%+v", b.Properties)
				}
			}
		}
		if !slices.Equal(got, want) || most == 5 && pages != 5 {
			t.Errorf("by %d in %d pages: %v", most, pages, got)
		}
	}
	out, err := box.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: ptr("q"), Include: container.ListBlobsInclude{Snapshots: true, Metadata: true}}).NextPage(w.ctx)
	w.must(err)
	if items := out.Segment.BlobItems; len(items) != 2 || *items[0].Snapshot != *snap.Snapshot || items[1].Snapshot != nil || *items[1].Metadata["point"] != "3" || *items[1].Properties.BlobSequenceNumber != 0 {
		t.Errorf("snapshots: %+v", items)
	}
	var groups, names []string
	for p := box.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{MaxResults: ptr(int32(1))}); p.More(); {
		out, err := p.NextPage(w.ctx)
		w.must(err)
		for _, b := range out.Segment.BlobPrefixes {
			groups = append(groups, *b.Name)
		}
		for _, b := range out.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	if !slices.Equal(groups, []string{"p/", "q/"}) || len(names) != 0 {
		t.Errorf("groups %v, names %v", groups, names)
	}
	_, err = box.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Marker: ptr("%%")}).NextPage(w.ctx)
	w.refused(err, 400, "InvalidQueryParameterValue")
}

func TestSAS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	w.upload(box.NewBlockBlobClient("old"), []byte("old"))
	open := func(url string) *blockblob.Client {
		t.Helper()
		cl, err := blockblob.NewClientWithNoCredential(url, &blockblob.ClientOptions{ClientOptions: w.options()})
		w.must(err)
		return cl
	}
	// What may only create can do nothing else.
	create := open(w.sas("box", "new", "c", time.Hour))
	w.upload(create, []byte("new"))
	_, err := create.Upload(w.ctx, body(nil), nil)
	w.refused(err, 403, "UnauthorizedBlobOverwrite")
	_, err = create.Upload(w.ctx, body([]byte("new")), &blockblob.UploadOptions{AccessConditions: ifAbsent()}) // as after a lost answer
	w.refused(err, 403, "UnauthorizedBlobOverwrite")
	_, err = create.GetProperties(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = create.DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = create.Delete(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = create.SetMetadata(w.ctx, map[string]*string{"a": ptr("b")}, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	if got := w.get(box.NewBlockBlobClient("new"), 0, 0); string(got) != "new" {
		t.Errorf("the blob is %q", got)
	}
	write := open(w.sas("box", "old", "w", time.Hour))
	w.upload(write, []byte("newer"))
	_, err = write.DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	read := w.sas("box", "old", "r", time.Hour)
	w.get(open(read), 0, 0)
	for name, change := range map[string]string{"another blob": strings.Replace(read, "/old?", "/new?", 1), "more permissions": strings.Replace(read, "sp=r", "sp=rw", 1),
		"a container's": strings.Replace(read, "sr=b", "sr=c", 1), "longer": strings.Replace(read, "se=20", "se=21", 1), "another account": strings.Replace(read, "/acct/", "/other/", 1)} {
		if strings.Contains(change, "/other/") {
			w.s.AddAccount("other")
		}
		if change == read {
			t.Fatalf("%s: nothing was changed", name)
		}
		_, err := open(change).DownloadStream(w.ctx, nil)
		w.refused(err, 403, "AuthenticationFailed")
	}
	whole := w.sas("box", "", "rl", time.Hour)
	lister, err := container.NewClientWithNoCredential(whole, &container.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	out, err := lister.NewListBlobsFlatPager(nil).NextPage(w.ctx)
	w.must(err)
	if len(out.Segment.BlobItems) != 2 {
		t.Errorf("listed %d", len(out.Segment.BlobItems))
	}
	w.get(lister.NewBlockBlobClient("old"), 0, 0)
	_, err = lister.NewBlockBlobClient("old").Delete(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = lister.Delete(w.ctx, nil)
	w.refused(err, 403, "AuthorizationFailure")
	blind, err := container.NewClientWithNoCredential(w.sas("box", "", "r", time.Hour), &container.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	_, err = blind.NewListBlobsFlatPager(nil).NextPage(w.ctx)
	w.refused(err, 403, "AuthorizationPermissionMismatch")

	account := sas.AccountSignatureValues{Permissions: "rl", ResourceTypes: "o", ExpiryTime: w.clock.now().Add(time.Hour).UTC()}
	q, err := account.SignWithSharedKey(w.credential())
	w.must(err)
	w.get(open(w.url+"/storage/acct/box/old?"+q.Encode()), 0, 0)
	lister, err = container.NewClientWithNoCredential(w.url+"/storage/acct/box?"+q.Encode(), &container.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	_, err = lister.NewListBlobsFlatPager(nil).NextPage(w.ctx)
	w.refused(err, 403, "AuthorizationResourceTypeMismatch")

	w.clock.move(61 * time.Minute)
	_, err = open(read).DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
}

// token is a credential that always has the same token.
type token string

func (k token) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(k), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func TestUserDelegation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.upload(w.box("box").NewBlockBlobClient("b"), []byte("x"))
	// Microsoft's client takes the account from the host's name.
	o := w.options()
	o.Transport = rewrite{w}
	signIn := func(k token) *service.Client {
		t.Helper()
		cl, err := service.NewClient("https://acct.blob.core.windows.net/", k, &service.ClientOptions{ClientOptions: o})
		w.must(err)
		return cl
	}
	now := w.clock.now().UTC()
	info := func(life time.Duration) service.KeyInfo {
		return service.KeyInfo{Start: ptr(now.Add(-time.Minute).Format(sas.TimeFormat)), Expiry: ptr(now.Add(life).Format(sas.TimeFormat))}
	}
	_, err := signIn("bad").GetUserDelegationCredential(w.ctx, info(time.Hour), nil)
	w.refused(err, 401, "InvalidAuthenticationInfo")
	_, err = signIn("good-token").GetUserDelegationCredential(w.ctx, info(8*24*time.Hour), nil)
	w.refused(err, 400, "InvalidXmlNodeValue")
	_, err = w.service().GetUserDelegationCredential(w.ctx, info(time.Hour), nil)
	w.refused(err, 403, "AuthenticationFailed")
	cred, err := signIn("good-token").GetUserDelegationCredential(w.ctx, info(time.Hour), nil)
	w.must(err)
	values := sas.BlobSignatureValues{ContainerName: "box", BlobName: "b", Permissions: "r", ExpiryTime: now.Add(3 * time.Hour)}
	q, err := values.SignWithUserDelegation(cred)
	w.must(err)
	open := func(query string) *blockblob.Client {
		t.Helper()
		cl, err := blockblob.NewClientWithNoCredential(w.url+"/storage/acct/box/b?"+query, &blockblob.ClientOptions{ClientOptions: w.options()})
		w.must(err)
		return cl
	}
	cl := open(q.Encode())
	w.get(cl, 0, 0)
	_, err = cl.Delete(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = open(strings.Replace(q.Encode(), "skoid=oid-1", "skoid=oid-2", 1)).DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
	w.clock.move(2 * time.Hour) // the key ends before the signature
	_, err = cl.DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
}

func TestKeysAndFirewall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cl := w.box("box").NewBlockBlobClient("b")
	w.upload(cl, []byte("x"))
	signed := w.sas("box", "b", "r", time.Hour)
	reader, err := blockblob.NewClientWithNoCredential(signed, &blockblob.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	try := func(status int, code string) {
		t.Helper()
		_, err := cl.DownloadStream(w.ctx, nil)
		w.refused(err, status, code)
	}
	w.must(w.s.Configure("acct", pagestore.AccountSettings{Firewall: true}))
	try(403, "AuthorizationFailure")
	w.must(w.s.Configure("acct", pagestore.AccountSettings{NoKeys: true}))
	try(403, "KeyBasedAuthenticationNotPermitted")
	_, err = reader.DownloadStream(w.ctx, nil)
	w.refused(err, 403, "KeyBasedAuthenticationNotPermitted")
	w.must(w.s.Configure("acct", pagestore.AccountSettings{}))
	w.get(reader, 0, 0)
	w.clock.move(20 * time.Minute) // the client's clock is behind
	try(403, "AuthenticationFailed")
	w.clock.move(-20 * time.Minute)
	key, err := w.s.RotateKey("acct")
	w.must(err)
	try(403, "AuthenticationFailed")
	_, err = reader.DownloadStream(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
	if w.s.AddAccount("acct") != key {
		t.Error("adding an account again changed its key")
	}
	if _, err := base64.StdEncoding.DecodeString(key); err != nil {
		t.Error(err)
	}
	w.key = key
	w.get(w.service().NewContainerClient("box").NewBlockBlobClient("b"), 0, 0)
	_, rotateErr := w.s.RotateKey("none")
	for _, err := range []error{rotateErr, w.s.Configure("none", pagestore.AccountSettings{})} {
		if dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("missing account: %v", err)
		}
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	cl := box.NewBlockBlobClient("b")
	w.upload(cl, []byte("1"))
	until := w.clock.now().Add(time.Hour)
	locked, unlocked := blob.ImmutabilityPolicySettingLocked, blob.ImmutabilityPolicySettingUnlocked
	set := func(until time.Time, mode blob.ImmutabilityPolicySetting) error {
		_, err := cl.SetImmutabilityPolicy(w.ctx, until, &blob.SetImmutabilityPolicyOptions{Mode: &mode})
		return err
	}
	w.refused(set(until, unlocked), 409, "InvalidOperation")
	w.must(w.s.Configure("acct", pagestore.AccountSettings{Immutable: true}))
	w.must(set(until, unlocked))
	refusals := func(code string) {
		t.Helper()
		_, err := cl.Delete(w.ctx, nil)
		w.refused(err, 409, code)
		_, err = cl.SetMetadata(w.ctx, map[string]*string{"a": ptr("b")}, nil)
		w.refused(err, 409, code)
		_, err = box.Delete(w.ctx, nil)
		w.refused(err, 409, code)
	}
	refusals("BlobImmutableDueToPolicy")
	w.must(set(until.Add(-time.Minute), unlocked)) // what is not locked can be made shorter
	_, err := cl.DeleteImmutabilityPolicy(w.ctx, nil)
	w.must(err)
	w.must(set(until, locked))
	w.refused(set(until.Add(-time.Minute), locked), 409, "BlobImmutableDueToPolicy")
	w.refused(set(until, unlocked), 409, "BlobImmutableDueToPolicy")
	w.refused(set(w.clock.now().Add(-time.Minute), locked), 400, "InvalidHeaderValue")
	_, err = cl.DeleteImmutabilityPolicy(w.ctx, nil)
	w.refused(err, 409, "ImmutabilityPolicyDeleteOnLockedPolicy")
	w.must(set(until.Add(time.Minute), locked))
	props, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	if *props.ImmutabilityPolicyMode != blob.ImmutabilityPolicyModeLocked || props.ImmutabilityPolicyExpiresOn.Sub(until).Abs() > 62*time.Second {
		t.Errorf("%v %v", *props.ImmutabilityPolicyMode, props.ImmutabilityPolicyExpiresOn)
	}
	// Overwriting makes a version, and what was retained stays.
	out, err := cl.Upload(w.ctx, body([]byte("2")), nil)
	w.must(err)
	var versions []string
	for p := box.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: container.ListBlobsInclude{Versions: true, ImmutabilityPolicy: true, LegalHold: true}}); p.More(); {
		page, err := p.NextPage(w.ctx)
		w.must(err)
		for _, b := range page.Segment.BlobItems {
			versions = append(versions, *b.VersionID)
		}
	}
	if len(versions) != 2 || versions[1] != *out.VersionID {
		t.Fatalf("versions %v, current %s", versions, *out.VersionID)
	}
	v1, err := cl.WithVersionID(versions[0])
	w.must(err)
	if string(w.get(v1, 0, 0))+string(w.get(cl, 0, 0)) != "12" {
		t.Error("the versions differ from what was written")
	}
	_, err = v1.Delete(w.ctx, nil)
	w.refused(err, 409, "BlobImmutableDueToPolicy")

	_, err = cl.SetLegalHold(w.ctx, true, nil)
	w.must(err)
	refusals("BlobImmutableDueToLegalHold")
	_, err = cl.SetLegalHold(w.ctx, false, nil)
	w.must(err)
	_, err = cl.Delete(w.ctx, nil)
	w.must(err)
	_, err = cl.GetProperties(w.ctx, nil)
	w.refused(err, 404, "BlobNotFound")
	w.get(v1, 0, 0)
	w.clock.move(62 * time.Minute) // a signed address, because the client's clock stays behind
	for _, perms := range [...]string{"d", "x"} {
		agent, err := blockblob.NewClientWithNoCredential(w.sas("box", "b", perms, time.Hour), &blockblob.ClientOptions{ClientOptions: w.options()})
		w.must(err)
		agent, err = agent.WithVersionID(versions[0])
		w.must(err)
		if _, err = agent.Delete(w.ctx, nil); perms == "d" {
			w.refused(err, 403, "AuthorizationPermissionMismatch")
			continue
		}
		w.must(err)
	}
	w.clock.move(-62 * time.Minute)
	_, err = v1.GetProperties(w.ctx, nil)
	w.refused(err, 404, "BlobNotFound")

	mode := unlocked
	exp := w.clock.now().Add(time.Hour)
	kept := box.NewBlockBlobClient("kept")
	_, err = kept.Upload(w.ctx, body([]byte("3")), &blockblob.UploadOptions{ImmutabilityPolicyMode: &mode, ImmutabilityPolicyExpiryTime: &exp, LegalHold: ptr(true)})
	w.must(err)
	_, err = kept.Delete(w.ctx, nil)
	w.refused(err, 409, "BlobImmutableDueToLegalHold")
	w.must(w.s.Configure("acct", pagestore.AccountSettings{})) // without versions, overwriting would lose it
	_, err = kept.Upload(w.ctx, body([]byte("4")), nil)
	w.refused(err, 409, "BlobImmutableDueToLegalHold")
	if string(w.get(kept, 0, 0)) != "3" {
		t.Error("what is held was overwritten")
	}
	w.must(w.s.Configure("acct", pagestore.AccountSettings{Immutable: true}))
	page := w.page(box, "page", mib)
	_, err = page.SetLegalHold(w.ctx, true, nil)
	w.must(err)
	_, err = page.UploadPages(w.ctx, body(make([]byte, 512)), blob.HTTPRange{Count: 512}, nil)
	w.refused(err, 409, "BlobImmutableDueToLegalHold")
	cutter := w.sas("box", "kept2", "c", time.Hour) // who may create may not retain
	agent, err := blockblob.NewClientWithNoCredential(cutter, &blockblob.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	_, err = agent.Upload(w.ctx, body(nil), &blockblob.UploadOptions{ImmutabilityPolicyMode: &mode, ImmutabilityPolicyExpiryTime: &exp})
	w.refused(err, 403, "AuthorizationPermissionMismatch")
}

// TestOverwriteWhileRead keeps what a reader has begun.
func TestOverwriteWhileRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cl := w.box("box").NewBlockBlobClient("b")
	data := noise(seeded(40), 8<<20)
	w.upload(cl, data)
	out, err := cl.DownloadStream(w.ctx, nil)
	w.must(err)
	w.upload(cl, []byte("other"))
	got, err := io.ReadAll(out.Body)
	w.must(err)
	w.must(out.Body.Close())
	if !bytes.Equal(got, data) {
		t.Error("the reader got something else")
	}
}
