package pagestore_test

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"hash/crc64"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
)

// TestDiffModel writes at random between snapshots, deletes some of them, and
// compares every difference with a model that remembers what was written.
func TestDiffModel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const pages = 4096
	cl := w.page(w.box("box"), "disk", pages*512)
	type state struct {
		stamp   string
		written [pages]bool
		touched [pages]bool // since the snapshot before
		content []byte
	}
	r := seeded(11)
	content := make([]byte, pages*512)
	var written, touched [pages]bool
	var snaps []state
	check := func(cl *pageblob.Client, from state, touched, written [pages]bool, what string) {
		t.Helper()
		got, _ := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: &from.stamp})
		var want []pr
		for p := range int64(pages) {
			if !touched[p] || !written[p] && !from.written[p] {
				continue
			}
			if n := len(want); n > 0 && want[n-1].off+want[n-1].n == p*512 && want[n-1].cleared == !written[p] {
				want[n-1].n += 512
				continue
			}
			want = append(want, pr{p * 512, 512, !written[p]})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s:\n%v, want\n%v", what, got, want)
		}
	}
	for range 12 {
		for range 1 + r.IntN(25) {
			n := 1 + r.Int64N(64)
			p := r.Int64N(pages - n)
			switch r.IntN(4) {
			case 0:
				_, err := cl.ClearPages(w.ctx, blob.HTTPRange{Offset: p * 512, Count: n * 512}, nil)
				w.must(err)
				clear(content[p*512 : (p+n)*512])
			case 1: // zeros that are written are pages all the same
				w.put(cl, p*512, make([]byte, n*512))
				clear(content[p*512 : (p+n)*512])
			default:
				data := noise(r, int(n*512))
				w.put(cl, p*512, data)
				copy(content[p*512:], data)
			}
			for i := p; i < p+n; i++ {
				touched[i] = true
			}
		}
		// What is written now is asked for, and checked by its content below.
		written = [pages]bool{}
		list, _ := w.ranges(cl, nil)
		for _, p := range pagesOf(list, 512) {
			written[p] = true
		}
		for p := range pages {
			if !written[p] && !bytes.Equal(content[p*512:(p+1)*512], make([]byte, 512)) {
				t.Fatalf("page %d has content and no range", p)
			}
		}
		snap, err := cl.CreateSnapshot(w.ctx, nil)
		w.must(err)
		snaps = append(snaps, state{*snap.Snapshot, written, touched, bytes.Clone(content)})
		touched = [pages]bool{}
		if len(snaps) > 3 && r.IntN(3) == 0 { // its changes go to the one after
			i := 1 + r.IntN(len(snaps)-2)
			at, err := cl.WithSnapshot(snaps[i].stamp)
			w.must(err)
			_, err = at.Delete(w.ctx, nil)
			w.must(err)
			for p := range pages {
				snaps[i+1].touched[p] = snaps[i+1].touched[p] || snaps[i].touched[p]
			}
			snaps = slices.Delete(snaps, i, i+1)
		}
		for i := range snaps {
			at, err := cl.WithSnapshot(snaps[i].stamp)
			w.must(err)
			if !bytes.Equal(w.get(at, 0, pages*512), snaps[i].content) {
				t.Fatalf("snapshot %d changed", i)
			}
			var sum [pages]bool
			for j := i + 1; j < len(snaps); j++ {
				for p := range pages {
					sum[p] = sum[p] || snaps[j].touched[p]
				}
				at, err := cl.WithSnapshot(snaps[j].stamp)
				w.must(err)
				check(at, snaps[i], sum, snaps[j].written, "between snapshots")
			}
			check(cl, snaps[i], sum, written, "to the blob")
		}
	}
}

