package holding

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
)

// fakeAgent answers on a socket until the test ends; answer returns what to
// send for a command, "" to hang up, or waits.
func fakeAgent(t *testing.T, greeting string, answer func(cmd string, id int64) string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qga")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, greeting)
			for s := bufio.NewScanner(c); s.Scan(); {
				var cmd struct {
					Execute   string
					Arguments struct{ ID int64 }
				}
				if err := json.Unmarshal([]byte(strings.TrimPrefix(s.Text(), "\xff")), &cmd); err != nil {
					t.Errorf("the agent was sent %q", s.Text())
				}
				ans := answer(cmd.Execute, cmd.Arguments.ID)
				if ans == "" {
					break
				}
				fmt.Fprint(c, ans)
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestAskToThaw(t *testing.T) {
	t.Parallel()
	sync := func(id int64) string { return fmt.Sprintf("\xff{\"return\": %d}\n", id) }
	sound := func(cmd string, id int64) string {
		return map[string]string{"guest-sync-delimited": sync(id), "guest-fsfreeze-thaw": "{\"return\": 2}\n", "guest-fsfreeze-status": "{\"return\": \"thawed\"}\n"}[cmd]
	}
	but := func(name, ans string) func(string, int64) string {
		return func(cmd string, id int64) string {
			if cmd == name {
				return ans
			}
			return sound(cmd, id)
		}
	}
	for name, c := range map[string]struct {
		greeting string
		answer   func(string, int64) string
		ok       bool
	}{
		"sound":               {"", sound, true},
		"old answers first":   {"{\"return\": {}}\n\xff{\"return\": 7}\n{\"ret", sound, true},
		"garbage first":       {"\x00\xff\xff{{{\n", sound, true},
		"hangs up":            {"", but("guest-fsfreeze-thaw", ""), false},
		"hangs up at once":    {"", but("guest-sync-delimited", ""), false},
		"refuses":             {"", but("guest-fsfreeze-thaw", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"), false},
		"garbage":             {"", but("guest-fsfreeze-thaw", "garbage\n"), false},
		"garbage without end": {"", but("guest-fsfreeze-thaw", strings.Repeat("x", maxAgentLine+1)), false},
		"still frozen":        {"", but("guest-fsfreeze-status", "{\"return\": \"frozen\"}\n"), false},
		"no status":           {"", but("guest-fsfreeze-status", "{\"return\": 5}\n"), false},
		"silent after a sync": {"", but("guest-fsfreeze-thaw", " "), false},
		"wrong sync":          {"", but("guest-sync-delimited", "\xff{\"return\": -1}\n"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := fakeAgent(t, c.greeting, c.answer)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			began := time.Now()
			n, err := askToThaw(ctx, path)
			if (err == nil) != c.ok || (c.ok && n != 2) {
				t.Errorf("%d, %v", n, err)
			}
			if time.Since(began) > 10*time.Second {
				t.Error("it took too long")
			}
		})
	}
	if _, err := askToThaw(t.Context(), "/nonexistent/s"); err == nil {
		t.Error("no agent at all")
	}
}

// agentSays is an agent that says what it says whatever it is asked; ID stands for the id of the sync.
type agentSays struct {
	text  []byte
	asked bytes.Buffer
}

func (a *agentSays) Write(p []byte) (int, error) { return a.asked.Write(p) }

func (a *agentSays) Read(p []byte) (int, error) {
	if i := bytes.Index(a.asked.Bytes(), []byte(`"id":`)); i >= 0 {
		id := a.asked.Bytes()[i+5:]
		a.text = bytes.ReplaceAll(a.text, []byte("ID"), id[:bytes.IndexByte(id, '}')])
		a.asked.Reset()
	}
	if len(a.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, a.text)
	a.text = a.text[n:]
	return n, nil
}

func FuzzThawOver(f *testing.F) {
	f.Add([]byte("\xff{\"return\": ID}\n{\"return\": 2}\n{\"return\": \"thawed\"}\n"))
	f.Add([]byte("{\"return\": {}}\n\xff\xff{\"return\": ID}\n{\"error\": {\"desc\": \"x\"}}\n"))
	f.Add([]byte("\xff{\"return\": ID}\n{\"return\": 2}\n{\"return\": \"frozen\"}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := thawOver(&agentSays{text: text})
		if err == nil && !bytes.Contains(text, []byte(`"thawed"`)) && !bytes.Contains(text, []byte(`\u`)) {
			t.Errorf("%q counts as thawed", text)
		}
	})
}

func TestThawLowers(t *testing.T) {
	t.Parallel()
	good := thawed{confirmed: true, count: 2}
	for name, c := range map[string]struct {
		change func(*thawed)
		held   time.Duration
		want   string
	}{
		"good":            {func(*thawed) {}, time.Second, ""},
		"too early":       {func(t *thawed) { t.early = true }, time.Second, "before the cut"},
		"not confirmed":   {func(t *thawed) { t.confirmed = false }, time.Second, "not confirmed"},
		"late":            {func(*thawed) {}, 11 * time.Second, "only after 11s"},
		"thawed already":  {func(t *thawed) { t.count = 0 }, time.Second, "by itself"},
		"exactly allowed": {func(*thawed) {}, 10 * time.Second, ""},
	} {
		th := good
		c.change(&th)
		if got := th.lowers(c.held, 10*time.Second); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	var none *Frost
	if level, note, held := none.Finish(); level != dr.CrashConsistent || note != "" || held != 0 {
		t.Errorf("nobody asked for a freeze: %s, %q, %v", level, note, held)
	}
}

func TestSaysThawed(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{`{"return":"thawed"}`: true, `{"return":"frozen"}`: false, `{"return":5}`: false, `{`: false, `{}`: false} {
		if err := saysThawed(golibvirt.OptString{s}); (err == nil) != want {
			t.Errorf("%s: %v", s, err)
		}
	}
	if saysThawed(nil) == nil {
		t.Error("no answer counts as thawed")
	}
}
