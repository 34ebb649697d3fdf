package assignment_test

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agent/assignment"
	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/pace"
)

func key(t testing.TB) cut.VaultPrivateKey {
	t.Helper()
	k, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func window(t testing.TB, text string) dr.Window {
	t.Helper()
	w, err := dr.ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

const hash = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// Every field of the wire arrives, and nothing is invented where it is silent.
func TestTranslate(t *testing.T) {
	t.Parallel()
	k := key(t)
	least := agentapi.Assignment{Machine: "m", VM: "vm", Generation: 1, VaultPublicKey: k.Public().Text()}
	got, err := assignment.Translate(least, assignment.First(least))
	if err != nil {
		t.Fatal(err)
	}
	if want := (capture.Assignment{VM: "vm", Gen: 1, CopyFrequency: dr.MinCopyFrequency, VaultKey: k.Public(), ResyncWindow: window(t, dr.DefaultResyncWindow)}); !reflect.DeepEqual(got, want) {
		t.Errorf("the least:\n got %+v\nwant %+v", got, want)
	}
	at := time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)
	full := agentapi.Assignment{
		Item: "i", Machine: "m", VM: "vm", VMName: "db", Disks: []string{"vda"}, Generation: 3, Base: &agentapi.CutRef{Generation: 2, N: 9, Hash: hash},
		CopyFrequencySeconds: 300, AppFrequencySeconds: 3600, Paused: true, VaultPublicKey: k.Public().Text(), Seeded: true,
		BaseDisks: []agentapi.BaseDisk{{ID: "vda", Index: 4, Size: 7}}, ResyncRequest: "r", ResyncReason: string(dr.CodeLogSequence), ResyncFull: true, InitialCancelled: true,
		PauseReason: "upgrade", ResumeAt: at, Initial: agentapi.Initial{NotBefore: at, Window: "20:00-06:00", Serial: true, Priority: -3},
		Resync: agentapi.Resync{Mode: "manual", Window: "01:00-02:00", Threshold: -1}, Compression: "fast",
	}
	got, err = assignment.Translate(full, assignment.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	want := capture.Assignment{
		VM: "vm", Disks: []string{"vda"}, Gen: 3, Base: cut.Ref{Gen: 2, N: 9, Hash: got.Base.Hash}, CopyFrequency: 5 * time.Minute, AppFrequency: time.Hour, Paused: true,
		VaultKey: k.Public(), Seeded: true, BaseDisks: []cut.Disk{{ID: "vda", Index: 4, Size: 7}}, ResyncRequest: "r", ResyncReason: dr.CodeLogSequence, ResyncFull: true, InitialCancelled: true,
		PauseReason: "upgrade", ResumeAt: at, InitialNotBefore: at, InitialWindow: window(t, "20:00-06:00"), InitialSerial: true, Priority: -3,
		ResyncMode: dr.ResyncManual, ResyncWindow: window(t, "01:00-02:00"), ResyncThreshold: -1, Codec: cut.CodecMinLZ,
	}
	if !reflect.DeepEqual(got, want) || got.Base.Hash.String() != hash {
		t.Errorf("everything:\n got %+v\nwant %+v", got, want)
	}
	// A field that is added to capture must be thought of here.
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("the test does not cover %s", v.Type().Field(i).Name)
		}
	}
}

func TestTranslateRefuses(t *testing.T) {
	t.Parallel()
	good := agentapi.Assignment{Machine: "m-7", VM: "vm", VMName: "db", Generation: 1, VaultPublicKey: key(t).Public().Text()}
	for name, c := range map[string]struct {
		change func(*agentapi.Assignment)
		code   dr.Code
		text   string
	}{
		"InitialWindow": {func(a *agentapi.Assignment) { a.Initial.Window = "25:00-26:00" }, dr.CodeWindowInvalid, "initial replication"},
		"ResyncWindow":  {func(a *agentapi.Assignment) { a.Resync.Window = "18:30" }, dr.CodeWindowInvalid, "resynchronizations"},
		"Mode":          {func(a *agentapi.Assignment) { a.Resync.Mode = "whenever" }, "", `"whenever"`},
		"Compression":   {func(a *agentapi.Assignment) { a.Compression = "zip" }, "", `"zip"`},
		"Base":          {func(a *agentapi.Assignment) { a.Base = &agentapi.CutRef{Generation: 1, Hash: "ab"} }, "", "hash"},
		"Key":           {func(a *agentapi.Assignment) { a.VaultPublicKey = "?" }, "", ""},
	} {
		a := good
		c.change(&a)
		_, err := assignment.Translate(a, assignment.Mark{})
		if dr.KindOf(err) != dr.KindInvalid && name != "Key" || err == nil || dr.CodeOf(err) != c.code && name != "Key" || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%s)", name, err, dr.CodeOf(err))
		}
		if name != "Key" && (!strings.Contains(err.Error(), "m-7") || dr.HintOf(err) == "") {
			t.Errorf("%s: neither machine nor a way out: %v", name, err)
		}
	}
}