func TestPageBlob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	cl := w.page(box, "p", 4*mib)
	data := noise(seeded(20), 1024)
	table := crc64.MakeTable(0x9A6C9329AC4BC9B5)
	crc := binary.LittleEndian.AppendUint64(nil, crc64.Checksum(data, table))
	sum := md5.Sum(data)
	for name, v := range map[string]blob.TransferValidationType{"md5": blob.TransferValidationTypeMD5(sum[:]), "crc": blob.TransferValidationTypeCRC64(crc64.Checksum(data, table))} {
		out, err := cl.UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 1024}, &pageblob.UploadPagesOptions{TransactionalValidation: v})
		w.must(err)
		if name == "crc" && !bytes.Equal(out.ContentCRC64, crc) || name == "md5" && !bytes.Equal(out.ContentMD5, sum[:]) {
			t.Errorf("%s: %+v", name, out)
		}
	}
	_, err := cl.UploadPages(w.ctx, body(data), blob.HTTPRange{Offset: 1024, Count: 1024}, &pageblob.UploadPagesOptions{TransactionalValidation: blob.TransferValidationTypeComputeCRC64()})
	w.must(err)
	for code, v := range map[string]blob.TransferValidationType{"Md5Mismatch": blob.TransferValidationTypeMD5(make([]byte, 16)), "Crc64Mismatch": blob.TransferValidationTypeCRC64(1)} {
		_, err := cl.UploadPages(w.ctx, body(make([]byte, 512)), blob.HTTPRange{Count: 512}, &pageblob.UploadPagesOptions{TransactionalValidation: v})
		w.refused(err, 400, code)
	}
	_, err = cl.UploadPages(w.ctx, body(make([]byte, 4*mib+512)), blob.HTTPRange{Count: 4*mib + 512}, nil)
	w.refused(err, 413, "RequestBodyTooLarge")
	_, err = cl.UploadPages(w.ctx, body(make([]byte, 512)), blob.HTTPRange{Offset: 4 * mib, Count: 512}, nil)
	w.refused(err, 416, "InvalidPageRange")
	_, err = cl.UploadPages(w.ctx, body(make([]byte, 100)), blob.HTTPRange{Count: 100}, nil)
	w.refused(err, 416, "InvalidPageRange")
	_, err = cl.ClearPages(w.ctx, blob.HTTPRange{Offset: 4 * mib, Count: 512}, nil)
	w.refused(err, 416, "InvalidPageRange")
	if !bytes.Equal(w.get(cl, 0, 1024), data) {
		t.Error("a refused write changed the blob")
	}
	out, err := cl.DownloadStream(w.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Count: 1024}, RangeGetContentMD5: ptr(true)})
	w.must(err)
	w.must(out.Body.Close())
	if !bytes.Equal(out.ContentMD5, sum[:]) || *out.ContentRange != "bytes 0-1023/4194304" {
		t.Errorf("range: %v %v", out.ContentMD5, *out.ContentRange)
	}

	_, err = box.NewPageBlobClient("odd").Create(w.ctx, 1000, nil)
	w.refused(err, 400, "InvalidHeaderValue")
	_, err = box.NewPageBlobClient("big").Create(w.ctx, 8<<40+512, nil)
	w.refused(err, 400, "InvalidHeaderValue")
	huge := w.page(box, "huge", 8<<40)
	w.put(huge, 8<<40-512, data[:512])
	if list, _ := w.ranges(huge, nil); !slices.Equal(list, []pr{{8<<40 - 512, 512, false}}) {
		t.Errorf("of 8 TiB: %v", list)
	}
	_, err = box.NewPageBlobClient("none").UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 1024}, nil)
	w.refused(err, 404, "BlobNotFound")
	_, err = box.NewPageBlobClient("p").Create(w.ctx, mib, &pageblob.CreateOptions{AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: ptr(azcore.ETagAny)}}})
	w.refused(err, 409, "BlobAlreadyExists")
}

