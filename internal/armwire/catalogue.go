package armwire

// ErrorEntry is an entry of the error catalogue (GET …/holdfast/errors).
type ErrorEntry struct {
	Code     string `json:"code"`
	Chapter  string `json:"chapter"`
	Kind     string `json:"kind"`     // dr.Kind of an error with this code
	Retry    string `json:"retry"`    // what replication does about it
	Severity string `json:"severity"` // of the health of an item; empty = never a matter of health
	Title    string `json:"title"`
	Cause    string `json:"cause"`
	Evidence string `json:"evidence"` // how it shows
	Remedy   string `json:"remedy"`
}
