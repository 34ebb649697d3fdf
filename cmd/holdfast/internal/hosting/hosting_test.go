package hosting

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/winservice"
)

func TestExceptions(t *testing.T) {
	t.Parallel()
	p := winservice.Proxy{HTTPS: "http://proxy:3128", Bypass: []string{"<local>", "*.corp.example", "10.*", "192.168.*.*", "172.2*", "store", "https://host:8443", "*"}}
	for vault, want := range map[string]string{
		"https://vault.corp.example:8443": "vault.corp.example,.corp.example,10.0.0.0/8,192.168.0.0/16,store,host:8443,*",
		"https://vault":                   "vault,.corp.example,10.0.0.0/8,192.168.0.0/16,store,host:8443,*"} {
		list, lost := exceptions(p, vault)
		if got := strings.Join(list, ","); got != want || strings.Join(lost, ",") != "<local>,172.2*" {
			t.Errorf("%s: %s, lost %v", vault, got, lost)
		}
	}
	if list, lost := exceptions(winservice.Proxy{HTTPS: "http://proxy:3128"}, "https://vault.example"); len(list)+len(lost) != 0 {
		t.Errorf("%v %v", list, lost)
	}
	for _, b := range []string{"10.*.1", "*.1", "1000.*", "a.*", "10.1.2.3.*", "", "."} {
		if got := network(b); got != "" {
			t.Errorf("%q is %s", b, got)
		}
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(file, []byte("two words\r\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := password(file); err != nil || p != "two words" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := password(file + "x"); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("%v", err)
	}
}

func TestWorkshop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct{ state, chosen, want string }{{filepath.Join(dir, "agent"), "", "agent.vms/plan"}, {filepath.Join(dir, "agent"), filepath.Join(dir, "other"), "other/plan"}} {
		got, err := Workshop(c.state, c.chosen, "plan")
		if st, serr := os.Stat(got); err != nil || serr != nil || !st.IsDir() || got != filepath.Join(dir, filepath.FromSlash(c.want)) {
			t.Errorf("%+v: %s, %v, %v", c, got, err, serr)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Workshop(filepath.Join(dir, "agent"), filepath.Join(dir, "file"), "plan"); err == nil {
		t.Errorf("below a file: %s", got)
	}
}

// local takes WS-Man if it answers, COM if it does not, and tells both reasons if neither does.
func TestLocalPrefersWSMan(t *testing.T) {
	t.Parallel()
	wsman, com := &fakeSession{}, &fakeSession{}
	by := func(s *fakeSession, err error) func() (cim.Session, error) {
		return func() (cim.Session, error) { return s, err }
	}
	byCOM := func(err error) func(context.Context) (cim.Session, error) {
		return func(context.Context) (cim.Session, error) { return com, err }
	}
	if s, err := local(t.Context(), by(wsman, nil), byCOM(nil)); err != nil || s != wsman {
		t.Errorf("%v %v", s, err)
	}
	wsman.err = &cim.Error{Code: cim.CodeUnauthorized, Op: "query", Message: "who are you"}
	if s, err := local(t.Context(), by(wsman, nil), byCOM(nil)); err != nil || s != com || !wsman.closed {
		t.Errorf("%v %v, closed %v", s, err, wsman.closed)
	}
	if _, err := local(t.Context(), by(wsman, nil), byCOM(errors.New("no such interface"))); err == nil || !strings.Contains(err.Error(), "who are you") || !strings.Contains(err.Error(), "no such interface") {
		t.Error(err)
	}
}

type fakeSession struct {
	cim.Session
	err    error
	closed bool
}

func (f *fakeSession) Query(context.Context, string, string) ([]*cim.Instance, error) {
	return nil, f.err
}

func (f *fakeSession) Close() error {
	f.closed = true
	return nil
}
