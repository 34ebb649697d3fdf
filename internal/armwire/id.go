package armwire

import (
	"fmt"
	"net/url"
	"strings"
)

// VaultID names a vault in the address space of the API.
type VaultID struct {
	SubscriptionID string
	ResourceGroup  string
	Vault          string
}

// String returns the vault's resource id, without a trailing slash.
func (v VaultID) String() string {
	return "/subscriptions/" + v.SubscriptionID + "/resourceGroups/" + v.ResourceGroup +
		"/providers/" + Namespace + "/vaults/" + v.Vault
}

// ID returns the id of a resource below the vault from alternating type and name segments.
func (v VaultID) ID(segments ...string) string {
	return v.String() + "/" + strings.Join(segments, "/")
}

// ResourceType returns the full type of alternating type and name segments:
// the namespace, "vaults" and every type segment.
func ResourceType(segments ...string) string {
	var b strings.Builder
	b.WriteString(Namespace + "/vaults")
	for i := 0; i < len(segments); i += 2 {
		b.WriteString("/" + segments[i])
	}
	return b.String()
}

// Segment is one type/name pair of an id. Name is empty for a collection.
type Segment struct {
	Type string // as written
	Name string // unescaped, as written
}

// ResourceID is a parsed path or id below a vault.
type ResourceID struct {
	VaultID
	Segments []Segment
}

// Types returns the type segments in lower case, joined by slashes: the key
// under which handlers are found.
func (r ResourceID) Types() string {
	ts := make([]string, len(r.Segments))
	for i, s := range r.Segments {
		ts[i] = strings.ToLower(s.Type)
	}
	return strings.Join(ts, "/")
}

// NameOf returns the name of the first segment of type t (compared without case), "" if there is none.
func (r ResourceID) NameOf(t string) string {
	for _, s := range r.Segments {
		if strings.EqualFold(s.Type, t) {
			return s.Name
		}
	}
	return ""
}

// Extension is the first word of the types that the public specification does
// not have: "holdfast/consistencyGroups".
const Extension = "holdfast"

// ParseID parses the id of a vault or of something below it. Type words are
// compared without case; the path may be escaped. The last segment may lack its
// name. It does not check that the id belongs to a particular vault.
func ParseID(path string) (ResourceID, error) {
	var id ResourceID
	parts, err := SplitPath(path)
	if err != nil {
		return id, err
	}
	if len(parts) < 8 || !strings.EqualFold(parts[0], "subscriptions") || !strings.EqualFold(parts[2], "resourceGroups") ||
		!strings.EqualFold(parts[4], "providers") || !strings.EqualFold(parts[5], Namespace) || !strings.EqualFold(parts[6], "vaults") {
		return id, fmt.Errorf("%q is not the id of a vault resource (want /subscriptions/…/resourceGroups/…/providers/%s/vaults/…)", clip(path), Namespace)
	}
	id.SubscriptionID, id.ResourceGroup, id.Vault = parts[1], parts[3], parts[7]
	for rest := parts[8:]; len(rest) > 0; {
		s := Segment{Type: rest[0]}
		rest = rest[1:]
		if strings.EqualFold(s.Type, Extension) && len(rest) > 0 { // types of ours have two words
			s.Type, rest = s.Type+"/"+rest[0], rest[1:]
		}
		if len(rest) > 0 {
			s.Name, rest = rest[0], rest[1:]
		}
		id.Segments = append(id.Segments, s)
	}
	return id, nil
}

// SplitPath splits an escaped URL path into unescaped segments. A trailing slash
// is ignored; an empty segment inside is an error.
func SplitPath(path string) ([]string, error) {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if path == "" {
		return nil, nil
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		u, err := url.PathUnescape(p)
		if err != nil || u == "" {
			return nil, fmt.Errorf("path %q has an empty or wrongly escaped segment", clip(path))
		}
		parts[i] = u
	}
	return parts, nil
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
