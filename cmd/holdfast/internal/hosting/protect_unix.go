//go:build !windows

package hosting

// Protect does nothing here: the agent makes its directories with mode 0700.
func Protect(string) error { return nil }
