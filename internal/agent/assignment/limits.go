package assignment

import (
	"sync"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/pace"
)

// Rule makes a limiter's rule of bandwidth rules: the first whose window is open
// counts; nil = unlimited.
func Rule(rules []dr.BandwidthRule) pace.Rule {
	if len(rules) == 0 {
		return nil
	}
	return dr.Policy{Bandwidth: rules}.BandwidthAt
}

// Limits are the bandwidth limits of an agent: one for all, one for the items
// of each policy together, and one (without a limit of its own, for fairness) for each
// item. It is safe for concurrent use.
type Limits struct {
	root *pace.Limiter

	mu       sync.Mutex
	policies map[string]*pace.Limiter // by Bandwidth.Group
	items    map[string]itemLimit     // by machine
}

type itemLimit struct {
	group   string
	limiter *pace.Limiter
}

// NewLimits makes Limits below root.
func NewLimits(root *pace.Limiter) *Limits {
	return &Limits{root: root, policies: map[string]*pace.Limiter{}, items: map[string]itemLimit{}}
}

// Item returns the limiter for an item's uploads, after its policy's rules have
// been brought up to date: they count at once for all items of the policy.
// After an error everything is as it was.
func (l *Limits) Item(a agentapi.Assignment) (*pace.Limiter, error) {
	group := ""
	var rules []dr.BandwidthRule
	if a.Bandwidth != nil {
		// Also a policy's limit that is empty now: its items may share one again later.
		group = a.Bandwidth.Group
		for i, r := range a.Bandwidth.Rules {
			w, err := window(a, "the window of a bandwidth rule", r.Window)
			if err != nil {
				return nil, err
			}
			if r.BytesPerSecond < 0 {
				return nil, invalid(a, "bandwidth rule %d has %d bytes a second", i+1, r.BytesPerSecond)
			}
			rules = append(rules, dr.BandwidthRule{Window: w, BytesPerSecond: r.BytesPerSecond})
		}
		if group == "" {
			group = "machine " + a.Machine // a limit that names nobody to share with
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	parent := l.root
	if group != "" {
		parent = l.policies[group]
		if parent == nil {
			parent = l.root.Child(Rule(rules))
			l.policies[group] = parent
		} else {
			parent.SetRule(Rule(rules))
		}
	}
	it, ok := l.items[a.Machine]
	if !ok || it.group != group {
		it = itemLimit{group, parent.Child(nil)}
		l.items[a.Machine] = it
	}
	return it.limiter, nil
}

// Rate is the lowest limit that an item's uploads have now, bytes/s; 0 = none.
func (l *Limits) Rate(machine string) int64 {
	l.mu.Lock()
	it := l.items[machine]
	l.mu.Unlock()
	return it.limiter.Rate()
}

// Keep forgets all items but these, and policies without items.
func (l *Limits) Keep(machines map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	used := map[string]bool{}
	for m, it := range l.items {
		if !machines[m] {
			delete(l.items, m)
			continue
		}
		used[it.group] = true
	}
	for g := range l.policies {
		if !used[g] {
			delete(l.policies, g)
		}
	}
}

// ParseRules reads "WINDOW=RATE" texts, e.g. "Mon-Fri 08:00-18:00=5M", in which
// rate reads the part after the last "=", followed by what counts at all other times (0 = no limit).
func ParseRules(texts []string, rate func(string) (int64, error), otherwise int64) ([]dr.BandwidthRule, error) {
	var out []dr.BandwidthRule
	for _, text := range texts {
		r, err := parseRule(text, rate)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if otherwise > 0 {
		out = append(out, dr.BandwidthRule{BytesPerSecond: otherwise})
	}
	return out, CheckRules(out)
}

func parseRule(text string, rate func(string) (int64, error)) (dr.BandwidthRule, error) {
	const op = "agent.bandwidth"
	for i := len(text) - 1; i > 0; i-- {
		if text[i] != '=' {
			continue
		}
		w, err := dr.ParseWindow(text[:i])
		if err != nil {
			return dr.BandwidthRule{}, err
		}
		if w.IsZero() {
			break
		}
		n, err := rate(text[i+1:])
		if err != nil {
			return dr.BandwidthRule{}, dr.Errorf(dr.KindInvalid, op, "read the rate of %q: %w", text, err)
		}
		return dr.BandwidthRule{Window: w, BytesPerSecond: n}, nil
	}
	return dr.BandwidthRule{}, dr.Errorf(dr.KindInvalid, op, "%q is not WINDOW=RATE such as \"Mon-Fri 08:00-18:00=5M\"", text)
}

// CheckRules refuses rules that are a mistake: too slow to keep a cycle alive,
// or never reached.
func CheckRules(rules []dr.BandwidthRule) error {
	const op = "agent.bandwidth"
	for i, r := range rules {
		switch {
		case r.BytesPerSecond != 0 && r.BytesPerSecond < dr.MinBandwidth:
			return dr.Errorf(dr.KindInvalid, op, "a bandwidth limit of %d bytes/s is below %d, the least that keeps replication alive (0 = unlimited)", r.BytesPerSecond, dr.MinBandwidth)
		case r.Window.IsZero() && i < len(rules)-1:
			return dr.Errorf(dr.KindInvalid, op, "the bandwidth limit of %d bytes/s applies always, so the %d after it never would", r.BytesPerSecond, len(rules)-1-i)
		}
	}
	return nil
}
