package hosting

import (
	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/vmm"
)

// VMM says which VMM server is asked, and by what.
type VMM struct {
	Server  string // "" = this machine
	Program string // "" = powershell.exe
}

// Add adds the flags to a command.
func (v *VMM) Add(c *cobra.Command) {
	c.Flags().StringVar(&v.Server, "vmm", "", "VMM server that an agent with the role vmm asks (default: this machine)")
	c.Flags().StringVar(&v.Program, "vmm-powershell", "", "PowerShell that has VMM's module (default: powershell.exe)")
}

// Given reports whether a flag was used.
func (v *VMM) Given() bool { return v.Server != "" || v.Program != "" }

// Open returns the way to the server; nothing is asked yet.
func (v *VMM) Open() (vmm.Inventory, error) {
	p, err := vmm.NewPowerShell(vmm.PowerShellConfig{Program: v.Program, Server: v.Server})
	if err != nil {
		return nil, console.Usage("--vmm: %v", err)
	}
	return p, nil
}
