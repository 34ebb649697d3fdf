package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// ExitOK is the exit code of a command that did what was asked.
const ExitOK = 0

// exits is the only table of exit codes. The numbers are a promise.
var exits = []struct {
	code  int
	kind  dr.Kind
	means string
}{
	{1, dr.KindInternal, "a defect of Holdfast, or a failure without a class"},
	{2, dr.KindInvalid, "the command line or an input is wrong"},
	{3, dr.KindNotFound, "asked, and it does not exist"},
	{4, dr.KindConflict, "it exists already, or something else is at work on it"},
	{5, dr.KindUnauthenticated, "not logged in, or the credentials or key are not accepted"},
	{6, dr.KindForbidden, "not allowed"},
	{7, dr.KindFenced, "a newer generation has taken over"},
	{8, dr.KindPrecondition, "the object's state does not allow it now"},
	{9, dr.KindUnsupported, "this site, VM or system can't do it"},
	{10, dr.KindUnavailable, "could not ask: network, host or vault down, or too slow"},
	{11, dr.KindExhausted, "no space, memory or quota left"},
	{12, dr.KindCorrupt, "stored bytes do not verify"},
	{13, dr.KindCanceled, "cancelled, also by Ctrl-C or by saying no"},
}

// ExitCode is the exit code of a kind.
func ExitCode(k dr.Kind) int {
	for _, e := range exits {
		if e.kind == k {
			return e.code
		}
	}
	return 1
}

// Classify gives errors that come from below the floor of dr.Error their kind.
func Classify(err error) error {
	var known *dr.Error
	if errors.As(err, &known) {
		return err
	}
	if e := store.Refusal("holdfast", "the store refused", err); e != nil {
		return e
	}
	for _, x := range []struct {
		is   error
		kind dr.Kind
		code dr.Code
	}{
		{objstore.ErrReadOnly, dr.KindForbidden, dr.CodeStoreReadOnly}, {objstore.ErrNoSpace, dr.KindExhausted, dr.CodeStoreFull},
		{objstore.ErrDenied, dr.KindForbidden, ""}, {objstore.ErrMismatch, dr.KindCorrupt, dr.CodeObjectCorrupt},
		{objstore.ErrInvalidKey, dr.KindInvalid, ""}, {objstore.ErrNotExist, dr.KindNotFound, ""},
		{objstore.ErrUnavailable, dr.KindUnavailable, dr.CodeStoreUnreachable},
		{os.ErrNotExist, dr.KindNotFound, ""}, {os.ErrPermission, dr.KindForbidden, ""}, {os.ErrExist, dr.KindConflict, ""},
	} {
		if errors.Is(err, x.is) {
			return &dr.Error{Kind: x.kind, Code: x.code, Op: "holdfast", Message: err.Error()}
		}
	}
	return err
}

// Report prints an error, once and in one place, and returns its exit code.
func (c *Console) Report(err error) int {
	err = Classify(err)
	kind := dr.KindOf(err)
	code := ExitCode(kind)
	if c.JSON {
		type body struct {
			Kind     string `json:"kind"`
			Code     string `json:"code,omitempty"`
			Message  string `json:"message"`
			Hint     string `json:"hint,omitempty"`
			ExitCode int    `json:"exitCode"`
		}
		b, _ := json.Marshal(map[string]body{"error": {kind.String(), string(dr.CodeOf(err)), err.Error(), dr.HintOf(err), code}}) // strings only
		fmt.Fprintf(c.Err, "%s\n", b)
		return code
	}
	fmt.Fprintln(c.Err, "error: "+indent(Clean(err.Error(), true), 7))
	if hint := dr.HintOf(err); hint != "" {
		fmt.Fprintln(c.Err, "  do:  "+indent(Clean(hint, true), 7))
	}
	return code
}

// indent sets the lines after the first under it.
func indent(s string, n int) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+strings.Repeat(" ", n))
}

// ExitCodesTopic is the help topic with the table.
func ExitCodesTopic() *cobra.Command {
	var b strings.Builder
	fmt.Fprintf(&b, "The exit code tells what class of error ended a command:\n\n  %4d  %-16s %s\n", ExitOK, "", "done")
	for _, e := range exits {
		fmt.Fprintf(&b, "  %4d  %-16s %s\n", e.code, e.kind, e.means)
	}
	b.WriteString("\nWith --output json an error is one line of JSON on standard error:\n\n" +
		`  {"error":{"kind":"…","code":"…","message":"…","hint":"…","exitCode":3}}` + "\n")
	return &cobra.Command{Use: "exit-codes", Short: "What exit codes mean", Long: b.String()}
}
