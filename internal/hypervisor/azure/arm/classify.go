package arm

import (
	"time"

	"holdfast/internal/hypervisor/azure/arm/refusal"
)

// MaxSkew is how far this machine's clock may be from Azure's.
const MaxSkew = refusal.MaxSkew

// Refusal is what Azure said no with: the cause in the errors that Classify makes.
type Refusal = refusal.Refusal

// Classify makes of an error of the SDK (Resource Manager, storage, Entra ID, the
// network) a *dr.Error with a code of the catalogue, a one-line message that names
// object (a resource's id), and Azure's code, words and correlation id as its
// cause (a *Refusal). Errors that are classified already, and nil, stay as they are.
func Classify(op, object string, err error) error { return refusal.Classify(op, object, err) }

// IsAbsent tells that Azure said that the resource which was asked for does not
// exist. No other failure means that.
func IsAbsent(err error) bool { return refusal.IsAbsent(err) }

// RefusalOf is what Azure said, nil if the error does not come from an answer.
func RefusalOf(err error) *Refusal { return refusal.Of(err) }

// SkewText says how this machine's clock is; positive = ahead of Azure's.
func SkewText(d time.Duration) string { return refusal.SkewText(d) }
