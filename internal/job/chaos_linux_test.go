package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
)

const chaosAgents = 20

// vault is how the drive talks to a replica: over HTTP or in the process.
type vault interface {
	submit(ctx context.Context, s Spec) error
	poll(ctx context.Context, agent string, have []string) (pollAnswer, error)
	report(ctx context.Context, agent, id string, r Report) error
}

func call1[A any](ctx context.Context, r *replica, path string, q any) (a A, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	req, err := http1(ctx, path, body)
	if err != nil {
		return a, err
	}
	res, err := r.client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		text, _ := io.ReadAll(res.Body)
		err := fmt.Errorf("%s %s: %d %s", r.name, path, res.StatusCode, bytes.TrimSpace(text))
		if res.StatusCode == 400 {
			return a, errors.Join(errRefused, err)
		}
		return a, err
	}
	return a, json.NewDecoder(res.Body).Decode(&a)
}

var errRefused = errors.New("refused for good")

func (r *replica) submit(ctx context.Context, s Spec) error {
	_, err := call1[string](ctx, r, "/submit", s)
	return err
}

func (r *replica) poll(ctx context.Context, agent string, have []string) (pollAnswer, error) {
	return call1[pollAnswer](ctx, r, "/poll", pollRequest{agent, have})
}

func (r *replica) report(ctx context.Context, agent, id string, rep Report) error {
	_, err := call1[bool](ctx, r, "/report", reportRequest{agent, id, rep})
	return err
}

// inside is an engine in this process. It counts the database errors it returns.
type inside struct {
	e     *Engine
	infra *atomic.Int64
}

func (v inside) count(err error) error {
	if errors.Is(err, sqldb.ErrInfrastructure) {
		v.infra.Add(1)
	}
	return err
}

func (v inside) submit(ctx context.Context, s Spec) error {
	_, err := v.e.Submit(ctx, nil, s)
	return v.count(err)
}

func (v inside) poll(ctx context.Context, agent string, have []string) (a pollAnswer, err error) {
	a.Commands, a.Cancels, err = v.e.PollCommands(ctx, agent, have, time.Second)
	return a, err
}

func (v inside) report(ctx context.Context, agent, id string, r Report) error {
	err := v.count(v.e.ReportCommand(ctx, agent, id, r))
	if err != nil && dr.KindOf(err) != dr.KindUnavailable && dr.KindOf(err) != dr.KindCanceled {
		err = errors.Join(errRefused, err)
	}
	return err
}

// drive submits jobs and plays the agents until all commands are acknowledged.
type drive struct {
	t         *testing.T
	vaults    []vault
	duplicate bool
	jobs      int

	mu       sync.Mutex
	executed map[string]int // job/step → how often an agent did it
	failures map[string]int // job/step → transient errors injected
	acked    int            // good reports acknowledged
	commands int
}

func chaosJobs() int {
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_CHAOS_JOBS")); err == nil && n > 0 {
		return n
	}
	return 100
}

func newDrive(t *testing.T, vaults ...vault) *drive {
	return &drive{t: t, vaults: vaults, jobs: chaosJobs(), executed: map[string]int{}, failures: map[string]int{}}
}

func (d *drive) any() vault { return d.vaults[rand.IntN(len(d.vaults))] }

// run drives until done or until the deadline.
func (d *drive) run(limit time.Duration) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	var wg sync.WaitGroup
	for a := range chaosAgents {
		wg.Go(func() { d.agent(ctx, fmt.Sprint("agent-", a)) })
	}
	wg.Go(func() {
		for i := range d.jobs { // spread over some seconds, so that the faults meet jobs
			d.try(ctx, func() error {
				return d.any().submit(ctx, Spec{ID: fmt.Sprintf("job-%04d", i), Kind: "drill", Item: fmt.Sprint("vm-", i),
					Input: fmt.Sprint("agent-", i%chaosAgents), Steps: steps("prep", "c1", "c2", "c3", "c4", "fin")})
			})
			select {
			case <-ctx.Done():
			case <-time.After(4 * time.Second / time.Duration(d.jobs)):
			}
		}
	})
	for ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		d.mu.Lock()
		done := d.acked == d.jobs*4
		d.mu.Unlock()
		if done {
			break
		}
	}
	if ctx.Err() != nil {
		d.t.Errorf("after %v only %d of %d agent steps are done", limit, d.acked, d.jobs*4)
	}
	cancel()
	wg.Wait()
}

