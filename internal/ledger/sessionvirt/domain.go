package sessionvirt

import (
	"errors"
	"fmt"
	"strings"
	"text/template"

	"holdfast/internal/ledger"
)

// Firmware of Debian's package ovmf.
const (
	uefiCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	uefiVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

var domainXML = template.Must(template.New("domain").Parse(`<domain type='{{if .C.KVM}}kvm{{else}}qemu{{end}}'>
  <name>{{.G.Name}}</name>
  <uuid>{{.G.UUID}}</uuid>
  <memory unit='MiB'>{{.Memory}}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{{if .C.UEFI}}q35{{else}}pc{{end}}'>hvm</type>
{{- if .C.UEFI}}
    <loader readonly='yes' type='pflash'>{{.Code}}</loader>
    <nvram template='{{.Vars}}'>{{.G.NVRAM}}</nvram>
{{- end}}
    <boot dev='hd'/>
  </os>
  <features><acpi/></features>
  <cpu mode='{{if .C.KVM}}host-passthrough{{else}}maximum{{end}}'/>
  <on_crash>preserve</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{.G.Disks.Format}}' cache='none' discard='unmap'/>
      <source file='{{.G.Disks.Boot}}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{.G.Disks.Format}}' cache='none' discard='unmap'/>
      <source file='{{.G.Disks.Data}}'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path='{{.G.Console}}' append='on'/>
      <target port='0'/>
    </serial>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='{{.G.Control}}'/>
      <target type='virtio' name='{{.Port}}'/>
    </channel>
{{- if eq .C.Network "user"}}
    <interface type='user'>
      <mac address='{{.C.MAC}}'/>
      <model type='virtio'/>
    </interface>
{{- else if .C.Network}}
    {{.C.Network}}
{{- end}}
  </devices>
</domain>
`))

// DomainXML renders the libvirt definition of a guest for BIOS or UEFI. It
// uses g's Name, UUID, Disks, NVRAM, Console and Control, and cfg's machine fields.
func DomainXML(g *Guest, cfg GuestConfig) (string, error) {
	for _, s := range []string{g.Name, g.UUID, g.Disks.Boot, g.Disks.Data, g.NVRAM, g.Console, g.Control, cfg.MAC} {
		if strings.ContainsAny(s, "<>&'\"") {
			return "", fmt.Errorf("define guest %s: %q holds characters of XML", g.Name, s)
		}
	}
	if cfg.UEFI && g.NVRAM == "" {
		return "", errors.New("define guest " + g.Name + ": UEFI needs a file for its variables")
	}
	memory := cfg.MemoryMiB
	if memory == 0 {
		memory = 256
	}
	var b strings.Builder
	err := domainXML.Execute(&b, map[string]any{"G": g, "C": cfg, "Memory": memory, "Code": uefiCode, "Vars": uefiVars, "Port": ledger.ControlPort})
	if err != nil {
		return "", fmt.Errorf("define guest %s: %w", g.Name, err)
	}
	return b.String(), nil
}
