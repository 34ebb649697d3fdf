package route

import (
	"cmp"
	"slices"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Health renders the health axis; an item that has not been judged yet is None.
func Health(h dr.Health) string {
	switch h {
	case dr.HealthNormal, dr.HealthWarning, dr.HealthCritical:
		return string(h)
	}
	return "None"
}

// Worst is the worse of two healths.
func Worst(a, b dr.Health) dr.Health {
	rank := func(h dr.Health) int {
		return slices.Index([]dr.Health{"", dr.HealthNormal, dr.HealthWarning, dr.HealthCritical}, h)
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// HealthErrors renders the reasons of a health.
func HealthErrors(es []dr.HealthError, entity string) []armwire.HealthError {
	out := make([]armwire.HealthError, 0, len(es))
	for _, e := range es {
		level := string(e.Severity)
		if e.Severity == dr.HealthCritical {
			level = "Error" // the API's word
		}
		cause, remedy := e.Cause, e.Remedy
		title, evidence := "", ""
		if entry, ok := dr.Lookup(e.Code); ok {
			evidence = entry.Evidence
			title, cause, remedy = entry.Title, cmp.Or(cause, entry.Cause), cmp.Or(remedy, entry.Remedy)
		}
		out = append(out, armwire.HealthError{
			InnerHealthErrors: []armwire.HealthError{}, ErrorSource: "Holdfast", ErrorLevel: level, ErrorCategory: "Replication",
			ErrorCode: string(e.Code), ErrorID: string(e.Code), SummaryMessage: title, ErrorMessage: e.Message,
			PossibleCauses: cause, RecommendedAction: remedy, CreationTimeUTC: armwire.Time(e.Since), EntityID: entity,
			CustomerResolvability: "NotAllowed", Evidence: evidence,
		})
	}
	return out
}