// try repeats what the network or a dead replica may spoil.
func (d *drive) try(ctx context.Context, f func() error) {
	for ctx.Err() == nil {
		err := f()
		if err == nil {
			return
		}
		if errors.Is(err, errRefused) {
			d.t.Error(err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// agent does what the agent API asks of an agent: a journal of what it has done.
func (d *drive) agent(ctx context.Context, name string) {
	journal := map[string]Report{}
	acked := map[string]bool{}
	for ctx.Err() == nil {
		a, err := d.any().poll(ctx, name, nil)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for _, c := range a.Commands {
			rep, known := journal[c.ID]
			if !known {
				rep = d.execute(c.ID)
				journal[c.ID] = rep
			}
			times := 1
			if d.duplicate {
				times = 3
			}
			var wg sync.WaitGroup
			for range times {
				wg.Go(func() { d.try(ctx, func() error { return d.any().report(ctx, name, c.ID, rep) }) })
			}
			wg.Wait()
			if rep.State == ReportDone && !acked[c.ID] && ctx.Err() == nil {
				acked[c.ID] = true
				d.mu.Lock()
				d.acked++
				d.mu.Unlock()
			}
		}
		if d.duplicate && len(journal) > 0 { // and an old one, long after
			for id, rep := range journal {
				d.try(ctx, func() error { return d.any().report(ctx, name, id, rep) })
				break
			}
		}
	}
}

func (d *drive) execute(id string) Report {
	time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
	key := id[:strings.LastIndex(id, "/")]
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commands++
	d.executed[key]++
	if rand.IntN(20) == 0 {
		d.failures[key]++
		return Report{State: ReportFailed, Failure: FailureOf(dr.Errorf(dr.KindUnavailable, "agent", "network hiccup"))}
	}
	return Report{State: ReportDone, Pct: 100, Result: json.RawMessage(`"ok"`)}
}

// check is the pass criterion: all jobs done, nothing done twice, no orphan, the
// database sound.
func (d *drive) check(db *sqldb.DB) {
	t := d.t
	t.Helper()
	e := open(t, Config{DB: db, Owner: "judge"})
	for i := range d.jobs {
		final(t, e, fmt.Sprintf("job-%04d", i), Succeeded)
	}
	for key, n := range d.executed {
		if want := 1 + d.failures[key]; n != want {
			t.Errorf("%s was executed %d times, want %d", key, n, want)
		}
	}
	want := []string{}
	for i := range d.jobs {
		for _, s := range []string{"prep", "c1", "c2", "c3", "c4", "fin", "final/succeeded"} {
			want = append(want, fmt.Sprintf("job-%04d/%s", i, s))
		}
	}
	slices.Sort(want)
	got := slices.DeleteFunc(effectsOf(t, db), func(s string) bool { return !strings.HasPrefix(s, "job-") })
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%d effects, want %d", len(got), len(want))
	}
	count := func(query string) (n int) {
		if err := db.SQL().QueryRow(query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("select count(*) from job where state not in ('succeeded')"); n != 0 {
		t.Errorf("%d jobs are not done", n)
	}
	if n := count("select count(*) from job_step where state not in ('succeeded')"); n != 0 {
		t.Errorf("%d steps are not done", n)
	}
	if n := count("select count(*) from job_command where state not in ('done','failed')"); n != 0 {
		t.Errorf("%d commands are open", n)
	}
	if n := count("select count(*) from job_command"); n != d.commands {
		t.Errorf("%d commands in the database, %d were executed", n, d.commands)
	}
	if n := count("select count(*) from job_failure"); n != d.commands-d.jobs*4 {
		t.Errorf("%d failures are recorded, %d happened", n, d.commands-d.jobs*4)
	}
	if db.Dialect().Name() == "sqlite" {
		var s string
		if err := db.SQL().QueryRow("pragma integrity_check").Scan(&s); err != nil || s != "ok" {
			t.Errorf("integrity: %s, %v", s, err)
		}
		if err := db.SQL().QueryRow("pragma foreign_key_check").Scan(&s); err == nil {
			t.Errorf("foreign keys: %s", s)
		}
	}
}

func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("chaos drive")
	}
}

// during runs f repeatedly until the function it returns is called.
func during(f func(stop <-chan struct{})) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				f(stop)
			}
		}
	}()
	return func() { close(stop); <-done }
}

