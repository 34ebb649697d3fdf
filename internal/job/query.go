package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

const jobColumns = `id, kind, item, target_type, target_name, input, meta, by_whom, state, outcome, cur, due, owner, epoch,
	wait_kind, wait_for, wait_until, cancel_at, cancel_by, err, created, started, finished, updated`

func scanJob(row interface{ Scan(...any) error }) (*Job, error) {
	var j Job
	var input, meta, failure string
	var due, waitUntil, cancelAt, created, started, finished, updated int64
	err := row.Scan(&j.ID, &j.Kind, &j.Item, &j.TargetType, &j.TargetName, &input, &meta, &j.By, &j.State, &j.Outcome, &j.cur,
		&due, &j.Owner, &j.Epoch, &j.WaitKind, &j.WaitFor, &waitUntil, &cancelAt, &j.CancelBy, &failure,
		&created, &started, &finished, &updated)
	if err != nil {
		return nil, err
	}
	j.Input = json.RawMessage(input)
	if err := json.Unmarshal([]byte(meta), &j.Meta); err != nil {
		return nil, dr.Errorf(dr.KindCorrupt, "job.load", "decode the meta data of job %s: %w", j.ID, err)
	}
	if j.Failure, err = loadFailure(failure); err != nil {
		return nil, err
	}
	if j.State == Ready {
		j.NotBefore = sqldb.Time(due)
	}
	j.WaitUntil, j.CancelRequested = sqldb.Time(waitUntil), sqldb.Time(cancelAt)
	j.Created, j.Started, j.Finished, j.Updated = sqldb.Time(created), sqldb.Time(started), sqldb.Time(finished), sqldb.Time(updated)
	return &j, nil
}

// loadJob reads a job with its steps and failures.
func loadJob(ctx context.Context, q sqldb.Querier, id string) (*Job, error) {
	j, err := scanJob(q.QueryRowContext(ctx, "select "+jobColumns+" from job where id=$1", id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "job.Get", "job %s does not exist", id)
	}
	if err != nil {
		return nil, sqldb.Classify(fmt.Errorf("read job %s: %w", id, err))
	}
	err = eachRow(ctx, q, func(rows *sql.Rows) error {
		var s Step
		var out string
		var started, finished int64
		if err := rows.Scan(&s.Index, &s.Name, &s.Title, &s.OnFail, &s.maxAttempts, &s.State, &s.Attempt, &s.base, &out, &s.Pct, &s.Note,
			&started, &finished); err != nil {
			return err
		}
		if out != "" {
			s.Output = json.RawMessage(out)
		}
		s.Started, s.Finished = sqldb.Time(started), sqldb.Time(finished)
		j.Steps = append(j.Steps, s)
		return nil
	}, `select idx, name, title, on_fail, max_attempts, state, attempt, base, out, pct, note, started, finished
		from job_step where job=$1 order by idx`, id)
	if err != nil {
		return nil, err
	}
	err = eachRow(ctx, q, func(rows *sql.Rows) error {
		var f Failure
		var idx int
		var kind string
		var at int64
		if err := rows.Scan(&idx, &f.Attempt, &f.Class, &kind, &f.Code, &f.Message, &f.Hint, &at); err != nil {
			return err
		}
		f.Kind, _ = dr.ParseKind(kind)
		f.At = sqldb.Time(at)
		if idx < len(j.Steps) {
			f.Step = j.Steps[idx].Name
			j.Steps[idx].Failures = append(j.Steps[idx].Failures, f)
		}
		return nil
	}, "select idx, attempt, class, kind, code, message, hint, at from job_failure where job=$1 order by idx, attempt, at", id)
	return j, err
}

func loadSignals(ctx context.Context, q sqldb.Querier, id string) (out []Signal, err error) {
	err = eachRow(ctx, q, func(rows *sql.Rows) error {
		var s Signal
		var payload string
		var at int64
		if err := rows.Scan(&s.Seq, &s.Name, &payload, &s.By, &at, &s.taken); err != nil {
			return err
		}
		s.Payload, s.At = json.RawMessage(payload), sqldb.Time(at)
		out = append(out, s)
		return nil
	}, "select seq, name, payload, by_whom, at, taken from job_signal where job=$1 order by seq", id)
	return out, err
}

