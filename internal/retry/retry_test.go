package retry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/retry"
)

const layout = "2006-01-02T15:04:05"

// TestTranscripts plays testdata/*.txt. A line is TIME EVENT [ARGUMENTS] and, after
// "=>", what follows. TIME is on the clock, or "due" for the time of the planned
// attempt. The events:
//
//	fail CODE [jitter=J]  an attempt fails (CODE may be kind:KIND for an error without code)
//	ok                    an attempt succeeds
//	retry-now             an operator's act
//	restart               the state goes through its JSON form
//	wait                  the caller asks how long to wait
//
// HOLDFAST_UPDATE=1 go test ./internal/retry -run TestTranscripts writes the right sides anew.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if os.Getenv("HOLDFAST_UPDATE") != "" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, have := strings.Split(string(text), "\n"), strings.Split(got, "\n")
			for i := range max(len(want), len(have)) {
				if i >= len(want) || i >= len(have) || want[i] != have[i] {
					t.Fatalf("line %d is\n%s\nwant\n%s", i+1, strings.Join(have[i:min(i+1, len(have))], ""), strings.Join(want[i:min(i+1, len(want))], ""))
				}
			}
		})
	}
}

func play(t *testing.T, text string) string {
	t.Helper()
	var s retry.State
	var out strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		left, _, _ := strings.Cut(line, "=>")
		left = strings.TrimSpace(left)
		words := strings.Fields(left)
		if len(words) == 0 || words[0] == "#" {
			out.WriteString(line + "\n")
			continue
		}
		now := s.Next()
		if words[0] != "due" {
			var err error
			if now, err = time.Parse(layout, words[0]); err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
		}
		fmt.Fprintf(&out, "%-62s => %s\n", left, apply(t, &s, now, words[1:]))
	}
	return out.String()
}

func apply(t *testing.T, s *retry.State, now time.Time, event []string) string {
	t.Helper()
	switch event[0] {
	case "fail":
		jitter := 0.0
		if len(event) > 2 {
			j, err := strconv.ParseFloat(strings.TrimPrefix(event[2], "jitter="), 64)
			if err != nil {
				t.Fatal(err)
			}
			jitter = j
		}
		d := s.Failed(now, failure(t, event[1]), jitter)
		if d.Class != s.Class() || d.Attempt != s.Attempt() || !d.At.Equal(s.Next()) {
			t.Fatalf("the decision %+v is not the state", d)
		}
	case "ok":
		s.Succeeded()
	case "retry-now":
		s.RetryNow(now)
	case "restart":
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var fresh retry.State
		if err := json.Unmarshal(text, &fresh); err != nil {
			t.Fatal(err)
		}
		if *s != fresh {
			t.Fatalf("%+v came back as %+v", *s, fresh)
		}
		*s = fresh
	case "wait":
		d, ok := s.Wait(now)
		if !ok {
			return describe(s, now) + ", wait for an operator"
		}
		return describe(s, now) + ", wait " + d.String()
	default:
		t.Fatalf("event %q", event[0])
	}
	return describe(s, now)
}

func failure(t *testing.T, name string) error {
	if kind, ok := strings.CutPrefix(name, "kind:"); ok {
		k, known := dr.ParseKind(kind)
		if !known {
			t.Fatalf("kind %q", kind)
		}
		return dr.Errorf(k, "test", "no code")
	}
	entry, ok := dr.Lookup(dr.Code(name))
	if !ok {
		t.Fatalf("code %q is not in the catalogue", name)
	}
	return fmt.Errorf("wrapped: %w", dr.New(entry.Kind, entry.Code, "test", "failed"))
}

