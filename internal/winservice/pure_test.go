package winservice

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"holdfast/internal/dr"
)

func TestNames(t *testing.T) {
	t.Parallel()
	good := Config{Name: "HoldfastAgent", Exe: `C:\Program Files\Holdfast\holdfast.exe`}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "a b", `a\b`, "a/b", "ä", strings.Repeat("x", 81)} {
		if err := (Config{Name: name, Exe: good.Exe}).check(); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for _, exe := range []string{"", "holdfast.exe", `.\holdfast.exe`, "/usr/bin/holdfast"} {
		if err := (Config{Name: "a", Exe: exe}).check(); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("program %q: %v", exe, err)
		}
	}
	if !absoluteExe(`\\server\share\holdfast.exe`) {
		t.Error("a share is no absolute path")
	}
}

// events is an event log of a test.
type events []string

func (e *events) Info(id uint32, text string) error {
	*e = append(*e, fmt.Sprintf("info %d %s", id, text))
	return nil
}

func (e *events) Warning(id uint32, text string) error {
	*e = append(*e, fmt.Sprintf("warning %d %s", id, text))
	return nil
}

func (e *events) Error(id uint32, text string) error {
	*e = append(*e, fmt.Sprintf("error %d %s", id, text))
	return errors.New("full")
}

func TestEventLog(t *testing.T) {
	t.Parallel()
	var e events
	log := slog.New(&handler{sink: &e, level: slog.LevelInfo})
	log.Debug("not told")
	log.Info("Begun.", "vm", "a", slog.Group("disk", "id", 3, slog.Group("", "n", 1)))
	log.With("host", "h").WithGroup("g").With("x", 1).Warn("Slow.", "y", 2)
	log.Error("Failed.\x00", "error", errors.New("no"))
	want := events{"info 1 Begun.\r\nvm: a\r\ndisk.id: 3\r\ndisk.n: 1", "warning 2 Slow.\r\nhost: h\r\ng.x: 1\r\ng.y: 2", "error 3 Failed.?\r\nerror: no"}
	if strings.Join(e, "|") != strings.Join(want, "|") {
		t.Errorf("got %q\nwant %q", e, want)
	}
	e = nil
	log.Info(strings.Repeat("ä", maxEvent))
	if text := e[0]; len(text) > maxEvent+20 || !utf8.ValidString(text) || !strings.HasSuffix(text, "…") {
		t.Errorf("a long text has %d bytes, valid %v", len(text), utf8.ValidString(text))
	}
	// Loggers that come from one don't share their attributes' memory.
	e = nil
	base := log.With("a", 1, "b", 2, "c", 3)
	one, two := base.With("d", "one"), base.With("d", "two")
	one.Info("x")
	two.Info("x")
	if !strings.HasSuffix(e[0], "d: one") || !strings.HasSuffix(e[1], "d: two") {
		t.Errorf("%q", e)
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ servers, bypass, url, want string }{
		{"", "", "https://vault.example", ""},
		{"proxy:3128", "", "https://vault.example", "http://proxy:3128"},
		{"proxy:3128", "", "http://vault.example", "http://proxy:3128"},
		{"http=a:80;https=b:81", "", "https://vault.example", "http://b:81"},
		{"http=a:80;https=b:81", "", "http://vault.example", "http://a:80"},
		{"http=a:80", "", "https://vault.example", ""},
		{"https=https://b:81 ftp=c:21", "", "https://vault.example", "https://b:81"},
		{"p:1", "*.example;x", "https://vault.EXAMPLE", ""},
		{"p:1", "*.example;x", "https://vault.example.org", "http://p:1"},
		{"p:1", "<local>", "https://vault", ""},
		{"p:1", "<local>", "https://vault.example", "http://p:1"},
		{"p:1", "10.*", "https://10.1.2.3:8443", ""},
		{"p:1", "vault.example:8443", "https://vault.example:8443", ""},
		{"p:1", "https://vault.example", "https://vault.example", ""},
		{"p:1", "http://vault.example", "https://vault.example", "http://p:1"},
		{"p:1", "[", "https://vault.example", "http://p:1"},
		{"p:1", "<local>", "https://[2001:db8::1]", "http://p:1"},
		{"p:1", "", "https://localhost:1", ""}, {"p:1", "", "https://127.0.0.1", ""}, {"p:1", "", "https://[::1]", ""},
	} {
		p, err := parseProxy(c.servers, c.bypass)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Func()(&http.Request{URL: u})
		if text := ""; err != nil || got != nil && got.String() != c.want || got == nil && c.want != text {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	for _, bad := range []string{"http://user:secret@p:1", "=", "https=", "socks5://a:1", "http=%zz"} {
		if p, err := parseProxy(bad, ""); err == nil {
			t.Errorf("%q is %+v", bad, p)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func FuzzProxy(f *testing.F) {
	f.Add("http=a:80;https=b:81", "*.x;<local>", "https://vault.example")
	f.Fuzz(func(t *testing.T, servers, bypass, target string) {
		p, err := parseProxy(servers, bypass)
		u, uerr := url.Parse(target)
		if err != nil || uerr != nil {
			return
		}
		if got, err := p.For(u); err != nil || got != nil && got.Host == "" {
			t.Errorf("%v, %v", got, err)
		}
	})
}
