package account

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// listErrors is the catalogue of errors, in the order of the documentation.
func listErrors(*route.Call) (route.Reply, error) {
	out := armwire.List[armwire.ErrorEntry]{Value: []armwire.ErrorEntry{}}
	for _, g := range dr.Groups() {
		for _, e := range g.Entries {
			out.Value = append(out.Value, armwire.ErrorEntry{Code: string(e.Code), Chapter: g.Title, Kind: e.Kind.String(), Retry: e.Retry.String(), Severity: string(e.Severity),
				Title: e.Title, Cause: e.Cause, Evidence: e.Evidence, Remedy: e.Remedy})
		}
	}
	return route.OK(out)
}
