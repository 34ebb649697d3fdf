//go:build !windows

package winservice

import (
	"context"
	"log/slog"

	"holdfast/internal/dr"
)

func unsupported(op string) error {
	return dr.Errorf(dr.KindUnsupported, op, "Windows services exist only on Windows")
}

// Install fails: there are no Windows services here.
func Install(context.Context, Config) error { return unsupported("winservice.Install") }

// Remove fails: there are no Windows services here.
func Remove(context.Context, string) error { return unsupported("winservice.Remove") }

// Start fails: there are no Windows services here.
func Start(context.Context, string) error { return unsupported("winservice.Start") }

// Stop fails: there are no Windows services here.
func Stop(context.Context, string) error { return unsupported("winservice.Stop") }

// Query fails: there are no Windows services here.
func Query(context.Context, string) (Status, error) {
	return Status{}, unsupported("winservice.Query")
}

// IsService is false: there are no Windows services here.
func IsService() bool { return false }

// Run fails: there are no Windows services here.
func Run(RunConfig, Work) error { return unsupported("winservice.Run") }

// EventLog fails: there is no event log here.
func EventLog(string, slog.Leveler) (slog.Handler, func() error, error) {
	return nil, nil, unsupported("winservice.EventLog")
}

// MachineProxy fails: there are no Windows settings here.
func MachineProxy() (Proxy, error) { return Proxy{}, unsupported("winservice.MachineProxy") }