// The transcript of one-time orders: what is asked of capture after each assignment.
func TestMarks(t *testing.T) {
	t.Parallel()
	pub := key(t).Public().Text()
	for name, c := range map[string]struct {
		base  bool
		steps []struct{ resync, full, want string }
	}{
		"Fresh": {false, []struct{ resync, full, want string }{
			{"", "", " false"}, {"r1", "", "r1 false"}, {"r1", "f1", "r1+f1 true"}, {"r1", "f1", "r1+f1 true"}, {"r2", "f1", "r2+f1 false"}, {"r3", "f2", "r3+f2 true"}, {"r3", "", "r3 false"},
		}},
		"TakenOverWithOldOrders": {true, []struct{ resync, full, want string }{
			{"r1", "f1", " false"}, {"r1", "f1", " false"}, {"r2", "f1", "r2+f1 false"}, {"r2", "f2", "r2+f2 true"},
		}},
		"FreshWithOldOrders": {false, []struct{ resync, full, want string }{{"r1", "f1", "r1+f1 false"}}},
	} {
		var m assignment.Mark
		for i, s := range c.steps {
			a := agentapi.Assignment{Machine: "m", VM: "vm", Generation: 2, VaultPublicKey: pub, ResyncRequest: s.resync, Full: s.full}
			if c.base {
				a.Base = &agentapi.CutRef{Generation: 1, N: 1, Hash: hash}
			}
			if m = m.Next(a); i == 0 {
				m = assignment.First(a)
			}
			got, err := assignment.Translate(a, m)
			if err != nil {
				t.Fatal(err)
			}
			if text := got.ResyncRequest + " " + strconv.FormatBool(got.ResyncFull); text != s.want {
				t.Errorf("%s, step %d: %q, want %q", name, i, text, s.want)
			}
		}
	}
}

func limited(machine, group string, rules ...agentapi.BandwidthRule) agentapi.Assignment {
	return agentapi.Assignment{Machine: machine, Bandwidth: &agentapi.Bandwidth{Group: group, Rules: rules}}
}

// Items of a policy share its limit, all items the agent's; windows open and close by themselves.
func TestLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // begins at midnight UTC
		rules, err := assignment.ParseRules([]string{"08:00-18:00 UTC=1000000"}, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }, 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		l := assignment.NewLimits(pace.NewLimiter(assignment.Rule(rules), nil))
		item := func(a agentapi.Assignment) *pace.Limiter {
			t.Helper()
			x, err := l.Item(a)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		gold := agentapi.BandwidthRule{BytesPerSecond: 1 << 20}
		a, b, c := item(limited("a", "gold", gold)), item(limited("b", "gold", gold)), item(agentapi.Assignment{Machine: "c"})
		if a == b || item(limited("a", "gold", gold)) != a {
			t.Error("limiters are not one for each item")
		}
		if a.Rate() != 1<<20 || c.Rate() != 4<<20 || l.Rate("b") != 1<<20 {
			t.Errorf("rates %d %d", a.Rate(), c.Rate())
		}
		began := time.Now()
		done := make(chan error, 2)
		for _, x := range []*pace.Limiter{a, b} {
			go func() { done <- x.Wait(context.Background(), 5<<20) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began).Seconds(); took < 9 || took > 11 {
			t.Errorf("10 MiB of two items took %v s at 1 MiB/s", took)
		}
		time.Sleep(9 * time.Hour)
		if a.Rate() != 1000000 || c.Rate() != 1000000 {
			t.Errorf("in office hours: rates %d %d", a.Rate(), c.Rate())
		}
		// The rule of a policy changes for all its items; an item changes its policy.
		item(limited("b", "gold", agentapi.BandwidthRule{BytesPerSecond: 100000}))
		if a.Rate() != 100000 {
			t.Errorf("the changed rule: %d", a.Rate())
		}
		if a = item(limited("a", "silver")); a.Rate() != 1000000 {
			t.Errorf("in another policy: %d", a.Rate())
		}
		// What can't be read changes nothing.
		if _, err := l.Item(limited("b", "gold", agentapi.BandwidthRule{Window: "noon", BytesPerSecond: 7})); dr.CodeOf(err) != dr.CodeWindowInvalid {
			t.Errorf("a window that can't be read: %v", err)
		}
		if _, err := l.Item(limited("b", "gold", agentapi.BandwidthRule{BytesPerSecond: -7})); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("a negative rate: %v", err)
		}
		if b.Rate() != 100000 {
			t.Errorf("after errors: %d", b.Rate())
		}
		l.Keep(map[string]bool{"a": true})
		if got := item(limited("b", "gold", gold)); got == b || got.Rate() != 1000000 {
			t.Errorf("a forgotten item: %d", got.Rate())
		}
	})
}

