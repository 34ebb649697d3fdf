package pagestore

import (
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// maxListed is how many entries one page of a listing has at most.
const maxListed = 5000

var containerName = regexp.MustCompile(`^(\$root|[a-z0-9](-?[a-z0-9]){2,62})$`)

// box finds the container that is asked for. The caller holds mu.
func (c *call) box() (*container, error) {
	_, box, _, err := c.hold()
	return box, err
}

func describeContainer(h http.Header, box *container) {
	h.Set("ETag", box.etag)
	h.Set("Last-Modified", box.changed.UTC().Format(timeOfHeader))
}

func (c *call) touchContainer(box *container) {
	c.s.etags++
	box.etag, box.changed = fmt.Sprintf(`"0x8D%014X"`, c.s.etags), c.s.cfg.Now().UTC()
}

func createContainer(c *call) error {
	if !containerName.MatchString(c.t.container) || len(c.t.container) > 63 {
		return refuse(400, "InvalidResourceName", "The specified resource name contains invalid characters.")
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	a := c.s.accounts[c.t.account]
	if a == nil {
		return refuse(404, "ResourceNotFound", "There is no storage account %s.", c.t.account)
	}
	if box := a.containers[c.t.container]; box != nil {
		if box.gone.IsZero() {
			return refuse(409, "ContainerAlreadyExists", "The specified container already exists.")
		}
		if c.s.cfg.Now().Before(box.gone.Add(deletionTakes)) {
			return refuse(409, "ContainerBeingDeleted", "The specified container is being deleted. Try operation later.")
		}
	}
	box := &container{name: c.t.container, meta: c.metadata(), blobs: map[string]*entry{}}
	c.touchContainer(box)
	a.containers[c.t.container] = box
	describeContainer(c.w.Header(), box)
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func deleteContainer(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	box, err := c.box()
	if err != nil {
		return err
	}
	for _, e := range box.blobs {
		for _, list := range [][]*blob{{e.base}, e.snaps, e.versions} {
			for _, b := range list {
				if b != nil && c.s.retained(b) != nil {
					return c.s.retained(b)
				}
			}
		}
	}
	box.gone = c.s.cfg.Now()
	if err := box.drop(); err != nil {
		c.s.cfg.Log.Warn("content of a deleted container stays behind", "container", box.name, "err", err)
	}
	box.blobs = nil
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

func getContainer(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	box, err := c.box()
	if err != nil {
		return err
	}
	h := c.w.Header()
	describeContainer(h, box)
	for name, value := range box.meta {
		h.Set("x-ms-meta-"+name, value)
	}
	h.Set("x-ms-lease-status", "unlocked")
	h.Set("x-ms-lease-state", "available")
	h.Set("x-ms-has-immutability-policy", "false")
	h.Set("x-ms-has-legal-hold", "false")
	h.Set("x-ms-immutable-storage-with-versioning-enabled", strconv.FormatBool(c.s.accounts[c.t.account].settings.Immutable))
	c.w.WriteHeader(http.StatusOK)
	return nil
}

func setContainerMetadata(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	box, err := c.box()
	if err != nil {
		return err
	}
	box.meta = c.metadata()
	c.touchContainer(box)
	describeContainer(c.w.Header(), box)
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// metaXML writes metadata as elements.
type metaXML map[string]string

// MarshalXML is what encoding/xml calls.
func (m metaXML) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if err := e.EncodeToken(start); err != nil {
		return err
	}
	for _, name := range sortedKeys(m) {
		if err := e.EncodeElement(m[name], xml.StartElement{Name: xml.Name{Local: name}}); err != nil {
			return err
		}
	}
	return e.EncodeToken(start.End())
}

type blobXML struct {
	XMLName          xml.Name `xml:"Blob"`
	Name             string
	Snapshot         string `xml:",omitempty"`
	VersionID        string `xml:"VersionId,omitempty"`
	IsCurrentVersion bool   `xml:",omitempty"`
	Properties       propertiesXML
	Metadata         metaXML `xml:",omitempty"`
}

type propertiesXML struct {
	Created     string `xml:"Creation-Time"`
	Modified    string `xml:"Last-Modified"`
	ETag        string `xml:"Etag"`
	Length      int64  `xml:"Content-Length"`
	ContentType string `xml:"Content-Type"`
	MD5         string `xml:"Content-MD5,omitempty"`
	Sequence    *int64 `xml:"x-ms-blob-sequence-number"`
	BlobType    string `xml:"BlobType"`
	LeaseStatus string `xml:"LeaseStatus"`
	LeaseState  string `xml:"LeaseState"`
	CopyID      string `xml:"CopyId,omitempty"`
	CopySource  string `xml:"CopySource,omitempty"`
	CopyStatus  string `xml:"CopyStatus,omitempty"`
	Incremental bool   `xml:"IncrementalCopy,omitempty"`
	Destination string `xml:"DestinationSnapshot,omitempty"`
	Until       string `xml:"ImmutabilityPolicyUntilDate,omitempty"`
	Mode        string `xml:"ImmutabilityPolicyMode,omitempty"`
	Hold        *bool  `xml:"LegalHold"`
	Encrypted   bool   `xml:"ServerEncrypted"`
}

type prefixXML struct {
	XMLName xml.Name `xml:"BlobPrefix"`
	Name    string
}

type listXML struct {
	XMLName         xml.Name `xml:"EnumerationResults"`
	ServiceEndpoint string   `xml:",attr"`
	ContainerName   string   `xml:",attr,omitempty"`
	Prefix          string   `xml:",omitempty"`
	Marker          string   `xml:",omitempty"`
	MaxResults      int      `xml:",omitempty"`
	Delimiter       string   `xml:",omitempty"`
	Blobs           *blobsXML
	Containers      *blobsXML
	NextMarker      string
}

// blobsXML holds elements of different names in their order.
type blobsXML struct{ Items []any }

// show describes a state for a listing. The caller holds mu.
func show(name string, b *blob, include map[string]bool) blobXML {
	out := blobXML{Name: name, Properties: propertiesXML{
		Created: b.created.UTC().Format(timeOfHeader), Modified: b.modified.UTC().Format(timeOfHeader), ETag: strings.Trim(b.etag, `"`), Length: b.size(),
		ContentType: b.headers["Content-Type"], MD5: b.headers["Content-MD5"], BlobType: typeOf(b), LeaseStatus: "unlocked", LeaseState: "available", Encrypted: true,
		Incremental: b.incremental,
	}}
	p := &out.Properties
	if p.ContentType == "" {
		p.ContentType = "application/octet-stream"
	}
	if b.img != nil {
		p.Sequence = &b.sequence
	}
	if include["copy"] && b.copyID != "" {
		p.CopyID, p.CopySource, p.CopyStatus, p.Destination = b.copyID, b.copySource, "success", b.copySnapshot
	}
	if include["immutabilitypolicy"] && !b.until.IsZero() {
		p.Until, p.Mode = b.until.UTC().Format(timeOfHeader), modeOf(b)
	}
	if include["legalhold"] {
		hold := b.hold
		p.Hold = &hold
	}
	if include["metadata"] {
		out.Metadata = maps.Clone(b.meta)
	}
	return out
}

// rows are all lines of a listing that one name has. The caller holds mu.
func (e *entry) rows(name string, include map[string]bool) []any {
	var out []any
	if include["snapshots"] {
		for _, b := range e.snaps {
			row := show(name, b, include)
			row.Snapshot = b.stamp
			out = append(out, row)
		}
	}
	if include["versions"] {
		for _, b := range e.versions {
			row := show(name, b, include)
			row.VersionID = b.stamp
			out = append(out, row)
		}
	}
	if e.base != nil {
		row := show(name, e.base, include)
		if include["versions"] && e.base.stamp != "" {
			row.VersionID, row.IsCurrentVersion = e.base.stamp, true
		}
		out = append(out, row)
	}
	return out
}

// paging reads maxresults and marker.
func (c *call) paging() (most int, from string, err error) {
	most = maxListed
	if text := c.q.Get("maxresults"); text != "" {
		if most, err = strconv.Atoi(text); err != nil || most < 1 {
			return 0, "", refuse(400, "OutOfRangeQueryParameterValue", "One of the query parameters specified in the request URI is outside the permissible range: maxresults.")
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(c.q.Get("marker"))
	if err != nil {
		return 0, "", refuse(400, "InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid: marker.")
	}
	return min(most, maxListed), string(raw), nil
}

func listBlobs(c *call) error {
	most, from, err := c.paging()
	if err != nil {
		return err
	}
	prefix, delimiter := c.q.Get("prefix"), c.q.Get("delimiter")
	include := map[string]bool{}
	for word := range strings.SplitSeq(c.q.Get("include"), ",") {
		include[word] = true
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	box, err := c.box()
	if err != nil {
		return err
	}
	out := listXML{ServiceEndpoint: c.s.cfg.Base() + "/storage/" + c.t.account + "/", ContainerName: box.name, Prefix: prefix, Marker: c.q.Get("marker"), Delimiter: delimiter, Blobs: &blobsXML{}}
	if c.q.Has("maxresults") {
		out.MaxResults = most
	}
	group := ""
	for _, name := range sortedKeys(box.blobs) {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || name < from || group != "" && strings.HasPrefix(name, group) {
			continue
		}
		rows := box.blobs[name].rows(name, include)
		if i := strings.Index(rest, delimiter); delimiter != "" && i >= 0 && len(rows) > 0 {
			group = name[:len(prefix)+i+len(delimiter)]
			rows = []any{prefixXML{Name: group}}
		}
		if len(rows) == 0 {
			continue
		}
		// A page ends between names, and never within a group, so that a marker is
		// simply the next name.
		if n := len(out.Blobs.Items); n > 0 && n+len(rows) > most {
			out.NextMarker = base64.RawURLEncoding.EncodeToString([]byte(name))
			break
		}
		out.Blobs.Items = append(out.Blobs.Items, rows...)
	}
	c.xml(http.StatusOK, out)
	return nil
}

func listContainers(c *call) error {
	most, from, err := c.paging()
	if err != nil {
		return err
	}
	type properties struct {
		Modified string `xml:"Last-Modified"`
		ETag     string `xml:"Etag"`
	}
	type row struct {
		XMLName    xml.Name `xml:"Container"`
		Name       string
		Properties properties
		Metadata   metaXML `xml:",omitempty"`
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	a := c.s.accounts[c.t.account]
	if a == nil {
		return refuse(404, "ResourceNotFound", "There is no storage account %s.", c.t.account)
	}
	out := listXML{ServiceEndpoint: c.s.cfg.Base() + "/storage/" + a.name + "/", Prefix: c.q.Get("prefix"), Containers: &blobsXML{}}
	for _, name := range sortedKeys(a.containers) {
		box := a.containers[name]
		if !strings.HasPrefix(name, out.Prefix) || name < from || !box.gone.IsZero() {
			continue
		}
		if len(out.Containers.Items) == most {
			out.NextMarker = base64.RawURLEncoding.EncodeToString([]byte(name))
			break
		}
		line := row{Name: name, Properties: properties{box.changed.UTC().Format(timeOfHeader), strings.Trim(box.etag, `"`)}}
		if c.q.Get("include") == "metadata" {
			line.Metadata = maps.Clone(box.meta)
		}
		out.Containers.Items = append(out.Containers.Items, line)
	}
	c.xml(http.StatusOK, out)
	return nil
}
