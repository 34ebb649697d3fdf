package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

func newConsole() (*Console, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	return &Console{In: strings.NewReader(""), Out: &out, Err: &err, Now: time.Now, Width: MinWidth}, &out, &err
}

func TestExitCodesCoverAllKinds(t *testing.T) {
	t.Parallel()
	// The numbers are a promise: this is the second place where they are written down.
	want := map[dr.Kind]int{dr.KindInternal: 1, dr.KindInvalid: 2, dr.KindNotFound: 3, dr.KindConflict: 4, dr.KindUnauthenticated: 5, dr.KindForbidden: 6, dr.KindFenced: 7,
		dr.KindPrecondition: 8, dr.KindUnsupported: 9, dr.KindUnavailable: 10, dr.KindExhausted: 11, dr.KindCorrupt: 12, dr.KindCanceled: 13}
	seen := map[int]bool{ExitOK: true}
	help := ExitCodesTopic().Long
	for _, k := range dr.Kinds() {
		code := ExitCode(k)
		if w, ok := want[k]; !ok || code != w {
			t.Errorf("%s has exit code %d, want %d", k, code, w)
		}
		if seen[code] {
			t.Errorf("exit code %d of %s is used twice", code, k)
		}
		seen[code] = true
		if !strings.Contains(help, fmt.Sprintf("%4d  %-16s ", code, k)) {
			t.Errorf("the help topic lacks %s", k)
		}
	}
	if len(exits) != len(dr.Kinds()) {
		t.Errorf("%d rows for %d kinds", len(exits), len(dr.Kinds()))
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	full := dr.New(dr.KindExhausted, dr.CodeStoreFull, "x", "put object a/b: %w", errors.New("no space\x1b[31m left")).WithHint("Add space.")
	for _, tc := range []struct {
		name string
		err  error
		json bool
		code int
		want string
	}{
		{"message, cause and hint", full, false, 11, "error: put object a/b: no space?[31m left\n  do:  Add space.\n"},
		{"json", full, true, 11, `{"error":{"kind":"exhausted","code":"StoreFull","message":"put object a/b: no space\u001b[31m left","hint":"Add space.","exitCode":11}}` + "\n"},
		{"remedy of the catalogue", dr.New(dr.KindNotFound, dr.CodeNotFound, "x", "no site"), false, 3, "error: no site\n  do:  Check the name; list the parent to see what exists.\n"},
		{"lines are set under the first", dr.Errorf(dr.KindInvalid, "x", "a\nb"), false, 2, "error: a\n       b\n"},
		{"canceled", context.Canceled, false, 13, "error: context canceled\n"},
		{"read-only store", &objstore.Error{Op: "put", Key: "k", Kind: objstore.ErrReadOnly}, false, 6, "error: "},
		{"unmounted store", &objstore.Error{Op: "open", Key: "k", Kind: objstore.ErrUnavailable}, false, 10, "error: "},
		{"missing file", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, false, 3, "error: open x: file does not exist\n"},
		{"forbidden file", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, false, 6, "error: "},
		{"anything else", errors.New("boom"), false, 1, "error: boom\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, out, errs := newConsole()
			c.JSON = tc.json
			if code := c.Report(tc.err); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.HasPrefix(errs.String(), tc.want) || (strings.HasSuffix(tc.want, "\n") && errs.String() != tc.want) {
				t.Errorf("printed %q, want %q", errs, tc.want)
			}
			if out.Len() > 0 {
				t.Errorf("an error went to standard output: %q", out)
			}
		})
	}
}

func TestTableFitsAndLosesNothing(t *testing.T) {
	t.Parallel()
	type row struct{ name, state, note string }
	long := strings.Repeat("replica-of-the-accounting-server-", 4)
	rows := []row{{"web01", "Protected", "all is well"}, {long, "InitialReplicationInProgress", "behind by 12 GiB, converging, " + long}, {"日本語サーバー名前が長いとき", "Protected", "wide runes"}}
	cols := []Column[row]{Wide("NAME", func(r row) string { return r.name }), Col("STATE", func(r row) string { return r.state }), Wide("NOTE", func(r row) string { return r.note })}
	c, out, _ := newConsole()
	if err := List(c, rows, "none", cols...); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if w := runewidth.StringWidth(strings.TrimSuffix(line, "\n")); w > MinWidth {
			t.Errorf("line of %d columns: %q", w, line)
		}
	}
	// Column by column, the words are all there.
	squeeze := func(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, " ", ""), "\n", "") }
	var names string
	lines := strings.Split(out.String(), "\n")
	width := strings.Index(lines[0], "STATE")
	for _, l := range lines[1:] {
		names += runewidth.Truncate(l, width, "")
	}
	if want := squeeze("web01" + long + rows[2].name); squeeze(names) != want {
		t.Errorf("the first column shows\n%s\nwant\n%s", squeeze(names), want)
	}
}

