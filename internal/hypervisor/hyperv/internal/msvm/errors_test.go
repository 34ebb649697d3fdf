package msvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
)

// script is a session that answers methods as it is told.
type script struct {
	invoke func(ctx context.Context, method string) (cim.Out, error)
	job    *cim.Instance
	gone   bool // the job
	closed bool
}

func (s *script) Query(_ context.Context, _, wql string) ([]*cim.Instance, error) {
	class := wql[strings.LastIndexByte(wql, ' ')+1:]
	return []*cim.Instance{cim.NewInstance(class, "Name", "vmms")}, nil
}

func (s *script) Get(_ context.Context, p cim.Path) (*cim.Instance, error) {
	if s.gone || s.job == nil {
		return nil, &cim.Error{Code: cim.CodeNotFound, Op: "get " + p.String()}
	}
	return s.job, nil
}

func (s *script) Invoke(ctx context.Context, _ cim.Path, method string, _ cim.Args) (cim.Out, error) {
	return s.invoke(ctx, method)
}

func (s *script) Close() error { s.closed = true; return nil }

func started() cim.Out {
	out := cim.Out{Return: cim.ReturnJobStarted}
	out.Set("Job", instancePath("Msvm_ConcreteJob", "J1"))
	return out
}

func job(state uint16, text string) *cim.Instance {
	return cim.NewInstance("Msvm_ConcreteJob", "InstanceID", "J1", "JobState", state, "ErrorCode", uint16(32768), "ErrorDescription", text)
}

// TestErrors: what hosts answer, in the product's words.
func TestErrors(t *testing.T) {
	t.Parallel()
	const own = dr.CodeCheckpointFailed
	ret := func(v uint32) func(*script) {
		return func(s *script) {
			s.invoke = func(context.Context, string) (cim.Out, error) { return cim.Out{Return: v}, nil }
		}
	}
	ended := func(state uint16, text string) func(*script) {
		return func(s *script) {
			s.job = job(state, text)
			s.invoke = func(_ context.Context, m string) (cim.Out, error) {
				if m == "GetErrorEx" {
					return cim.Out{Return: 32770}, nil
				}
				return started(), nil
			}
		}
	}
	fault := func(err error) func(*script) {
		return func(s *script) {
			s.invoke = func(context.Context, string) (cim.Out, error) { return cim.Out{}, err }
		}
	}
	coded := func(c cim.Code) func(*script) { return fault(&cim.Error{Code: c, Op: "x"}) }
	for name, c := range map[string]struct {
		set     func(*script)
		code    dr.Code // the caller's word for a failure
		kind    dr.Kind
		want    dr.Code
		refused bool
	}{
		"return, access denied":         {ret(32769), own, dr.KindForbidden, dr.CodeHostAccess, true},
		"return, CIM timeout":           {ret(3), own, dr.KindUnavailable, dr.CodeHypervisorTimeout, false},
		"return, timeout":               {ret(32772), own, dr.KindUnavailable, dr.CodeHypervisorTimeout, false},
		"return, in use":                {ret(32774), "", dr.KindConflict, dr.CodeVMStarting, true},
		"return, not supported":         {ret(32770), "", dr.KindUnsupported, "", true},
		"return, failed":                {ret(2), own, kindOf(own), own, true},
		"job, failed":                   {ended(10, "no"), own, kindOf(own), own, true},
		"job, log on as a service":      {ended(10, "Logon failure (0x80070569)"), own, dr.KindPrecondition, dr.CodeLogonAsService, true},
		"job, account restriction":      {ended(10, "(0x8007052F)"), own, dr.KindPrecondition, dr.CodeLogonAsService, true},
		"job, sharing violation":        {ended(10, "in use (0x80070020)"), own, dr.KindConflict, dr.CodeDiskFileInUse, true},
		"job, volume full":              {ended(10, "(0x80070070)"), own, dr.KindExhausted, dr.CodeNoSpace, true},
		"job, damaged disk":             {ended(10, "(0xC03A000E)"), own, dr.KindCorrupt, dr.CodeDiskFileDamaged, true},
		"job, killed":                   {ended(9, ""), own, kindOf(own), own, true},
		"job, gone":                     {func(s *script) { ended(7, "")(s); s.gone = true }, own, kindOf(own), own, false},
		"fault, not signed in":          {coded(cim.CodeUnauthorized), own, dr.KindUnauthenticated, dr.CodeHostSignIn, true},
		"fault, no right":               {coded(cim.CodeAccessDenied), own, dr.KindForbidden, dr.CodeHostAccess, true},
		"fault, quota":                  {coded(cim.CodeQuota), own, dr.KindExhausted, dr.CodeHostQuota, false},
		"fault, unreachable":            {coded(cim.CodeUnavailable), own, dr.KindUnavailable, dr.CodeHypervisorDown, false},
		"fault, timeout":                {coded(cim.CodeTimeout), own, dr.KindUnavailable, dr.CodeHypervisorTimeout, false},
		"fault, no such method":         {coded(cim.CodeNoMethod), "", dr.KindUnsupported, "", true},
		"fault, no such object":         {coded(cim.CodeNotFound), "", dr.KindNotFound, dr.CodeNotFound, true},
		"fault, cancelled":              {fault(fmt.Errorf("x: %w", context.Canceled)), own, dr.KindCanceled, "", false},
		"job started but not named":     {ret(4096), own, dr.KindUnavailable, own, false},
		"an error of the product stays": {fault(dr.New(dr.KindExhausted, dr.CodeNoSpace, "x", "full")), own, dr.KindExhausted, dr.CodeNoSpace, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{}
			c.set(s)
			client := New(s, Config{Poll: time.Millisecond})
			_, err := client.ConvertToReferencePoint(t.Context(), "Microsoft:X", "n")
			if err == nil {
				t.Fatal("no error")
			}
			w := Wrap("End", "convert", c.code, err)
			var e *dr.Error
			if !errors.As(w, &e) || dr.KindOf(w) != c.kind || dr.CodeOf(w) != c.want {
				t.Errorf("%v: kind %v, code %q; want kind %v, code %q", w, dr.KindOf(w), dr.CodeOf(w), c.kind, c.want)
			}
			if got := Refused(err); got != c.refused {
				t.Errorf("refused %v, want %v: %v", got, c.refused, err)
			}
		})
	}
	if Wrap("x", "y", "", nil) != nil {
		t.Error("nil became an error")
	}
}