func nap(stop <-chan struct{}, from, to time.Duration) bool {
	select {
	case <-stop:
		return false
	case <-time.After(from + rand.N(to-from)):
		return true
	}
}

func TestChaosKillLoopOnSQLite(t *testing.T) {
	slow(t)
	url := sqldbtest.SQLiteURL(t)
	r := newReplica(t, url, "only")
	r.start()
	d := newDrive(t, r)
	kills := 0
	end := during(func(stop <-chan struct{}) {
		if nap(stop, 600*time.Millisecond, 1200*time.Millisecond) {
			r.kill()
			kills++
			r.start()
		}
	})
	d.run(90 * time.Second)
	end()
	time.Sleep(300 * time.Millisecond)
	settle(t, r, d)
	r.kill()
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills, %d commands", kills, d.commands)
	d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
}

// settle waits until the last steps, which need no agent, are through.
func settle(t *testing.T, r *replica, d *drive) {
	t.Helper()
	for i := range d.jobs {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			j, err := call1[Job](t.Context(), r, "/get", fmt.Sprintf("job-%04d", i))
			if err == nil && j.State.Final() {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("job %d does not end: %+v, %v", i, j, err)
			}
		}
	}
}

func threeReplicas(t *testing.T, url string) (rs []*replica, vs []vault) {
	for i := range 3 {
		r := newReplica(t, url, fmt.Sprint("r", i))
		r.start()
		rs, vs = append(rs, r), append(vs, r)
	}
	return rs, vs
}

func TestChaosQuietAndDuplicateReports(t *testing.T) {
	slow(t)
	t.Run("postgres", func(t *testing.T) {
		url := sqldbtest.PostgresURL(t)
		_, vs := threeReplicas(t, url)
		d := newDrive(t, vs...)
		d.duplicate = true
		d.run(60 * time.Second)
		d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
	})
	t.Run("postgres-quiet", func(t *testing.T) {
		url := sqldbtest.PostgresURL(t)
		_, vs := threeReplicas(t, url)
		d := newDrive(t, vs...)
		d.run(60 * time.Second)
		d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
	})
	t.Run("sqlite", func(t *testing.T) {
		url := sqldbtest.SQLiteURL(t)
		r := newReplica(t, url, "only")
		r.start()
		d := newDrive(t, r)
		d.duplicate = true
		d.run(60 * time.Second)
		settle(t, r, d)
		r.kill()
		d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
	})
}

func TestChaosKillReplicasOnPostgres(t *testing.T) {
	slow(t)
	url := sqldbtest.PostgresURL(t)
	rs, vs := threeReplicas(t, url)
	d := newDrive(t, vs...)
	kills := 0
	end := during(func(stop <-chan struct{}) {
		if nap(stop, 200*time.Millisecond, 600*time.Millisecond) {
			r := rs[rand.IntN(3)]
			r.kill()
			kills++
			nap(stop, 50*time.Millisecond, 300*time.Millisecond)
			r.start()
		}
	})
	d.run(90 * time.Second)
	end()
	if kills < 5 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills, %d commands", kills, d.commands)
	d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
}

func TestChaosZombieOnPostgres(t *testing.T) {
	slow(t)
	url := sqldbtest.PostgresURL(t)
	rs, vs := threeReplicas(t, url)
	d := newDrive(t, vs...)
	db := sqldbtest.Open(t, sqldb.Config{URL: url})
	refused := int64(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; n < 8 && refused < 2 && t.Context().Err() == nil; n++ {
			refused += zombie(t, d, rs, db, fmt.Sprint("zombie-", n))
		}
	}()
	d.run(90 * time.Second)
	<-done
	if refused < 2 {
		t.Errorf("%d zombies were refused, want two", refused)
	}
	t.Logf("%d refused", refused)
	d.check(db)
}