func describe(s *retry.State, now time.Time) string {
	if s.Class() == retry.Healthy {
		return "healthy"
	}
	text := fmt.Sprintf("%s %s, attempt %d", s.Class(), s.Code(), s.Attempt())
	if s.Next().IsZero() {
		return text + ", no next"
	}
	return text + fmt.Sprintf(", next %s (in %v)", s.Next().Format(layout), s.Next().Sub(now))
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, e := range dr.Catalogue() {
		want := retry.Recoverable
		if e.Retry == dr.NonRecoverable {
			want = retry.NonRecoverable
		}
		if got := retry.Classify(dr.Errorf(dr.KindInternal, "outer", "x: %w", dr.New(e.Kind, e.Code, "inner", "y"))); got != want {
			t.Errorf("%s is %s, want %s", e.Code, got, want)
		}
	}
	stops := map[dr.Kind]bool{dr.KindUnauthenticated: true, dr.KindForbidden: true, dr.KindFenced: true, dr.KindInvalid: true, dr.KindUnsupported: true}
	for _, k := range dr.Kinds() {
		got := retry.Classify(dr.Errorf(k, "test", "no code"))
		if (got == retry.NonRecoverable) != stops[k] {
			t.Errorf("kind %v without code is %s", k, got)
		}
	}
	if retry.Classify(nil) != retry.Healthy || retry.Classify(errors.New("foreign")) != retry.Recoverable {
		t.Error("nil or a foreign error")
	}
	if retry.Classify(dr.New(dr.KindForbidden, "FromTheFuture", "test", "x")) != retry.NonRecoverable {
		t.Error("a code that is not in the catalogue is classified by its kind")
	}
}

var (
	noon    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	network = dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "network")
	fenced  = dr.New(dr.KindFenced, dr.CodeGenerationFenced, "test", "fenced")
)

// TestNeitherHammersNorStalls: random failures, acts, restarts and clock jumps.
func TestNeitherHammersNorStalls(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var s retry.State
		now := noon
		for range 300 {
			switch rnd.IntN(8) {
			case 0: // any jump of the clock
				now = now.Add(time.Duration(rnd.Int64N(int64(800*time.Hour))) - 400*time.Hour)
			case 1:
				now = now.Add(time.Duration(rnd.Int64N(int64(40 * time.Minute))))
			case 2:
				s.RetryNow(now)
				if d, ok := s.Wait(now); !ok || d != 0 {
					t.Fatalf("seed %d: after retry now: wait %v %v", seed, d, ok)
				}
			case 3:
				text, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(text, &s); err != nil {
					t.Fatalf("seed %d: %v: %s", seed, err, text)
				}
			case 4:
				if rnd.IntN(4) == 0 {
					s.Succeeded()
				}
			case 5:
				d := s.Failed(now, fenced, rnd.Float64())
				if _, ok := s.Wait(now); ok || d.Class != retry.NonRecoverable || !d.At.IsZero() {
					t.Fatalf("seed %d: non-recoverable: %+v", seed, d)
				}
			default:
				began := s.Since()
				d := s.Failed(now, network, rnd.Float64())
				if p := d.At.Sub(now); p < retry.MinPause || p > retry.MaxPause {
					t.Fatalf("seed %d: a pause of %v", seed, p)
				}
				if !began.IsZero() && s.Since().After(now) {
					t.Fatalf("seed %d: failing since %v, after %v", seed, s.Since(), now)
				}
			}
			if d, ok := s.Wait(now); ok && (d < 0 || d > retry.MaxPause) {
				t.Fatalf("seed %d: wait %v", seed, d)
			}
		}
	}
}

// TestJitterKeepsTheShape: a tenth of the pause at most, never earlier; chance out of range does no harm.
func TestJitterKeepsTheShape(t *testing.T) {
	t.Parallel()
	for _, j := range []float64{0, 0.25, 0.999, 1, 7, -3, math.NaN(), math.Inf(1), math.Inf(-1)} {
		var s, plain retry.State
		now := noon
		for i := range 20 {
			at, bare := s.Failed(now, network, j).At, plain.Failed(now, network, 0).At
			if at.Before(bare) || at.Sub(bare) > bare.Sub(now)/10 {
				t.Fatalf("jitter %v, failure %d: %v instead of %v", j, i+1, at, bare)
			}
			now = bare
		}
	}
}

