package virt

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
)

// IsCode reports whether libvirt answered with one of the error numbers.
func IsCode(err error, codes ...golibvirt.ErrorNumber) bool {
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

// Answered reports whether err is libvirt's own answer, not a lost connection.
func Answered(err error) bool {
	var e golibvirt.Error
	return errors.As(err, &e)
}

// Message is libvirt's own text of an error, "" if it has not answered.
func Message(err error) string {
	var e golibvirt.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Message
}

// Wrap turns what a libvirt call returned into the product's error. what names
// the object and the action, e.g. "start VM web1".
func Wrap(op, what string, err error) error {
	if err == nil {
		return nil
	}
	var own *dr.Error
	if errors.As(err, &own) {
		return err
	}
	kind, code := classify(err)
	return dr.New(kind, code, "libvirt."+op, "%s: %w", what, err)
}

func classify(err error) (dr.Kind, dr.Code) {
	msg := Message(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	case errors.Is(err, context.Canceled):
		return dr.KindCanceled, ""
	case IsCode(err, golibvirt.ErrNoDomain):
		return dr.KindNotFound, dr.CodeVMNotFound
	case IsCode(err, golibvirt.ErrNoNetwork):
		return dr.KindNotFound, dr.CodeNotFound
	case IsCode(err, golibvirt.ErrNoDomainCheckpoint, golibvirt.ErrCheckpointInconsistent),
		strings.Contains(msg, "missing or broken bitmap"):
		return dr.KindPrecondition, dr.CodeTrackingLost
	case IsCode(err, golibvirt.ErrOperationTimeout), strings.Contains(msg, "cannot acquire state change lock"):
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	case strings.Contains(msg, "domain is not running"), strings.Contains(msg, "inactive domain"):
		return dr.KindPrecondition, dr.CodeVMNotRunning
	case strings.Contains(msg, "No space left"), errors.Is(err, syscall.ENOSPC):
		return dr.KindExhausted, dr.CodeNoSpace
	case IsCode(err, golibvirt.ErrAuthFailed, golibvirt.ErrAuthCancelled, golibvirt.ErrAuthUnavailable, golibvirt.ErrAccessDenied, golibvirt.ErrOperationDenied):
		return dr.KindForbidden, ""
	case IsCode(err, golibvirt.ErrDomExist):
		return dr.KindConflict, dr.CodeAlreadyExists
	case IsCode(err, golibvirt.ErrConfigUnsupported, golibvirt.ErrOperationUnsupported, golibvirt.ErrNoSupport, golibvirt.ErrArgumentUnsupported):
		return dr.KindUnsupported, ""
	case IsCode(err, golibvirt.ErrOperationInvalid):
		return dr.KindPrecondition, ""
	case Answered(err):
		return dr.KindUnavailable, ""
	}
	var ne net.Error
	if errors.Is(err, golibvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, ErrClosed) || errors.As(err, &ne) {
		return dr.KindUnavailable, dr.CodeHypervisorDown
	}
	return dr.KindInternal, ""
}