func TestListEmpty(t *testing.T) {
	t.Parallel()
	c, out, errs := newConsole()
	if err := List(c, []int(nil), "nothing here"); err != nil || out.Len() > 0 || errs.String() != "nothing here\n" {
		t.Errorf("%v, out %q, err %q", err, out, errs)
	}
	c, out, errs = newConsole()
	c.JSON = true
	if err := List(c, []int(nil), "nothing here"); err != nil || out.String() != "[]\n" || errs.Len() > 0 {
		t.Errorf("JSON: %v, out %q, err %q", err, out, errs)
	}
}

func FuzzWrap(f *testing.F) {
	f.Add("a few words", 5)
	f.Add("日本語", 3)
	f.Add("", 1)
	f.Add("  leading and trailing  ", 4)
	f.Fuzz(func(t *testing.T, s string, width int) {
		if width < 2 || width > 200 || len(s) > 1000 {
			return
		}
		s = Clean(s, false)
		lines := wrap(s, width)
		for _, l := range lines {
			if runewidth.StringWidth(l) > width {
				t.Fatalf("wrap(%q, %d): line %q is too wide", s, width, l)
			}
		}
		if got, want := strings.ReplaceAll(strings.Join(lines, ""), " ", ""), strings.ReplaceAll(s, " ", ""); got != want {
			t.Fatalf("wrap(%q, %d) = %q", s, width, lines)
		}
	})
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{0: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m30s", 10*time.Minute + 5*time.Second: "10m",
		2 * time.Hour: "2h", 25 * time.Hour: "1d1h", 12 * 24 * time.Hour: "12d"} {
		if got := Short(d); got != want {
			t.Errorf("Short(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 16 << 20: "16.0 MiB", 999 << 20: "999 MiB", 1000 << 20: "0.98 GiB", 5 << 40: "5.00 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]int64{"0": 0, "65536": 65536, "64K": 64 << 10, "20M": 20 << 20, "20MiB": 20 << 20, "4gb": 4 << 30, "1T": 1 << 40} {
		var s Size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("Size(%q) = %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "1.5G", "20X", "20 M M", "99999999T", "1e9"} {
		var s Size
		if err := s.Set(text); err == nil {
			t.Errorf("Size(%q) = %d was accepted", text, s)
		}
	}
	if got := Clean("a\x1b]0;x\x07\tb\nc\u202e", false); got != "a?]0;x? b c?" {
		t.Errorf("Clean leaves %q", got)
	}
	c, _, _ := newConsole()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { return now }
	at := now.Add(-3 * time.Minute)
	if got, want := c.When(&at), at.Local().Format("2006-01-02 15:04")+" (3m ago)"; got != want {
		t.Errorf("When = %q, want %q", got, want)
	}
	if c.When(nil) != "-" || c.When(&time.Time{}) != "-" {
		t.Error("an unset time is shown")
	}
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		ask, yes bool
		answer   string
		want     dr.Kind
		ok       bool
	}{
		{"--yes", false, true, "", 0, true}, {"nobody to ask", false, false, "yes\n", dr.KindInvalid, false},
		{"yes", true, false, "yes\n", 0, true}, {"Y", true, false, "Y\n", 0, true}, {"no", true, false, "n\n", dr.KindCanceled, false},
		{"empty", true, false, "\n", dr.KindCanceled, false}, {"end of input", true, false, "", dr.KindCanceled, false}, {"something else", true, false, "yess\n", dr.KindCanceled, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, _, _ := newConsole()
			c.Ask, c.Yes, c.In = tc.ask, tc.yes, strings.NewReader(tc.answer)
			err := c.Confirm("the site %s goes", "a")
			if tc.ok != (err == nil) || err != nil && dr.KindOf(err) != tc.want {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	filled := 0
	fill := func() ([]byte, error) { filled++; return []byte("secret"), nil }
	if err := CreateFile(path, fill); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := CreateFile(path, fill); dr.KindOf(err) != dr.KindConflict || filled != 1 {
		t.Errorf("an existing file: %v, filled %d times", err, filled)
	}
	if b, _ := os.ReadFile(path); string(b) != "secret" {
		t.Errorf("the file was changed to %q", b)
	}
	other := path + "2"
	if err := CreateFile(other, func() ([]byte, error) { return nil, errors.New("vault is gone") }); err == nil {
		t.Error("a failed fill succeeded")
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a failed fill leaves a file behind")
	}
	if err := ReplaceFile(path, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "new" {
		t.Errorf("read %q", b)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestLogFlags(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := (&LogFlags{"warn", "json"}).Open(&b)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud", slog.Int("n", 1))
	if !strings.HasPrefix(b.String(), "{") || strings.Contains(b.String(), "quiet") || !strings.Contains(b.String(), "loud") {
		t.Errorf("logged %s", &b)
	}
	for _, l := range []*LogFlags{{"loud", "text"}, {"info", "xml"}} {
		if _, err := l.Open(&b); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%+v: %v", l, err)
		}
	}
}