// TestExtremeClocks: the arithmetic survives clocks that are centuries off.
func TestExtremeClocks(t *testing.T) {
	t.Parallel()
	for _, to := range []time.Time{time.Unix(0, 0), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		var s retry.State
		s.Failed(noon, network, 1)
		if d, ok := s.Wait(to); !ok || d > retry.MaxPause {
			t.Errorf("%v: wait %v %v", to, d, ok)
		}
		at := s.Failed(to, network, 1).At
		if p := at.Sub(to); p < retry.MinPause || p > retry.MaxPause {
			t.Errorf("%v: a pause of %v", to, p)
		}
	}
}

// TestMonotonicTimeIsLeftOut: a state made from time.Now equals what comes back from JSON.
func TestMonotonicTimeIsLeftOut(t *testing.T) {
	t.Parallel()
	var s, back retry.State
	s.Failed(time.Now(), network, 0.5)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if s != back {
		t.Errorf("%+v\n%+v", s, back)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(retry.State{})
	if err != nil || string(text) != `{"version":1}` {
		t.Errorf("the zero state is %s, %v", text, err)
	}
	var s retry.State
	s.Failed(noon, network, 0)
	text, _ = json.Marshal(s)
	const golden = `{"version":1,"class":"recoverable","code":"StoreUnreachable","attempt":1,"since":"2026-11-22T12:00:00Z","anchor":"2026-11-22T12:00:00Z","next":"2026-11-22T12:01:00Z","seen":"2026-11-22T12:00:00Z"}`
	if string(text) != golden {
		t.Errorf("got  %s\nwant %s", text, golden)
	}
	before := s
	for name, c := range map[string]struct {
		text string
		kind dr.Kind
	}{
		"newer version":  {`{"version":2}`, dr.KindUnsupported},
		"no version":     {`{}`, dr.KindUnsupported},
		"not JSON":       {`{"version":1`, dr.KindInternal}, // refused before the state sees it
		"wrong type":     {`{"version":1,"attempt":"x"}`, dr.KindCorrupt},
		"class":          {strings.Replace(golden, `"recoverable"`, `"hopeful"`, 1), dr.KindCorrupt},
		"healthy, busy":  {`{"version":1,"attempt":3}`, dr.KindCorrupt},
		"negative":       {strings.Replace(golden, `"attempt":1`, `"attempt":-1`, 1), dr.KindCorrupt},
		"never again":    {strings.Replace(golden, `"next":"2026-11-22T12:01:00Z",`, ``, 1), dr.KindCorrupt},
		"in a year":      {strings.Replace(golden, `"next":"2026`, `"next":"2027`, 1), dr.KindCorrupt},
		"from tomorrow":  {strings.Replace(golden, `"anchor":"2026-11-22`, `"anchor":"2026-11-23`, 1), dr.KindCorrupt},
		"without anchor": {strings.Replace(golden, `"anchor":"2026-11-22T12:00:00Z",`, ``, 1), dr.KindCorrupt},
		"without time":   {`{"version":1,"class":"nonRecoverable"}`, dr.KindCorrupt},
	} {
		if err := json.Unmarshal([]byte(c.text), &s); err == nil || dr.KindOf(err) != c.kind {
			t.Errorf("%s: %v (%v)", name, err, dr.KindOf(err))
		}
		if s != before {
			t.Errorf("%s: the state was changed", name)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1}`), int64(0))
	f.Add([]byte(`{"version":1,"class":"recoverable","attempt":2,"since":"2026-11-22T12:00:00Z","anchor":"2026-11-22T12:00:00Z","next":"2026-11-22T12:04:00Z","seen":"2026-11-22T12:02:00Z"}`), int64(time.Hour))
	f.Fuzz(func(t *testing.T, text []byte, jump int64) {
		var s retry.State
		if err := json.Unmarshal(text, &s); err != nil {
			if s != (retry.State{}) {
				t.Fatal("a refused text changed the state")
			}
			return
		}
		now := noon.Add(time.Duration(jump))
		if d, ok := s.Wait(now); ok && (d < 0 || d > retry.MaxPause) {
			t.Fatalf("wait %v", d)
		}
		d := s.Failed(now, network, 1)
		if p := d.At.Sub(now); p < retry.MinPause || p > retry.MaxPause {
			t.Fatalf("a pause of %v", p)
		}
	})
}
