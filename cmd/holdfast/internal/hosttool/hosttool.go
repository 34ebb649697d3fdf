// Package hosttool holds the commands for whoever stands before a host: doctor
// (what keeps replication from working here), urls (what a
// firewall has to let out), probe (record what a Hyper-V host answers) and cleanup (remove
// what replication left behind).
//
// They need no vault. Doctor changes nothing unless a VM is named, on which it
// makes and removes one checkpoint; probe changes nothing at all; cleanup asks, and
// touches no VM that this host's agent replicates.
package hosttool

import (
	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
)

type app struct{ *console.Console }

// Commands are the subcommands of 'holdfast agent'.
func Commands(c *console.Console) []*cobra.Command {
	a := &app{c}
	return []*cobra.Command{a.doctorCommand(), a.urlsCommand(), a.probeCommand(), a.cleanupCommand()}
}
