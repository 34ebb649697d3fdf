package replication

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/store"
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

const (
	docStatistics   = "statistics"
	settingInterval = "monitoringInterval"
)

// statisticsDoc is the durable form of health.Statistics; times in µs.
type statisticsDoc struct {
	Start           time.Time `json:"start"`
	Success         int       `json:"success,omitempty"`
	Miss            int       `json:"miss,omitempty"`
	Bytes           int64     `json:"bytes,omitempty"`
	MaxBytes        int64     `json:"maxBytes,omitempty"`
	Latency         int64     `json:"latencyUs,omitempty"`
	MaxLatency      int64     `json:"maxLatencyUs,omitempty"`
	NetworkFailures int       `json:"networkFailures,omitempty"`
	Failures        int       `json:"failures,omitempty"`
	AppFailures     int       `json:"appFailures,omitempty"`
	Puts            int64     `json:"puts,omitempty"` // since 2026-11-23
}

func toStatisticsDoc(s health.Statistics) statisticsDoc {
	return statisticsDoc{s.Start.UTC(), s.Success, s.Miss, s.Bytes, s.MaxBytes, s.Latency.Microseconds(), s.MaxLatency.Microseconds(),
		s.NetworkFailures, s.Failures, s.AppConsistentFailures, s.Puts}
}

func (d statisticsDoc) domain() health.Statistics {
	return health.Statistics{Start: d.Start, Success: d.Success, Miss: d.Miss, Bytes: d.Bytes, MaxBytes: d.MaxBytes,
		Latency: time.Duration(d.Latency) * time.Microsecond, MaxLatency: time.Duration(d.MaxLatency) * time.Microsecond,
		NetworkFailures: d.NetworkFailures, Failures: d.Failures, AppConsistentFailures: d.AppFailures, Puts: d.Puts}
}

// intervalDoc is the durable form of health.Interval, in minutes.
type intervalDoc struct {
	V      int `json:"v"`
	Length int `json:"lengthMinutes"`
	Start  int `json:"startMinutes"`
}

// MonitoringInterval is the interval that statistics count in.
func (c *Control) MonitoringInterval(ctx context.Context) (health.Interval, error) {
	text, err := vaultdb.Setting(ctx, c.st.Q(), settingInterval)
	if err != nil || text == "" {
		return health.Default(), state.Outward(err)
	}
	return parseInterval(text)
}

func parseInterval(text string) (health.Interval, error) {
	var d intervalDoc
	if err := json.Unmarshal([]byte(text), &d); err != nil || d.V != 1 {
		return health.Interval{}, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, "vault.MonitoringInterval", "the stored monitoring interval %q is not one of this program's", state.Clip(text))
	}
	return health.Interval{Length: time.Duration(d.Length) * time.Minute, Start: time.Duration(d.Start) * time.Minute}, nil
}

// SetMonitoringInterval changes the interval that statistics count in; what was
// counted in the running one is dropped.
func (c *Control) SetMonitoringInterval(ctx context.Context, iv health.Interval, by string) error {
	if err := iv.Validate(); err != nil {
		return err
	}
	text, err := json.Marshal(intervalDoc{1, int(iv.Length / time.Minute), int(iv.Start / time.Minute)})
	if err != nil {
		return dr.Errorf(dr.KindInternal, "vault.SetMonitoringInterval", "encode: %w", err)
	}
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.SetSetting(ctx, tx, settingInterval, string(text)); err != nil {
			return err
		}
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "monitoringInterval", By: by, Audit: true}, "the monitoring interval is %v from %v after midnight", iv.Length, iv.Start)
	})
}

// Statistics returns what was counted of an item in the running monitoring interval.
func (c *Control) Statistics(ctx context.Context, id dr.ItemID) (health.Statistics, error) {
	iv, err := c.MonitoringInterval(ctx)
	if err != nil {
		return health.Statistics{}, err
	}
	d, err := vaultdb.Doc[statisticsDoc](ctx, c.st.Q(), id, docStatistics)
	return d.domain().At(iv, c.st.Now().Local()), state.Outward(err)
}

// AllStatistics is Statistics of every item that has any.
func (c *Control) AllStatistics(ctx context.Context) (map[dr.ItemID]health.Statistics, error) {
	iv, err := c.MonitoringInterval(ctx)
	if err != nil {
		return nil, err
	}
	docs, err := vaultdb.Docs[statisticsDoc](ctx, c.st.Q(), docStatistics)
	out := make(map[dr.ItemID]health.Statistics, len(docs))
	for id, d := range docs {
		out[id] = d.domain().At(iv, c.st.Now().Local())
	}
	return out, state.Outward(err)
}

// count changes the running statistics of an item.
func (c *Control) count(ctx context.Context, tx *sql.Tx, id dr.ItemID, change func(*health.Statistics)) error {
	iv := health.Default()
	text, err := vaultdb.Setting(ctx, tx, settingInterval)
	if err != nil {
		return err
	}
	if text != "" {
		if iv, err = parseInterval(text); err != nil {
			return err
		}
	}
	d, err := vaultdb.Doc[statisticsDoc](ctx, tx, id, docStatistics)
	if err != nil {
		return err
	}
	now := c.st.Now()
	s := d.domain().At(iv, now.Local())
	change(&s)
	return vaultdb.SaveDoc(ctx, tx, id, docStatistics, toStatisticsDoc(s), now)
}

// countReport counts what is new in an agent's report.
func (c *Control) countReport(ctx context.Context, tx *sql.Tx, id dr.ItemID, old, st vaultdb.Report) error {
	missed := 0
	if !old.At.IsZero() { // the first word of an agent says nothing about when
		missed = health.Grown(old.Missed, st.Missed)
	}
	failed := st.Err != nil && (old.Err == nil || old.Err.Code != st.Err.Code || !old.Err.Since.Equal(st.Err.Since.UTC().Truncate(time.Microsecond)))
	if missed == 0 && !failed {
		return nil
	}
	return c.count(ctx, tx, id, func(s *health.Statistics) {
		s.Miss += missed
		if failed {
			s.Failed(st.Err.Code)
		}
	})
}

// countPoint counts a listed point as a cycle sent, unless it is of an earlier
// interval: found when the catalogue was made again.
func (c *Control) countPoint(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, cut store.CutInfo, announced bool) error {
	if cut.IsRun() {
		return nil
	}
	return c.count(ctx, tx, it.ID, func(s *health.Statistics) {
		if cut.Commit.Time.Before(s.Start) {
			return
		}
		latency := s.AverageLatency() // not known: it does not change the average
		if announced {
			latency = c.st.Now().Sub(cut.Commit.Time)
		}
		s.Sent(cut.Size+cut.Commit.Stats.StoredBytes, latency)
		s.Puts += int64(1 + len(cut.Commit.Parts) + len(cut.Commit.Tiles))
		if cut.Commit.Note != "" && cut.Commit.Consistency != dr.AppConsistent {
			s.AppConsistentFailures++
		}
	})
}