func kindOf(c dr.Code) dr.Kind { e, _ := dr.Lookup(c); return e.Kind }

// TestWarnings: a job that completed with warnings has done its work.
func TestWarnings(t *testing.T) {
	t.Parallel()
	s := &script{job: job(32768, ""), invoke: func(context.Context, string) (cim.Out, error) {
		out := started()
		out.Set("ResultingSnapshot", SettingsPath("Microsoft:S"))
		return out, nil
	}}
	s.job.Set("JobState", uint16(32768))
	id, warned, err := New(s, Config{Poll: time.Millisecond}).CreateRecoveryCheckpoint(t.Context(), "v", "n", CrashConsistent)
	if err != nil || !warned || id != "Microsoft:S" {
		t.Errorf("%q, warned %v, %v", id, warned, err)
	}
}

// TestHangingSession: a call returns by its deadline even if the session does not,
// and Close does not wait for it longer than it has to.
func TestHangingSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &script{invoke: func(context.Context, string) (cim.Out, error) { <-release; return cim.Out{}, nil }}
		c := New(s, Config{CallTimeout: time.Second})
		began := time.Now()
		_, err := c.ConvertToReferencePoint(t.Context(), "Microsoft:X", "n")
		if dr.CodeOf(Wrap("x", "y", "", err)) != dr.CodeHypervisorTimeout || time.Since(began) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := c.Close(); err == nil || !s.closed {
			t.Errorf("Close with a call that hangs: %v", err)
		}
		close(release)
	})
}
