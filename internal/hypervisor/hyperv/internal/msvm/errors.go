package msvm

import (
	"context"
	"errors"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
)

// Wrap turns an error of this package into a *dr.Error: op is the adapter's
// operation, what names the object and what was tried, code is what a failure
// means that the host does not explain better ("" = nothing special).
// nil stays nil, and an error that is a *dr.Error already stays itself.
func Wrap(op, what string, code dr.Code, err error) error {
	var done *dr.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	kind, code := classify(err, code)
	return dr.New(kind, code, "hyperv."+op, "%s: %w", what, err)
}

func classify(err error, code dr.Code) (dr.Kind, dr.Code) {
	if errors.Is(err, context.Canceled) {
		return dr.KindCanceled, ""
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	}
	if k, c, ok := ofText(err.Error()); ok {
		return k, c
	}
	kind := dr.KindUnavailable
	if e, ok := dr.Lookup(code); ok {
		kind = e.Kind
	}
	var ret *cim.ReturnError
	if errors.As(err, &ret) {
		switch ret.Value {
		case 32769: // access denied
			return dr.KindForbidden, dr.CodeHostAccess
		case 3, 32772: // timeout
			return dr.KindUnavailable, dr.CodeHypervisorTimeout
		case 32774, 32781: // in use, locked
			if code == "" {
				return dr.KindConflict, dr.CodeVMStarting
			}
		case 1, 32770: // not supported
			if code == "" {
				return dr.KindUnsupported, ""
			}
		}
		return kind, code
	}
	switch cim.CodeOf(err) {
	case cim.CodeNotFound:
		if code != "" {
			return kind, code
		}
		return dr.KindNotFound, dr.CodeNotFound
	case cim.CodeUnauthorized:
		return dr.KindUnauthenticated, dr.CodeHostSignIn
	case cim.CodeAccessDenied:
		return dr.KindForbidden, dr.CodeHostAccess
	case cim.CodeQuota:
		return dr.KindExhausted, dr.CodeHostQuota
	case cim.CodeTimeout:
		return dr.KindUnavailable, dr.CodeHypervisorTimeout
	case cim.CodeUnavailable:
		return dr.KindUnavailable, dr.CodeHypervisorDown
	case cim.CodeInvalidClass, cim.CodeNoMethod:
		return dr.KindUnsupported, code
	case cim.CodeProtocol:
		return dr.KindUnavailable, code
	}
	return kind, code
}

// ofText finds the Windows error numbers that have a remedy of their own. Jobs
// report them as text only: ErrorCode has 16 bits.
func ofText(s string) (dr.Kind, dr.Code, bool) {
	s = strings.ToLower(s)
	has := func(list ...string) bool {
		for _, x := range list {
			if strings.Contains(s, x) {
				return true
			}
		}
		return false
	}
	switch {
	case has("0x8007052f", "0x80070569"): // ERROR_ACCOUNT_RESTRICTION, ERROR_LOGON_TYPE_NOT_GRANTED
		return dr.KindPrecondition, dr.CodeLogonAsService, true
	case has("0x80070020", "0x80070021"): // ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION
		return dr.KindConflict, dr.CodeDiskFileInUse, true
	case has("0x80070070", "0x80070027"): // ERROR_DISK_FULL, ERROR_HANDLE_DISK_FULL
		return dr.KindExhausted, dr.CodeNoSpace, true
	case has("0xc03a0002", "0xc03a0003", "0xc03a000e"): // VHD header, BAT or parent identifiers
		return dr.KindCorrupt, dr.CodeDiskFileDamaged, true
	case has("0x80070005"): // E_ACCESSDENIED
		return dr.KindForbidden, dr.CodeHostAccess, true
	}
	return 0, "", false
}

// Refused reports whether the host itself said no to a call: the outcome is
// known, and the call has had no effect or its job ended without success.
func Refused(err error) bool {
	var ret *cim.ReturnError
	var job *cim.JobError
	switch {
	case errors.As(err, &ret):
		return ret.Value != 3 && ret.Value != 32772 && ret.Value != 32771
	case errors.As(err, &job):
		return true
	}
	switch cim.CodeOf(err) {
	case cim.CodeNotFound, cim.CodeInvalidClass, cim.CodeNoMethod, cim.CodeAccessDenied, cim.CodeUnauthorized, cim.CodeFailed:
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	return false
}

// Missing reports whether the object of a call does not exist: asked, and not there.
func Missing(err error) bool { return cim.CodeOf(err) == cim.CodeNotFound }

// Lost reports whether the host's answer to a question for changes means that it
// does not know them: a refusal that is none of rights, time or the service's state.
func Lost(err error) bool {
	var ret *cim.ReturnError
	if errors.As(err, &ret) {
		switch ret.Value {
		case 2, 4, 5, 32768, 32773, 32775, 32779:
			return true
		}
		return false
	}
	var job *cim.JobError
	if errors.As(err, &job) {
		_, code, ok := ofText(err.Error())
		return !ok || code == dr.CodeDiskFileDamaged
	}
	return cim.CodeOf(err) == cim.CodeFailed || cim.CodeOf(err) == cim.CodeNotFound
}

// BadState reports whether the host refused a call because of the VM's present state: invalid state, in use, locked, or not ready.
func BadState(err error) bool {
	var ret *cim.ReturnError
	if !errors.As(err, &ret) {
		return false
	}
	switch ret.Value {
	case 5, 32774, 32775, 32780, 32781:
		return true
	}
	return false
}

// FileInUse reports whether the host refused a call because somebody, mostly a merge of its own, holds the file.
func FileInUse(err error) bool {
	if err == nil {
		return false
	}
	var ret *cim.ReturnError
	if errors.As(err, &ret) && ret.Value == 32774 {
		return true
	}
	_, code, ok := ofText(err.Error())
	return ok && code == dr.CodeDiskFileInUse
}