func TestResizeAndSequence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cl := w.page(w.box("box"), "p", 2*mib)
	data := noise(seeded(21), 1024)
	w.put(cl, mib, data)
	snap, err := cl.CreateSnapshot(w.ctx, nil)
	w.must(err)
	_, err = cl.Resize(w.ctx, mib+512, nil)
	w.must(err)
	_, err = cl.Resize(w.ctx, 3*mib, nil)
	w.must(err)
	want := make([]byte, 3*mib)
	copy(want[mib:], data[:512])
	if !bytes.Equal(w.get(cl, 0, 0), want) {
		t.Error("what was cut off came back")
	}
	if list, _ := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: snap.Snapshot}); !slices.Equal(list, []pr{{mib + 512, 512, true}}) {
		t.Errorf("cut and grown: %v", list)
	}
	_, err = cl.Resize(w.ctx, 1000, nil)
	w.refused(err, 400, "InvalidHeaderValue")

	set := func(action pageblob.SequenceNumberActionType, n *int64) (int64, error) {
		out, err := cl.UpdateSequenceNumber(w.ctx, &pageblob.UpdateSequenceNumberOptions{ActionType: &action, SequenceNumber: n})
		if err != nil {
			return 0, err
		}
		return *out.BlobSequenceNumber, nil
	}
	for _, tt := range []struct {
		action pageblob.SequenceNumberActionType
		n      *int64
		want   int64
	}{{pageblob.SequenceNumberActionTypeUpdate, ptr(int64(7)), 7}, {pageblob.SequenceNumberActionTypeMax, ptr(int64(5)), 7},
		{pageblob.SequenceNumberActionTypeMax, ptr(int64(9)), 9}, {pageblob.SequenceNumberActionTypeIncrement, nil, 10}, {pageblob.SequenceNumberActionTypeUpdate, ptr(int64(8)), 8}} {
		if got, err := set(tt.action, tt.n); err != nil || got != tt.want {
			t.Errorf("%s: %d, %v", tt.action, got, err)
		}
	}
	for _, tt := range []struct {
		o  pageblob.SequenceNumberAccessConditions
		ok bool
	}{
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: ptr(int64(8))}, ok: true},
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: ptr(int64(7))}},
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberLessThanOrEqualTo: ptr(int64(8))}, ok: true},
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberLessThanOrEqualTo: ptr(int64(7))}},
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberLessThan: ptr(int64(9))}, ok: true},
		{o: pageblob.SequenceNumberAccessConditions{IfSequenceNumberLessThan: ptr(int64(8))}},
	} {
		_, err := cl.UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 1024}, &pageblob.UploadPagesOptions{SequenceNumberAccessConditions: &tt.o})
		_, cerr := cl.ClearPages(w.ctx, blob.HTTPRange{Count: 512}, &pageblob.ClearPagesOptions{SequenceNumberAccessConditions: &tt.o})
		if tt.ok {
			w.must(err)
			w.must(cerr)
			continue
		}
		w.refused(err, 412, "SequenceNumberConditionNotMet")
		w.refused(cerr, 412, "SequenceNumberConditionNotMet")
	}
	old, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	w.put(cl, 0, data)
	match := &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: old.ETag}}
	_, err = cl.UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 1024}, &pageblob.UploadPagesOptions{AccessConditions: match})
	w.refused(err, 412, "ConditionNotMet")
	_, err = cl.Resize(w.ctx, mib, &pageblob.ResizeOptions{AccessConditions: match})
	w.refused(err, 412, "ConditionNotMet")
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	cl := w.page(box, "p", mib)
	_, err := cl.SetMetadata(w.ctx, map[string]*string{"state": ptr("at 1")}, nil)
	w.must(err)
	one, err := cl.CreateSnapshot(w.ctx, nil)
	w.must(err)
	two, err := cl.CreateSnapshot(w.ctx, &blob.CreateSnapshotOptions{Metadata: map[string]*string{"point": ptr("2")}})
	w.must(err)
	if *one.Snapshot >= *two.Snapshot {
		t.Errorf("%s is not before %s", *one.Snapshot, *two.Snapshot)
	}
	at := func(stamp *string) *pageblob.Client {
		t.Helper()
		at, err := cl.WithSnapshot(*stamp)
		w.must(err)
		return at
	}
	p1, err := at(one.Snapshot).GetProperties(w.ctx, nil)
	w.must(err)
	p2, err := at(two.Snapshot).GetProperties(w.ctx, nil)
	w.must(err)
	if *p1.Metadata["State"] != "at 1" || *p2.Metadata["Point"] != "2" || p2.Metadata["State"] != nil {
		t.Errorf("metadata %v, %v", p1.Metadata, p2.Metadata)
	}
	_, err = at(one.Snapshot).UploadPages(w.ctx, body(make([]byte, 512)), blob.HTTPRange{Count: 512}, nil)
	w.refused(err, 400, "InvalidQueryParameterValue")
	_, err = w.raw(at(one.Snapshot), &pageblob.GetPageRangesDiffOptions{PrevSnapshot: two.Snapshot})
	w.refused(err, 400, "PreviousSnapshotCannotBeNewer")
	_, err = w.raw(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: ptr("2020-01-01T00:00:00.0000000Z")})
	w.refused(err, 409, "PreviousSnapshotNotFound")
	_, err = w.raw(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: ptr(w.url + "/md/x")})
	w.refused(err, 400, "UnsupportedHeader")
	_, err = cl.Delete(w.ctx, nil)
	w.refused(err, 409, "SnapshotsPresent")
	_, err = cl.Create(w.ctx, 2*mib, nil)
	w.must(err)
	_, err = w.raw(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: one.Snapshot})
	w.refused(err, 409, "BlobOverwritten")
	_, err = at(one.Snapshot).Delete(w.ctx, nil)
	w.must(err)
	_, err = at(one.Snapshot).GetProperties(w.ctx, nil)
	w.refused(err, 404, "BlobNotFound")
	_, err = cl.Delete(w.ctx, &blob.DeleteOptions{DeleteSnapshots: ptr(blob.DeleteSnapshotsOptionTypeOnly)})
	w.must(err)
	_, err = cl.CreateSnapshot(w.ctx, nil)
	w.must(err)
	_, err = cl.Delete(w.ctx, &blob.DeleteOptions{DeleteSnapshots: ptr(blob.DeleteSnapshotsOptionTypeInclude)})
	w.must(err)
	_, err = cl.GetProperties(w.ctx, nil)
	w.refused(err, 404, "BlobNotFound")
}