func TestParseRules(t *testing.T) {
	t.Parallel()
	rate := func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }
	for name, c := range map[string]struct {
		texts     []string
		otherwise int64
		want      string // of the rules, or part of the error
		bad       bool
	}{
		"None":     {nil, 0, "", false},
		"Always":   {nil, 1 << 20, "=1048576", false},
		"Hours":    {[]string{"Mon-Fri 08:00-18:00=5000000"}, 0, "Mon-Fri 08:00-18:00=5000000", false},
		"Both":     {[]string{"Mon-Fri 08:00-18:00=5000000", "Sat 00:00-24:00=0"}, 1 << 20, "Mon-Fri 08:00-18:00=5000000|Sat 00:00-24:00=0|=1048576", false},
		"NoWindow": {[]string{"=5000000"}, 0, "WINDOW=RATE", true},
		"NoRate":   {[]string{"08:00-18:00"}, 0, "WINDOW=RATE", true},
		"BadRate":  {[]string{"08:00-18:00=fast"}, 0, "fast", true},
		"BadHours": {[]string{"8-18=5000000"}, 0, "8-18", true},
		"TooSlow":  {nil, 20, "below", true},
		"SlowHour": {[]string{"08:00-18:00=5"}, 0, "below", true},
	} {
		rules, err := assignment.ParseRules(c.texts, rate, c.otherwise)
		var got []string
		for _, r := range rules {
			got = append(got, r.Window.String()+"="+strconv.FormatInt(r.BytesPerSecond, 10))
		}
		switch text := strings.Join(got, "|"); {
		case c.bad && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v", name, err)
		case !c.bad && (err != nil || text != c.want):
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
	if err := assignment.CheckRules([]dr.BandwidthRule{{BytesPerSecond: 1 << 20}, {Window: window(t, "08:00-18:00"), BytesPerSecond: 1 << 20}}); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("a rule that is never reached: %v", err)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	in := func(m, g string) agentapi.Assignment {
		return agentapi.Assignment{Machine: m, Group: &agentapi.Group{ID: g}}
	}
	g := assignment.NewGroups(sim.New(sim.Config{}))
	a, err := g.Of(in("a", "x"))
	b, berr := g.Of(in("b", "x"))
	c, cerr := g.Of(in("c", "y"))
	if err != nil || berr != nil || cerr != nil || a == nil || a != b || a == c {
		t.Errorf("groups %p %p %p", a, b, c)
	}
	if none, err := g.Of(agentapi.Assignment{}); none != nil || err != nil {
		t.Errorf("no group: %v %v", none, err)
	}
	g.Keep(map[string]bool{"x": true})
	if again, _ := g.Of(in("a", "x")); again != a {
		t.Error("a group that is kept was forgotten")
	}
	if again, _ := g.Of(in("c", "y")); again == c {
		t.Error("a group that nobody has was kept")
	}
	if _, err := assignment.NewGroups(struct{}{}).Of(in("a", "x")); dr.CodeOf(err) != dr.CodeGroupIncomplete || dr.HintOf(err) == "" {
		t.Errorf("a host that can't: %v", err)
	}
}
