package vaulthost

import (
	"context"
	"log/slog"
	"net/http"
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
	for _, d := range []*prometheus.Desc{descItems, descLag, descBacklog, descJobs, descAgents} {
		ch <- d
	}
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
		gauge(descBacklog, float64(st.BacklogBytes), string(it.ID), it.VMName)
		if !st.LastPoint.IsZero() {
			gauge(descLag, max(time.Since(st.LastPoint).Seconds(), 0), string(it.ID), it.VMName)
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