// eachRow runs a query and classifies its errors.
func eachRow(ctx context.Context, q sqldb.Querier, f func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return sqldb.Classify(fmt.Errorf("query jobs: %w", err))
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return sqldb.Classify(fmt.Errorf("query jobs: %w", err))
		}
	}
	if err := rows.Err(); err != nil {
		return sqldb.Classify(fmt.Errorf("query jobs: %w", err))
	}
	return nil
}

// Get returns a job with its steps and their failures, or dr.KindNotFound.
func (e *Engine) Get(ctx context.Context, id string) (j *Job, err error) {
	err = e.db.View(ctx, func(tx *sql.Tx) error {
		j, err = loadJob(ctx, tx, id)
		return err
	})
	return j, outward("job.Get", err)
}

// Filter selects jobs for List. Zero fields select everything.
type Filter struct {
	States []State
	Kinds  []string
	Item   string
	Since  time.Time // created at or after
	Until  time.Time // created before
	Limit  int       // page size; 0 means 100, at most 1000
	After  string    // cursor of the previous page
}

// List returns jobs without their steps, newest first, and the cursor of the next
// page, empty at the end. Jobs that are submitted meanwhile do not disturb paging.
func (e *Engine) List(ctx context.Context, f Filter) (jobs []*Job, next string, err error) {
	var where []string
	var args []any
	add := func(cond string, vals ...any) {
		marks := make([]any, len(vals))
		for i, v := range vals {
			args = append(args, v)
			marks[i] = fmt.Sprintf("$%d", len(args))
		}
		where = append(where, fmt.Sprintf(cond, marks...))
	}
	if len(f.States) > 0 {
		add("state in ("+marks(len(f.States))+")", anys(f.States)...)
	}
	if len(f.Kinds) > 0 {
		add("kind in ("+marks(len(f.Kinds))+")", anys(f.Kinds)...)
	}
	if f.Item != "" {
		add("item = %s", f.Item)
	}
	if !f.Since.IsZero() {
		add("created >= %s", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		add("created < %s", f.Until.UnixMicro())
	}
	if f.After != "" {
		var created int64
		var id string
		if n, err := fmt.Sscanf(f.After, "%d_%s", &created, &id); err != nil || n != 2 {
			return nil, "", dr.Errorf(dr.KindInvalid, "job.List", "%q is not a cursor of a previous page", f.After)
		}
		add("(created < %s or (created = %s and id < %s))", created, created, id)
	}
	limit := min(f.Limit, 1000)
	if limit <= 0 {
		limit = 100
	}
	query := "select " + jobColumns + " from job"
	if len(where) > 0 {
		query += " where " + strings.Join(where, " and ")
	}
	query += fmt.Sprintf(" order by created desc, id desc limit %d", limit+1)
	err = eachRow(ctx, e.db.SQL(), func(rows *sql.Rows) error {
		j, err := scanJob(rows)
		jobs = append(jobs, j)
		return err
	}, query, args...)
	if err != nil {
		return nil, "", outward("job.List", err)
	}
	if len(jobs) > limit {
		jobs = jobs[:limit]
		last := jobs[limit-1]
		next = fmt.Sprintf("%d_%s", last.Created.UnixMicro(), last.ID)
	}
	return jobs, next, nil
}

// marks returns n format verbs for placeholders.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("%s,", n), ",") }

func anys[T ~string](in []T) []any {
	out := make([]any, len(in))
	for i, v := range in {
		out[i] = string(v)
	}
	return out
}

// outward gives database errors their kind for callers of the engine's API; the
// cause stays visible to errors.Is.
func outward(op string, err error) error {
	if errors.Is(err, sqldb.ErrInfrastructure) {
		var e *dr.Error
		if errors.As(err, &e) {
			return err
		}
		return dr.Errorf(dr.KindUnavailable, op, "the vault's database did not answer: %w", err).
			WithHint("try again; if it lasts, look at the database's log and disk space")
	}
	return err
}
