package libvirt

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
)

// isCode reports whether libvirt answered with one of the error numbers.
func isCode(err error, codes ...golibvirt.ErrorNumber) bool {
	var e golibvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == uint32(c) {
			return true
		}
	}
	return false
}

// answered reports whether err is libvirt's own answer, not a lost connection.
func answered(err error) bool {
	var e golibvirt.Error
	return errors.As(err, &e)
}

// wrap turns what a libvirt call returned into the product's error. what names
// the object and the action, e.g. "start VM web1".
func wrap(op, what string, err error) error {
	if err == nil {
		return nil
	}
	var own *dr.Error
	if errors.As(err, &own) {
		return err
	}
	kind, code := classify(err)
	return dr.New(kind, code, "libvirt."+op, "%s: %w", strings.ReplaceAll(what, "%", "%%"), err)
}

func classify(err error) (dr.Kind, dr.Code) {
	msg := ""
	var e golibvirt.Error
	if errors.As(err, &e) {
		msg = e.Message
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	case errors.Is(err, context.Canceled):
		return dr.KindCanceled, ""
	case isCode(err, golibvirt.ErrNoDomain):
		return dr.KindNotFound, dr.CodeVMNotFound
	case isCode(err, golibvirt.ErrNoNetwork):
		return dr.KindNotFound, dr.CodeNotFound
	case isCode(err, golibvirt.ErrNoDomainCheckpoint, golibvirt.ErrCheckpointInconsistent),
		strings.Contains(msg, "missing or broken bitmap"):
		return dr.KindPrecondition, dr.CodeTrackingLost
	case isCode(err, golibvirt.ErrOperationTimeout), strings.Contains(msg, "cannot acquire state change lock"):
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	case strings.Contains(msg, "domain is not running"), strings.Contains(msg, "inactive domain"):
		return dr.KindPrecondition, dr.CodeVMNotRunning
	case strings.Contains(msg, "No space left"), errors.Is(err, syscall.ENOSPC):
		return dr.KindExhausted, dr.CodeNoSpace
	case isCode(err, golibvirt.ErrAuthFailed, golibvirt.ErrAuthCancelled, golibvirt.ErrAuthUnavailable, golibvirt.ErrAccessDenied, golibvirt.ErrOperationDenied):
		return dr.KindForbidden, ""
	case isCode(err, golibvirt.ErrDomExist):
		return dr.KindConflict, dr.CodeAlreadyExists
	case isCode(err, golibvirt.ErrConfigUnsupported, golibvirt.ErrOperationUnsupported, golibvirt.ErrNoSupport, golibvirt.ErrArgumentUnsupported):
		return dr.KindUnsupported, ""
	case isCode(err, golibvirt.ErrOperationInvalid):
		return dr.KindPrecondition, ""
	case answered(err):
		return dr.KindUnavailable, ""
	}
	var ne net.Error
	if errors.Is(err, golibvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, errPoolClosed) || errors.As(err, &ne) {
		return dr.KindUnavailable, dr.CodeHypervisorDown
	}
	return dr.KindInternal, ""
}
