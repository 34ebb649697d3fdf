package virtdisk

import "time"

// Config of Disks; the zero value is good.
type Config struct {
	// Parallel bounds the requests in flight per open disk; 0 = 8. Each takes 1 MiB of memory.
	Parallel int
	// CloseTimeout bounds how long Close of a disk waits for requests that hang; 0 = 30 s.
	CloseTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.Parallel <= 0 {
		c.Parallel = 8
	}
	if c.CloseTimeout <= 0 {
		c.CloseTimeout = 30 * time.Second
	}
	return c
}
