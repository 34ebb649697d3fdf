package azure

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"holdfast/internal/hypervisor/azure/arm"
)

// Config of a Host. Zero values are the defaults.
type Config struct {
	Session *arm.Session // with Azure; the Host does not close it
	Log     *slog.Logger
	// Transport is for disks and consoles, which are reached by addresses of their
	// own; nil is one like http.DefaultTransport.
	Transport http.RoundTripper

	// Owner says whose the restore points are that VMs in Azure are replicated by; "" = "holdfast". Two
	// agents that replicate the same VM need two names, else they delete each other's.
	Owner string

	CallTimeout      time.Duration // of one question; 2 min
	OperationTimeout time.Duration // of one long-running operation; 30 min
	UndoTimeout      time.Duration // of taking a failed Boot back, and of how long Remove tries; 10 min
	Poll             time.Duration // how often operations are asked for where Azure does not say; 2 s
	WatchEvery       time.Duration // polling interval of Watch; 30 s
	Access           time.Duration // how long an address is good that a disk of a cut is read at, and is then renewed; 4 h, at least 1 min

	Parallel int   // disks filled at a time; 4
	Workers  int   // requests at a time for one disk; 0 = pageblob's default
	Rate     int64 // bytes per second for one disk; 0 = pageblob's default
	Requests int   // requests per second for one disk; 0 = pageblob's default
	// RetryDelay is the wait before the second attempt of a request of a disk's, growing
	// to a hundred times that; 0 = pageblob's defaults.
	RetryDelay time.Duration

	Now func() time.Time // for how long addresses are good; nil = time.Now

	// Progress is told how much of a recovery VM's disks has been copied; may be nil.
	Progress func(name string, done, total int64)
}

// Validate reports the first setting that can't be used.
func (c Config) Validate() error {
	if c.Session == nil {
		return errors.New("no session")
	}
	for _, d := range []time.Duration{c.CallTimeout, c.OperationTimeout, c.UndoTimeout, c.Poll, c.WatchEvery, c.RetryDelay, c.Access} {
		if d < 0 {
			return errors.New("a duration is negative")
		}
	}
	if c.Access != 0 && (c.Access < time.Minute || c.Access > 24*time.Hour) {
		return errors.New("the addresses of cuts can be good for 1 minute to 24 hours")
	}
	if len(c.Owner) > 200 {
		return errors.New("the owner does not fit into a tag of Azure")
	}
	if c.Parallel < 0 || c.Workers < 0 || c.Rate < 0 || c.Requests < 0 {
		return errors.New("a limit is negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	for p, d := range map[*time.Duration]time.Duration{&c.CallTimeout: 2 * time.Minute, &c.OperationTimeout: 30 * time.Minute,
		&c.UndoTimeout: 10 * time.Minute, &c.Poll: 2 * time.Second, &c.WatchEvery: 30 * time.Second} {
		if *p == 0 {
			*p = d
		}
	}
	if c.Parallel == 0 {
		c.Parallel = 4
	}
	if c.Owner == "" {
		c.Owner = "holdfast"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Access == 0 {
		c.Access = 4 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
