// Package pageblob writes disks into Azure page blobs and into the upload
// addresses of managed disks, as fixed VHDs, and reads them back.
//
// It owns the requests on one blob (Client) and the way a disk gets there
// (Upload, Verify). It promises:
//
//   - The footer of the VHD is the last thing that is written, and it is taken
//     away before the first byte of a disk that has one changes: an image that is
//     not complete is never a valid VHD.
//   - An Upload that returned no error left exactly the source's bytes: each
//     request carries the MD5 of its body, and afterwards the page ranges that
//     the service lists are compared with what was to be written.
//   - Every request is safe to repeat; an Upload that was interrupted at any
//     point goes on with Options.Resume.
//   - A writer that is told a sequence number changes nothing once the blob has
//     another one: each Put Page carries x-ms-if-sequence-number-eq.
//   - Only a 404 with the service's own code BlobNotFound means that a blob does
//     not exist.
//   - Queries of addresses (signatures) are in no error, log or name.
//
// Sources: Azure Blob service REST API, "Put Page" (at most 4 MiB for an update, any
// range for a clear, offsets of 512), "Get Page Ranges", "Set Blob Properties",
// "Snapshot Blob", "Specifying conditional headers"; "Scalability and performance
// targets for Blob storage" (a page blob takes up to 60 MiB/s and 500 requests/s).
//
// What a page range difference is worth: emulators answer it with all ranges, and
// managed disks name the older state by its own address. Diff is a superset of the
// differences at best; who needs certainty compares content.
package pageblob

// Limits of the service.
const (
	// Page is the unit of offsets and lengths, bytes.
	Page = 512
	// MaxPut is the most bytes that one Put Page may carry.
	MaxPut = 4 << 20
	// Block is the granularity at which zeroes inside of data are found, bytes.
	Block = 4 << 10

	mib = 1 << 20
)
