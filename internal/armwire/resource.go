package armwire

import (
	"encoding/json"
	"time"
)

// Resource is the envelope of every resource.
type Resource[P any] struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	Location   string `json:"location,omitempty"`
	Properties P      `json:"properties"`
}

// List is one page of a collection. NextLink is null on the last page.
type List[T any] struct {
	Value    []T     `json:"value"`
	NextLink *string `json:"nextLink"`
}

// Input is the envelope of every request body.
type Input[P any] struct {
	Properties P `json:"properties"`
}

// Variant is a polymorphic object: its instanceType says which fields it has.
// The zero value stands for absent or null.
type Variant struct{ Raw json.RawMessage }

// MarshalJSON writes the object, or null.
func (v Variant) MarshalJSON() ([]byte, error) {
	if len(v.Raw) == 0 {
		return []byte("null"), nil
	}
	return v.Raw, nil
}

// UnmarshalJSON keeps the bytes.
func (v *Variant) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		v.Raw = nil
		return nil
	}
	v.Raw = append(v.Raw[:0], b...)
	return nil
}

// InstanceType returns the discriminator, "" if there is none.
func (v Variant) InstanceType() string {
	var d struct {
		InstanceType string `json:"instanceType"`
	}
	if len(v.Raw) == 0 || json.Unmarshal(v.Raw, &d) != nil {
		return ""
	}
	return d.InstanceType
}

// Decode fills out with the object; an absent one leaves it alone.
func (v Variant) Decode(out any) error {
	if len(v.Raw) == 0 {
		return nil
	}
	return json.Unmarshal(v.Raw, out)
}

// NewVariant encodes x. It panics if x can't be encoded, which is a defect of the caller's type.
func NewVariant(x any) Variant {
	b, err := json.Marshal(x)
	if err != nil {
		panic("armwire: encode variant: " + err.Error())
	}
	return Variant{Raw: b}
}

// Time returns nil for the zero time and otherwise t in UTC: unset times are
// left out of bodies, because a zero date confuses clients.
func Time(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	u := t.UTC()
	return &u
}

// ErrorBody is the body of every answer that is not a success.
type ErrorBody struct {
	Error Error `json:"error"`
}

// Error says what went wrong.
type Error struct {
	Code    string        `json:"code"`
	Message string        `json:"message"`
	Target  string        `json:"target,omitempty"`
	Details []ErrorDetail `json:"details,omitempty"`
	Kind    string        `json:"holdfastKind,omitempty"` // dr.Kind.String()
	Hint    string        `json:"holdfastHint,omitempty"` // what the operator can do
}

// ErrorDetail repeats the hint for clients that only know the public fields.
type ErrorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// OperationStatus is the body of replicationOperationStatus. Status is one of
// InProgress, Succeeded, Failed, Canceled (one l, unlike a job's state).
type OperationStatus struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Status    string     `json:"status"`
	StartTime *time.Time `json:"startTime,omitempty"`
	EndTime   *time.Time `json:"endTime,omitempty"`
	Percent   *float64   `json:"percentComplete,omitempty"`
	Error     *Error     `json:"error,omitempty"`
}

// The operation states.
const (
	OperationInProgress = "InProgress"
	OperationSucceeded  = "Succeeded"
	OperationFailed     = "Failed"
	OperationCanceled   = "Canceled"
)

// HealthError is one reason why something is not well.
type HealthError struct {
	InnerHealthErrors     []HealthError `json:"innerHealthErrors"`
	ErrorSource           string        `json:"errorSource,omitempty"`
	ErrorType             string        `json:"errorType,omitempty"`
	ErrorLevel            string        `json:"errorLevel"`
	ErrorCategory         string        `json:"errorCategory"`
	ErrorCode             string        `json:"errorCode"`
	SummaryMessage        string        `json:"summaryMessage"`
	ErrorMessage          string        `json:"errorMessage"`
	PossibleCauses        string        `json:"possibleCauses"`
	RecommendedAction     string        `json:"recommendedAction"`
	CreationTimeUTC       *time.Time    `json:"creationTimeUtc,omitempty"`
	EntityID              string        `json:"entityId,omitempty"`
	ErrorID               string        `json:"errorId"`
	CustomerResolvability string        `json:"customerResolvability"`
	Evidence              string        `json:"holdfastEvidence,omitempty"` // how it shows in general; ErrorMessage says what was seen
}