func TestCopies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	src := w.page(box, "src", mib)
	data := noise(seeded(22), 4096)
	w.put(src, 4096, data)
	from := w.url + "/storage/acct/box/src"

	dst := w.page(box, "dst", mib)
	signed := w.sas("box", "src", "r", time.Hour)
	plain := box.NewBlockBlobClient("plain")
	for _, size := range []int{4096, 1 << 20} { // kept in memory and in a file
		w.upload(plain, bytes.Repeat(data[:4096], size/4096))
		_, err := dst.UploadPagesFromURL(w.ctx, w.sas("box", "plain", "r", time.Hour), int64(size)-512, 0, 512, nil)
		w.must(err)
		if !bytes.Equal(w.get(dst, 0, 512), data[4096-512:]) {
			t.Errorf("%d bytes of a block blob were not put", size)
		}
	}
	out, err := dst.UploadPagesFromURL(w.ctx, signed, 4096, 512, 2048, &pageblob.UploadPagesFromURLOptions{})
	w.must(err)
	if out.ContentMD5 == nil && out.ETag == nil || !bytes.Equal(w.get(dst, 512, 2048), data[:2048]) {
		t.Error("Put Page From URL put something else")
	}
	w.must(w.s.Create("d", mib))
	dev, err := w.s.Device("d")
	w.must(err)
	w.must(dev.WriteAt(w.ctx, data, 0))
	_, err = dst.UploadPagesFromURL(w.ctx, w.address("d", false), 0, 8192, 4096, nil)
	w.must(err)
	if !bytes.Equal(w.get(dst, 8192, 4096), data) {
		t.Error("a managed disk was not copied")
	}
	for _, tt := range []struct {
		url    string
		status int
		code   string
	}{{from, 401, "CannotVerifyCopySource"}, {w.sas("box", "src", "w", time.Hour), 403, "CannotVerifyCopySource"}, {w.sas("box", "none", "r", time.Hour), 404, "CannotVerifyCopySource"},
		{w.url + "/md/", 404, "CannotVerifyCopySource"}, {"/nothing", 400, "InvalidHeaderValue"}} {
		_, err = dst.UploadPagesFromURL(w.ctx, tt.url, 0, 0, 512, nil)
		w.refused(err, tt.status, tt.code)
	}
	_, err = dst.UploadPagesFromURL(w.ctx, signed, mib, 0, 512, nil)
	w.refused(err, 416, "InvalidRange")

	cp := box.NewPageBlobClient("cp")
	started, err := cp.StartCopyFromURL(w.ctx, from, nil)
	w.must(err)
	props, err := cp.GetProperties(w.ctx, nil)
	w.must(err)
	if *started.CopyStatus != blob.CopyStatusTypeSuccess || *props.CopyID != *started.CopyID || !bytes.Equal(w.get(cp, 4096, 4096), data) {
		t.Errorf("copied: %+v", props)
	}
	if list, _ := w.ranges(cp, nil); !slices.Equal(list, []pr{{4096, 4096, false}}) {
		t.Errorf("the copy is not sparse: %v", list)
	}
	_, err = cp.StartCopyFromURL(w.ctx, w.url+"/storage/acct/box/none", nil)
	w.refused(err, 404, "CannotVerifyCopySource")
}

func TestIncrementalCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("box")
	src, dst := w.page(box, "src", mib), box.NewPageBlobClient("dst")
	data := noise(seeded(23), 4096)
	from := w.url + "/storage/acct/box/src"
	snap := func() string {
		t.Helper()
		out, err := src.CreateSnapshot(w.ctx, nil)
		w.must(err)
		return *out.Snapshot
	}
	run := func(stamp string) string {
		t.Helper()
		_, err := dst.StartCopyIncremental(w.ctx, from, stamp, nil)
		w.must(err)
		props, err := dst.GetProperties(w.ctx, nil)
		w.must(err)
		if *props.CopyStatus != blob.CopyStatusTypeSuccess || !*props.IsIncrementalCopy {
			t.Fatalf("not copied: %+v", props)
		}
		return *props.DestinationSnapshot
	}
	w.put(src, 0, data)
	s1 := snap()
	w.put(src, 8192, data)
	s2 := snap()
	_, err := src.ClearPages(w.ctx, blob.HTTPRange{Count: 512}, nil)
	w.must(err)
	s3 := snap()
	d1 := run(s1)
	at2, err := src.WithSnapshot(s2) // the one between is gone: its changes count all the same
	w.must(err)
	_, err = at2.Delete(w.ctx, nil)
	w.must(err)
	d3 := run(s3)
	at, err := dst.WithSnapshot(d3)
	w.must(err)
	want := make([]byte, mib)
	copy(want, data)
	copy(want[8192:], data)
	clear(want[:512])
	if !bytes.Equal(w.get(at, 0, 0), want) {
		t.Error("the copy is another one")
	}
	if list, _ := w.ranges(at, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: &d1}); !slices.Equal(list, []pr{{0, 512, true}, {8192, 4096, false}}) {
		t.Errorf("differs by %v", list)
	}
	_, err = dst.StartCopyIncremental(w.ctx, from, s1, nil)
	w.refused(err, 409, "IncrementalCopyOfEarlierSnapshotNotAllowed")
	_, err = dst.DownloadStream(w.ctx, nil)
	w.refused(err, 409, "OperationNotAllowedOnIncrementalCopyBlob")
	_, err = dst.UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 4096}, nil)
	w.refused(err, 409, "OperationNotAllowedOnIncrementalCopyBlob")
	other := w.page(box, "other", mib)
	so, err := other.CreateSnapshot(w.ctx, nil)
	w.must(err)
	_, err = dst.StartCopyIncremental(w.ctx, w.url+"/storage/acct/box/other", *so.Snapshot, nil)
	w.refused(err, 409, "IncrementalCopyBlobMismatch")
	_, err = other.StartCopyIncremental(w.ctx, from, s3, nil)
	w.refused(err, 409, "IncrementalCopyBlobMismatch")
}

// TestHostStyle uses an account as it is addressed in Azure, by its host's name.
func TestHostStyle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.box("box")
	cl, err := pageblob.NewClientWithSharedKeyCredential("https://acct.blob.core.windows.net/box/p", w.credential(), &pageblob.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: rewrite{w}}})
	w.must(err)
	_, err = cl.Create(w.ctx, mib, nil)
	w.must(err)
	url, err := cl.GetSASURL(permissions("r"), w.clock.now().Add(time.Hour), nil)
	w.must(err)
	o := w.options()
	o.Transport = rewrite{w}
	reader, err := pageblob.NewClientWithNoCredential(url, &pageblob.ClientOptions{ClientOptions: o})
	w.must(err)
	if len(w.get(reader, 0, 0)) != int(mib) {
		t.Error("short")
	}
	_, err = reader.Resize(w.ctx, mib, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
}
