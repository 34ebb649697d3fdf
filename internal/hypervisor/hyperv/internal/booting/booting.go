// Package booting makes recovery VMs: copies a recovery point into VHDX files,
// defines a VM on them and starts it. What it promises is said by package hyperv.
//
// It owns the records of recovery VMs in the product directory, and what they name.
package booting

import (
	"log/slog"
	"time"

	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// Config of a Booter. All fields but Progress are needed. They mean what the fields of hyperv.Config of the same names say.
type Config struct {
	Dir         string
	Disks       port.Disks
	CallTimeout time.Duration
	Progress    func(name string, done, total int64)
	Log         *slog.Logger
}

// Booter makes recovery VMs. Methods are safe for concurrent use.
type Booter struct {
	*vms.Host
	cfg Config
	log *slog.Logger
}

// New makes a Booter.
func New(host *vms.Host, cfg Config) *Booter { return &Booter{host, cfg, cfg.Log} }

// bootDir is the part of the product directory that holds the records of recovery VMs.
const bootDir = "boot"

// NativeSettings is the name in VMConfig.Native of the captured VM's embedded Msvm_VirtualSystemSettingData.
const NativeSettings = "hyperv.settings"
