package vaulthost

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// metrics tells Prometheus how the vault's items and jobs are. It asks the
// vault at each scrape and keeps nothing.
type metrics struct {
	vault *vault.Vault
	log   *slog.Logger
}

// Recent jobs are those of this long.
const recentJobs = 24 * time.Hour

var (
	descItems   = prometheus.NewDesc("holdfast_items", "Protected items by protection state and health.", []string{"protection", "health"}, nil)
	descLag     = prometheus.NewDesc("holdfast_rpo_lag_seconds", "Seconds since the newest complete recovery point of an item that is protected and active at its source.", []string{"item", "vm"}, nil)
	descBacklog = prometheus.NewDesc("holdfast_backlog_bytes", "Changed bytes of an item that are not in the store yet.", []string{"item", "vm"}, nil)
	descDrain   = prometheus.NewDesc("holdfast_backlog_seconds", "Seconds until an item's backlog is drained at the present rates; 0 = nothing to drain, or unknown.", []string{"item", "vm"}, nil)
	descGrowing = prometheus.NewDesc("holdfast_backlog_growing", "1 while an item's VM changes more than can be sent.", []string{"item", "vm"}, nil)
	descResync  = prometheus.NewDesc("holdfast_resync_required", "1 while a resynchronization of an item is required or runs.", []string{"item", "vm"}, nil)
	descAnomaly = prometheus.NewDesc("holdfast_anomaly", "1 while an item's data looks encrypted and nobody has acknowledged it.", []string{"item", "vm"}, nil)
	descStore   = prometheus.NewDesc("holdfast_store_bytes", "Bytes in the store for an item, as the last maintenance pass found, or of its recovery points.", []string{"item", "vm"}, nil)
	descPending = prometheus.NewDesc("holdfast_pending_delete_objects", "Objects of an item that wait for the end of their grace to be deleted.", []string{"item", "vm"}, nil)
	descScrub   = prometheus.NewDesc("holdfast_scrub_age_seconds", "Seconds since the last complete scrub of an item; missing = never.", []string{"item", "vm"}, nil)
	descDamaged = prometheus.NewDesc("holdfast_damaged_points", "Recovery points of an item that the last scrub found to be unusable.", []string{"item", "vm"}, nil)
	descJobs    = prometheus.NewDesc("holdfast_jobs", "Jobs of the last 24 hours by state.", []string{"state"}, nil)
	descAgents  = prometheus.NewDesc("holdfast_agents", "Registered agents by connection.", []string{"connected"}, nil)
)

// newMetrics serves /metrics to callers with a bearer token: names of VMs are nobody else's business.
func newMetrics(v *vault.Vault, log *slog.Logger) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&metrics{v, log})
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if ok {
			who, err := v.Authenticate(r.Context(), token)
			if dr.KindOf(err) == dr.KindUnavailable && err != nil {
				http.Error(w, "the vault's database does not answer", http.StatusServiceUnavailable)
				return
			}
			ok = err == nil && who.Role.Includes(dr.RoleReader)
		}
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a bearer token of the vault is needed; Prometheus gets one by itself with oauth2 client credentials", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descItems, descLag, descBacklog, descDrain, descGrowing, descResync, descAnomaly, descStore, descPending, descScrub, descDamaged, descJobs, descAgents} {
		ch <- d
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// upkeep tells how an item's replica is looked after.
func (m *metrics) upkeep(ctx context.Context, id dr.ItemID, gauge func(*prometheus.Desc, float64, ...string), labels []string) error {
	u, err := m.vault.UpkeepStatus(ctx, id)
	if err != nil {
		if dr.KindOf(err) == dr.KindNotFound { // disabled meanwhile
			return nil
		}
		return err
	}
	gauge(descStore, float64(cmp.Or(u.Bytes, u.StoredBytes)), labels...)
	gauge(descPending, float64(u.Pending), labels...)
	gauge(descDamaged, float64(len(u.Damaged)), labels...)
	if !u.LastScrub.IsZero() {
		gauge(descScrub, max(time.Since(u.LastScrub).Seconds(), 0), labels...)
	}
	return nil
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	fail := func(d *prometheus.Desc, err error) { ch <- prometheus.NewInvalidMetric(d, err) }

	items, err := m.vault.Items(ctx, "")
	if err != nil {
		fail(descItems, err)
	}
	type state struct {
		p dr.Protection
		h dr.Health
	}
	states := map[state]int{}
	for _, it := range items {
		states[state{it.Protection, it.Health}]++
		labels := []string{string(it.ID), it.VMName}
		gauge(descResync, one(it.Resync != ""), labels...)
		gauge(descAnomaly, one(slices.ContainsFunc(it.HealthErrors, func(e dr.HealthError) bool { return e.Code == dr.CodeAnomaly })), labels...)
		if err := m.upkeep(ctx, it.ID, gauge, labels); err != nil {
			fail(descStore, err)
			break
		}
		if it.Active == dr.AtRecovery {
			continue
		}
		st, err := m.vault.Status(ctx, it.ID)
		if err != nil {
			if dr.KindOf(err) != dr.KindNotFound {
				fail(descLag, err)
				break
			}
			continue
		}
		gauge(descBacklog, float64(st.BacklogBytes), labels...)
		gauge(descDrain, st.BacklogSeconds.Seconds(), labels...)
		gauge(descGrowing, one(st.Converging == dr.NotConverging), labels...)
		if !st.LastPoint.IsZero() {
			gauge(descLag, max(time.Since(st.LastPoint).Seconds(), 0), labels...)
		}
	}
	for s, n := range states {
		gauge(descItems, float64(n), string(s.p), string(s.h))
	}
	jobs, err := m.vault.Jobs(ctx, vault.JobFilter{Since: time.Now().Add(-recentJobs), Limit: 10000})
	if err != nil {
		fail(descJobs, err)
	}
	byState := map[dr.JobState]int{}
	for _, j := range jobs {
		byState[j.State]++
	}
	for s, n := range byState {
		gauge(descJobs, float64(n), string(s))
	}
	agents, err := m.vault.Providers(ctx, "")
	if err != nil {
		fail(descAgents, err)
		return
	}
	connected := 0
	for _, p := range agents {
		if m.vault.Connected(p) {
			connected++
		}
	}
	gauge(descAgents, float64(connected), "true")
	gauge(descAgents, float64(len(agents)-connected), "false")
}
