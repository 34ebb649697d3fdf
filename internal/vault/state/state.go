// Package state is what all parts of a vault share: the database with its
// transactions, the clock, the event log, change notification, and who counts
// as connected. It owns no table.
//
// It promises that errors of the database leave it as dr.KindUnavailable, and
// that notifications are sent after the commit of the change that they tell of.
package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vaultdb"
)

// Topics of change notification.
const (
	TopicAssign = "vault.assign" // key: agent id
	TopicChange = "vault.change" // key: kind/id
)

// State is shared by the parts of one vault. It is safe for concurrent use.
type State struct {
	DB       *sqldb.DB
	Clock    func() time.Time
	PollWait time.Duration // longest long-poll of an agent
	Log      *slog.Logger

	began atomic.Int64 // Unix µs of the end of the start; 0 = not yet
}

// Began notes that the vault has started.
func (s *State) Began() { s.began.Store(s.Now().UnixMicro()) }

// Now is the vault's time, in the database's resolution.
func (s *State) Now() time.Time { return s.Clock().UTC().Truncate(time.Microsecond) }

// Q is the database for single reads; pass their errors through Outward.
func (s *State) Q() sqldb.Querier { return s.DB.SQL() }

// Tx runs fn in a transaction, again when the database asks for it (deadlock,
// serialization): fn must be repeatable.
func (s *State) Tx(ctx context.Context, fn func(*sql.Tx) error) error {
	for try := 0; ; try++ {
		err := s.DB.Tx(ctx, fn)
		var infra *sqldb.InfraError
		if err == nil || !errors.As(err, &infra) || infra.Unknown || try == 3 || ctx.Err() != nil {
			return Outward(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20<<try) * time.Millisecond):
		}
	}
}

// Outward gives errors of the database their kind.
func Outward(err error) error {
	var known *dr.Error
	if err == nil || !errors.Is(err, sqldb.ErrInfrastructure) || errors.As(err, &known) {
		return err
	}
	return dr.Errorf(dr.KindUnavailable, "vault", "the vault's database did not answer: %w", err).
		WithHint("try again; if it lasts, look at the database's log and disk space")
}

// Get passes a read's result on with its error made fit for callers.
func Get[T any](x T, err error) (T, error) { return x, Outward(err) }

// Note appends to the event log in tx; id and time are filled in.
func (s *State) Note(ctx context.Context, tx *sql.Tx, e vaultdb.Event, format string, args ...any) error {
	e.ID, e.At, e.Text = Ordered(), s.Now(), fmt.Sprintf(format, args...)
	s.Changed(tx, "event", string(e.Item))
	return vaultdb.AddEvent(ctx, tx, e)
}

// Changed tells subscribers, after the commit, that something changed: kind is
// item, site or event.
func (s *State) Changed(tx *sql.Tx, kind, id string) { s.DB.NotifyTx(tx, TopicChange, kind+"/"+id) }

// Assigned lets an agent's poll look at its assignments after the commit.
func (s *State) Assigned(tx *sql.Tx, agent dr.AgentID) { s.DB.NotifyTx(tx, TopicAssign, string(agent)) }

// SaveItem stores an item and tells the portal and the source agent.
func (s *State) SaveItem(ctx context.Context, tx *sql.Tx, it vaultdb.Item) error {
	s.Changed(tx, "item", string(it.ID))
	s.Assigned(tx, it.SourceAgent)
	return vaultdb.UpdateItem(ctx, tx, it)
}

// Connected reports whether an agent has been heard of within three long polls.
func (s *State) Connected(p dr.Provider) bool {
	return !p.Revoked && s.Now().Sub(p.LastSeen) <= 3*s.PollWait
}

// Settling reports that the vault started so recently that an agent which is
// not heard of may just not have polled yet.
func (s *State) Settling() bool {
	us := s.began.Load()
	return us == 0 || s.Now().Sub(sqldb.Time(us)) <= 2*s.PollWait
}

// Touch records an agent's heartbeat, at most every few seconds.
func (s *State) Touch(ctx context.Context, agent dr.AgentID, hypervisor string) error {
	p, err := vaultdb.ProviderByID(ctx, s.Q(), agent)
	if err != nil {
		return Outward(err)
	}
	back := !s.Connected(p.Provider)
	if s.Now().Sub(p.LastSeen) < s.PollWait/5 && (hypervisor == "" || hypervisor == p.Hypervisor) {
		return nil
	}
	return s.Tx(ctx, func(tx *sql.Tx) error {
		if back {
			s.Changed(tx, "site", string(p.Fabric))
			if err := s.Note(ctx, tx, vaultdb.Event{Kind: "agentConnected", Agent: agent, By: "agent"}, "host %s is connected again", p.Host); err != nil {
				return err
			}
		}
		return vaultdb.TouchProvider(ctx, tx, agent, s.Now(), Clip(hypervisor), "")
	})
}

// NewID makes an id.
func NewID() string { return uuid.NewString() }

// Ordered makes an id that sorts by time.
func Ordered() string {
	if u, err := uuid.NewV7(); err == nil {
		return u.String()
	}
	return uuid.NewString()
}

// Clip bounds a short text that a host reports about itself.
func Clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 200)], "") }