// zombie stops the replica that runs a job, waits for the take-over, and lets it go on. The
// result is 1 if its write was refused, and 0 if it lost its connection to the database while it
// stood still: then it lets go without having tried to write.
func zombie(t *testing.T, d *drive, rs []*replica, db *sqldb.DB, id string) (refused int64) {
	ctx := t.Context()
	d.try(ctx, func() error { return d.any().submit(ctx, Spec{ID: id, Kind: "zombie", Steps: steps("hold")}) })
	var owner, state string
	for ctx.Err() == nil && state != "running" {
		_ = db.SQL().QueryRow("select owner, state from job where id=$1", id).Scan(&owner, &state)
		time.Sleep(2 * time.Millisecond)
	}
	var victim *replica
	for _, r := range rs {
		if strings.HasPrefix(owner, r.name+"#") {
			victim = r
		}
	}
	if victim == nil {
		t.Errorf("nobody owns %s: %q", id, owner)
		return 0
	}
	before, err := call1[gaveUp](ctx, victim, "/gave-up", true)
	if err != nil {
		t.Errorf("ask %s: %v", victim.name, err)
		return 0
	}
	victim.signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(20 * time.Second); state != "succeeded"; time.Sleep(10 * time.Millisecond) {
		if err := db.SQL().QueryRow("select state from job where id=$1", id).Scan(&state); err != nil || time.Now().After(deadline) {
			t.Errorf("nobody takes %s over: %s, %v", id, state, err)
			break
		}
	}
	victim.signal(syscall.SIGCONT)
	for deadline := time.Now().Add(150 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, err := call1[gaveUp](ctx, victim, "/gave-up", true)
		if err == nil && now.Taken > before.Taken {
			refused = 1
			break
		}
		if err == nil && now.Infra > before.Infra {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the zombie %s never gave %s up", victim.name, id)
			break
		}
	}
	var out string
	if err := db.SQL().QueryRow("select out from job_step where job=$1", id).Scan(&out); err != nil || out == `"`+victim.name+`"` {
		t.Errorf("the zombie %s wrote the output of %s: %s, %v", victim.name, id, out, err)
	}
	return refused
}

func TestChaosPostgresCrashes(t *testing.T) {
	slow(t)
	c := sqldbtest.NewCluster(t, true)
	url := c.Database(t)
	_, vs := threeReplicas(t, url)
	d := newDrive(t, vs...)
	crashes := 0
	end := during(func(stop <-chan struct{}) {
		if crashes == 2 {
			<-stop
			return
		}
		time.Sleep(1500 * time.Millisecond)
		if err := c.Crash(); err != nil {
			t.Error(err)
		}
		crashes++
		time.Sleep(2 * time.Second)
		if err := c.Start(); err != nil {
			t.Error(err)
		}
	})
	d.run(90 * time.Second)
	end()
	if crashes != 2 {
		t.Errorf("%d crashes", crashes)
	}
	d.check(sqldbtest.Open(t, sqldb.Config{URL: url}))
}

func TestChaosDiskFullOnSQLite(t *testing.T) {
	slow(t)
	const conns = 4
	db := sqldbtest.Open(t, sqldb.Config{URL: sqldbtest.SQLiteURL(t), MaxConns: conns})
	if err := db.Migrate(t.Context(), "chaos", effectTable); err != nil {
		t.Fatal(err)
	}
	log := newCounter(io.Discard)
	cfg := chaosConfig(db, "h", slog.New(log))
	for _, name := range []string{"c1", "c2", "c3", "c4"} { // big outputs, so that the engine's own writes need space too
		h := cfg.Handlers["drill/"+name]
		cfg.Handlers["drill/"+name] = func(ctx context.Context, s *StepContext) (Result, error) {
			res, err := h(ctx, s)
			if res.kind == resultDone {
				res.out = strings.Repeat("x", 20_000)
			}
			return res, err
		}
	}
	e := start(t, cfg)
	d := newDrive(t, inside{e, log.infra})
	// The limit is per connection and must meet all of the pool.
	limit := func(pages int) {
		for range conns {
			c, err := db.SQL().Conn(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.ExecContext(t.Context(), fmt.Sprint("pragma max_page_count=", pages)); err != nil {
				t.Error(err)
			}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 2 {
			time.Sleep(time.Second)
			before := log.infra.Load()
			limit(1) // the present size: full
			for deadline := time.Now().Add(10 * time.Second); log.infra.Load() < before+3 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(500 * time.Millisecond)
			if log.infra.Load() < before+3 {
				t.Errorf("round %d: the full disk did not hurt", n)
			}
			limit(1 << 30)
		}
	}()
	d.run(90 * time.Second)
	<-done
	t.Logf("%d times the full disk was met", log.infra.Load())
	d.check(db)
}
