package job

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// The test binary run again with these variables is a vault replica, which serves
// its engine over a Unix socket until its standard input ends.
const (
	replicaEnv       = "HOLDFAST_JOB_TEST_REPLICA" // database URL
	replicaSocketEnv = "HOLDFAST_JOB_TEST_SOCKET"
	replicaNameEnv   = "HOLDFAST_JOB_TEST_NAME"
)

const (
	chaosLease  = 1500 * time.Millisecond
	zombieSleep = 800 * time.Millisecond
)

var effectTable = fstest.MapFS{"00001_effect.sql": {Data: []byte("-- +goose Up\ncreate table effect (what text primary key);\n")}}

// chaosConfig is what every replica of a drive runs. Each effect is a row with a
// primary key, so a second one would be an error that fails the job.
func chaosConfig(db *sqldb.DB, name string, log *slog.Logger) Config {
	local := func(ctx context.Context, s *StepContext) (Result, error) {
		time.Sleep(5 * time.Millisecond)
		return Done(nil, effect(s.Job().ID+"/"+s.Step())), nil
	}
	agent := CommandStep(func(_ context.Context, s *StepContext) (Command, error) {
		var a string
		err := s.Input(&a)
		return Command{Agent: a, Kind: s.Step(), Payload: s.Job().ID}, err
	}, func(_ context.Context, s *StepContext, r Reply) (Result, error) {
		return Done(r.Result, effect(s.Job().ID+"/"+s.Step())), nil
	})
	hold := func(_ context.Context, s *StepContext) (Result, error) { // deaf, as a stuck system call is
		time.Sleep(zombieSleep)
		return Done(name, effect(s.Job().ID+"/hold")), nil
	}
	final := func(_ context.Context, tx *sql.Tx, j *Job) error {
		return effect(j.ID + "/final/" + string(j.State))(tx)
	}
	return Config{DB: db, Owner: name, Lease: chaosLease, Poll: 500 * time.Millisecond, Log: log,
		Retry: Retry{Base: 10 * time.Millisecond, Cap: 200 * time.Millisecond, Attempts: 50},
		Handlers: map[string]Handler{"drill/prep": local, "drill/fin": local, "drill/c1": agent, "drill/c2": agent,
			"drill/c3": agent, "drill/c4": agent, "zombie/hold": hold},
		OnFinal: map[string]func(context.Context, *sql.Tx, *Job) error{"drill": final}}
}

// counter counts log records by message.
type counter struct {
	slog.Handler
	taken, infra *atomic.Int64
}

func newCounter(w io.Writer) counter {
	return counter{slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}), new(atomic.Int64), new(atomic.Int64)}
}

func (c counter) Enabled(context.Context, slog.Level) bool { return true }
func (c counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c counter) Handle(_ context.Context, r slog.Record) error {
	switch r.Message {
	case "job was taken over by another replica":
		c.taken.Add(1)
	case "database trouble: letting go of the job", "claiming jobs failed, trying again":
		c.infra.Add(1)
	}
	return nil
}

// gaveUp is how often a replica gave up a job: because another one had taken
// over, and because of database trouble.
type gaveUp struct{ Taken, Infra int64 }

type pollRequest struct {
	Agent string
	Have  []string
}

type pollAnswer struct {
	Commands []Command
	Cancels  []string
}

type reportRequest struct {
	Agent, ID string
	Report    Report
}

func replicaMain(url string) {
	name := os.Getenv(replicaNameEnv)
	die := func(err error) {
		fmt.Fprintln(os.Stderr, name, err)
		os.Exit(1)
	}
	go func() { // the driver is gone: so are we
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	ctx := context.Background()
	log := newCounter(os.Stderr)
	var e *Engine
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) { // the server may be down just now
		err := func() error {
			db, err := sqldb.Open(ctx, sqldb.Config{URL: url, TxTimeout: 3 * time.Second})
			if err != nil {
				return err
			}
			if err := db.Migrate(ctx, "chaos", effectTable); err != nil {
				return joinClose(err, db)
			}
			if e, err = New(chaosConfig(db, name, slog.New(log))); err != nil {
				die(err)
			}
			if err := e.Start(ctx); err != nil {
				return joinClose(err, db)
			}
			return nil
		}()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			die(err)
		}
	}
	socket := os.Getenv(replicaSocketEnv)
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		die(err)
	}
	mux := http.NewServeMux()
	serve(mux, "/submit", func(ctx context.Context, s Spec) (string, error) { return e.Submit(ctx, nil, s) })
	serve(mux, "/poll", func(ctx context.Context, q pollRequest) (a pollAnswer, err error) {
		a.Commands, a.Cancels, err = e.PollCommands(ctx, q.Agent, q.Have, time.Second)
		return a, err
	})
	serve(mux, "/report", func(ctx context.Context, q reportRequest) (bool, error) {
		return true, e.ReportCommand(ctx, q.Agent, q.ID, q.Report)
	})
	serve(mux, "/get", func(ctx context.Context, id string) (*Job, error) { return e.Get(ctx, id) })
	serve(mux, "/gave-up", func(context.Context, bool) (gaveUp, error) { return gaveUp{log.taken.Load(), log.infra.Load()}, nil })
	die((&http.Server{Handler: mux}).Serve(l))
}

func joinClose(err error, db *sqldb.DB) error {
	_ = db.Close()
	return err
}

func serve[Q, A any](mux *http.ServeMux, path string, f func(context.Context, Q) (A, error)) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		err := json.NewDecoder(r.Body).Decode(&q)
		if err == nil {
			var a A
			if a, err = f(r.Context(), q); err == nil {
				_ = json.NewEncoder(w).Encode(a)
				return
			}
		}
		http.Error(w, err.Error(), map[bool]int{true: 503, false: 400}[dr.KindOf(err) == dr.KindUnavailable || dr.KindOf(err) == dr.KindCanceled])
	})
}

// replica is the driver's handle on one process.
type replica struct {
	t      *testing.T
	name   string
	url    string
	socket string
	client *http.Client
	cmd    *exec.Cmd
	stdin  io.Closer
}

func newReplica(t *testing.T, url, name string) *replica {
	dir, err := os.MkdirTemp("", "hfr") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, name: name, url: url, socket: filepath.Join(dir, "s")}
	r.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.socket)
		}}}
	t.Cleanup(func() {
		r.kill()
		r.client.CloseIdleConnections()
		os.RemoveAll(dir)
	})
	return r
}

// start returns at once; calls fail until the replica listens.
func (r *replica) start() {
	exe, err := os.Executable()
	if err != nil {
		r.t.Error(err)
		return
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), replicaEnv+"="+r.url, replicaSocketEnv+"="+r.socket, replicaNameEnv+"="+r.name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Errorf("start %s: %v", r.name, err)
		return
	}
	r.cmd, r.stdin = cmd, in
}

// kill is kill -9.
func (r *replica) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	_ = r.stdin.Close()
	r.cmd = nil
}

func (r *replica) signal(s syscall.Signal) {
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Errorf("%v to %s: %v", s, r.name, err)
	}
}

func http1(ctx context.Context, path string, body []byte) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, http.MethodPost, "http://replica"+path, bytes.NewReader(body))
}
