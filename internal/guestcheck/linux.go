package guestcheck

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/guestcheck/netconf"
	"holdfast/internal/readiness"
)

// linux runs the checks of Linux guests.
func (c *checker) linux() {
	c.bootEntries()
	if c.root == nil {
		for _, id := range []CheckID{CheckFstab, CheckNetwork, CheckNames, CheckAgent, CheckRemote} {
			c.skip(id, "", "the root file system can't be read")
		}
	} else {
		c.fstab()
	}
	c.kernels()
	c.rootDevice()
	c.console()
	if c.root != nil {
		c.network()
		c.persistentNames()
		c.agents()
	}
}

// fstabEntry is a line of /etc/fstab.
type fstabEntry struct {
	device, mount, kind, options string
}

func parseFstab(s string) []fstabEntry {
	var out []fstabEntry
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		e := fstabEntry{device: strings.Trim(f[0], `"`), mount: strings.ReplaceAll(f[1], `\040`, " "), kind: f[2]}
		if len(f) > 3 {
			e.options = f[3]
		}
		out = append(out, e)
	}
	return out
}

func (e fstabEntry) option(name string) bool {
	return slices.Contains(strings.Split(e.options, ","), name)
}

// essential: the guest does not come up without it.
func (e fstabEntry) essential() bool {
	return slices.Contains([]string{"/", "/boot", "/boot/efi", "/usr", "/var"}, e.mount)
}

// unstable matches names of devices that depend on the controller or the order of disks.
var unstable = regexp.MustCompile(`^/dev/((?:sd|vd|hd|xvd)[a-z]+(\d*)|nvme\d+n\d+(?:p(\d+))?|disk/by-(?:path|id)/\S+)$`)

// byName finds the volume that the guest itself calls so; nil when that can't
// be told. Only Linux's plain naming is followed: the n-th disk is sda, sdb ….
func (c *checker) byName(dev string) *volume {
	m := regexp.MustCompile(`^/dev/(?:sd|vd|hd|xvd)([a-z])(\d*)$`).FindStringSubmatch(dev)
	if m == nil || int(m[1][0]-'a') >= len(c.in.Disks) {
		return nil
	}
	name := c.in.Disks[m[1][0]-'a'].ID
	if m[2] != "" {
		name += "/" + m[2]
	}
	for _, v := range c.vols {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// bySpec finds the volume for UUID=, LABEL=, PARTUUID= or a stable path. told is
// false when spec is of another kind.
func (c *checker) bySpec(spec string) (v *volume, told bool) {
	spec = strings.ReplaceAll(spec, `"`, "")
	for _, p := range [][2]string{{"/dev/disk/by-uuid/", "UUID="}, {"/dev/disk/by-label/", "LABEL="}, {"/dev/disk/by-partuuid/", "PARTUUID="}} {
		if rest, ok := strings.CutPrefix(spec, p[0]); ok {
			spec = p[1] + rest
		}
	}
	key, val, ok := strings.Cut(spec, "=")
	for _, v := range c.vols {
		have := map[string]string{"UUID": v.UUID, "LABEL": v.Label, "PARTUUID": v.PartUUID}[key]
		if ok && have != "" && (strings.EqualFold(have, val) && key != "LABEL" || have == val) {
			return v, true
		}
		if !ok && v.device(spec) {
			return v, true
		}
	}
	return nil, ok && slices.Contains([]string{"UUID", "LABEL", "PARTUUID"}, key)
}

// device tells whether a logical volume is known by that path.
func (v *volume) device(p string) bool {
	vg, lv, ok := strings.Cut(v.Name, ":")
	if !ok {
		return false
	}
	mapper := strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
	return p == "/dev/"+vg+"/"+lv || p == "/dev/mapper/"+mapper
}

// readAll tells whether every volume could be looked into, so that an absent UUID is absent.
func (c *checker) readAll() bool {
	return !slices.ContainsFunc(c.vols, func(v *volume) bool { return v.err != nil })
}

func (c *checker) fstab() {
	c.tree.mounts = []mount{{"/", c.root}}
	s, ok := c.text(CheckFstab, c.root, "/etc/fstab")
	if !ok {
		if c.seen[CheckFstab] == "" {
			c.found(CheckFstab, readiness.Notes, c.root.Name+":/etc/fstab", "", "there is no /etc/fstab")
		}
		return
	}
	c.ran(CheckFstab)
	for _, e := range parseFstab(s) {
		object := c.root.Name + ":/etc/fstab " + e.mount
		v, told := c.bySpec(e.device)
		if unstable.MatchString(e.device) {
			v = c.byName(e.device)
			if e.option("noauto") {
				continue
			}
			sev := readiness.Warns
			if e.essential() {
				sev = readiness.Blocks
			}
			c.found(CheckFstab, sev, object, "Name the file system by UUID= in /etc/fstab (blkid shows it), or let Holdfast do so on the recovery copy.",
				"%s is mounted by the name %s, which depends on the virtual hardware and can be another at the target", e.mount, e.device)
		} else if told && v == nil && c.readAll() && !e.option("noauto") && !e.option("nofail") {
			c.found(CheckFstab, readiness.Warns, object, "Remove the entry or give it the option nofail, or do not exclude the disk.",
				"none of the replicated disks has the file system %s that %s is mounted from", e.device, e.mount)
		}
		if v != nil && v.fs != nil && strings.HasPrefix(e.mount, "/") && e.mount != "/" {
			c.tree.mounts = append(c.tree.mounts, mount{path.Clean(e.mount), v})
		}
	}
	slices.SortStableFunc(c.tree.mounts, func(a, b mount) int { return len(b.at) - len(a.at) })
	c.planFstab(s)
}

// bootEntry is one way to start Linux, as a boot loader's configuration has it.
type bootEntry struct {
	v      *volume
	file   string // configuration
	kernel string
	initrd []string
	args   []string
}

func (e bootEntry) object() string { return e.v.Name + ":" + e.file }

var configs = []string{"/grub/grub.cfg", "/grub2/grub.cfg", "/grub/menu.lst", "/grub/grub.conf", "/syslinux/syslinux.cfg", "/syslinux.cfg", "/extlinux/extlinux.conf", "/extlinux.conf"}

// bootEntries collects what the boot loaders of all volumes would start.
func (c *checker) bootEntries() {
	for _, v := range c.vols {
		if v.fs == nil || v.Content == layout.NTFS {
			continue
		}
		names := []string{}
		for _, base := range []string{"", "/boot"} {
			for _, n := range configs {
				names = append(names, base+n)
			}
			for _, n := range c.list(CheckConsole, v, base+"/loader/entries") {
				if strings.HasSuffix(n, ".conf") {
					names = append(names, base+"/loader/entries/"+n)
				}
			}
		}
		if v.Content == layout.FAT {
			for _, dir := range c.list(CheckConsole, v, "/EFI") {
				names = append(names, "/EFI/"+dir+"/grub.cfg", "/EFI/"+dir+"/syslinux.cfg")
			}
		}
		for _, n := range names {
			if s, ok := c.text(CheckConsole, v, n); ok {
				c.entries = append(c.entries, c.parseBoot(v, n, s)...)
			}
		}
	}
}

// parseBoot reads grub.cfg, syslinux.cfg and Boot Loader Specification entries
// alike: a line that names a kernel, one that names the initramfs, arguments.
func (c *checker) parseBoot(v *volume, file, s string) []bootEntry {
	var out []bootEntry
	title := ""
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch strings.ToLower(f[0]) {
		case "menuentry", "label", "title":
			title = strings.ToLower(line)
		case "linux", "linux16", "linuxefi", "kernel":
			if strings.HasSuffix(f[1], ".c32") || rescue(title) || rescue(f[1]) {
				title = "rescue"
				continue
			}
			title = ""
			out = append(out, bootEntry{v: v, file: file, kernel: f[1], args: f[2:]})
		case "append", "options", "initrd", "initrd16", "initrdefi":
			if len(out) == 0 || title == "rescue" {
				continue
			}
			e := &out[len(out)-1]
			if strings.HasPrefix(strings.ToLower(f[0]), "initrd") {
				for _, n := range f[1:] {
					e.initrd = append(e.initrd, strings.Split(n, ",")...)
				}
				continue
			}
			e.args = append(e.args, f[1:]...)
		}
	}
	for k := range out {
		e := &out[k]
		var args []string
		for _, a := range e.args {
			if n, ok := strings.CutPrefix(a, "initrd="); ok {
				e.initrd = append(e.initrd, strings.Split(n, ",")...)
			} else if a == "$kernelopts" || a == "${kernelopts}" {
				args = append(args, strings.Fields(c.kernelOpts(v))...)
			} else {
				args = append(args, a)
			}
		}
		e.args = args
	}
	return out
}

func rescue(s string) bool { return hasAny(s, "rescue", "recovery", "memtest", "kdump", "(on /dev/") }

// kernelOpts reads the variable of GRUB's environment block that RHEL 8 keeps arguments in.
func (c *checker) kernelOpts(v *volume) string {
	for _, n := range []string{"/grub2/grubenv", "/boot/grub2/grubenv"} {
		if s, ok := c.text(CheckConsole, v, n); ok {
			return netconf.ShellValue(s, "kernelopts")
		}
	}
	return ""
}

func (c *checker) rootDevice() {
	if len(c.entries) == 0 {
		c.skip(CheckRoot, "", "no boot loader's configuration was found that can be read")
		return
	}
	c.ran(CheckRoot)
	for _, e := range c.entries {
		for _, a := range e.args {
			dev, ok := strings.CutPrefix(a, "root=")
			if !ok {
				continue
			}
			v, told := c.bySpec(dev)
			switch {
			case unstable.MatchString(dev):
				c.found(CheckRoot, readiness.Blocks, e.object(), "Let the boot loader name the root file system by UUID (GRUB: remove GRUB_DISABLE_LINUX_UUID and run update-grub).",
					"the kernel is told root=%s, a name that depends on the virtual hardware and can be another at the target", dev)
			case told && v == nil && c.readAll():
				c.found(CheckRoot, readiness.Blocks, e.object(), "Do not exclude the disk, or correct the boot loader's configuration.", "none of the replicated disks has the root file system %s", dev)
			}
		}
	}
}

func (c *checker) console() {
	if len(c.entries) == 0 {
		c.skip(CheckConsole, "", "no boot loader's configuration was found that can be read")
		return
	}
	c.ran(CheckConsole)
	for _, e := range c.entries {
		if !slices.ContainsFunc(e.args, func(a string) bool {
			return strings.HasPrefix(a, "console=ttyS0") || strings.HasPrefix(a, "console=ttyAMA0")
		}) {
			c.found(CheckConsole, readiness.Warns, e.object(), "Add console=tty0 console=ttyS0,115200n8 to the kernel's arguments (GRUB: GRUB_CMDLINE_LINUX), or let Holdfast do so on the recovery copy.",
				"the kernel %s has no serial console (console=ttyS0): nothing is seen of a boot that fails", path.Base(e.kernel))
		}
	}
	c.planConsole()
}

func (c *checker) persistentNames() {
	c.ran(CheckNames)
	for _, n := range []string{"/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/75-persistent-net.rules"} {
		s, ok := c.text(CheckNames, c.root, n)
		if !ok {
			continue
		}
		rules := 0
		for line := range strings.Lines(s) {
			if t := strings.TrimSpace(line); t != "" && t[0] != '#' {
				rules++
			}
		}
		if rules > 0 {
			c.found(CheckNames, readiness.Warns, c.root.Name+":"+n, "Remove the rules, or let Holdfast blank them on the recovery copy.",
				"%d rules tie interface names to the source's MAC addresses; at the target the adapter gets another name and no address", rules)
			c.planBlank(n, s)
		}
	}
}

func (c *checker) agents() {
	c.ran(CheckAgent)
	for _, a := range [][2]string{{"/usr/sbin/waagent", "Azure Linux agent"}, {"/usr/bin/waagent", "Azure Linux agent"}, {"/etc/cloud/cloud.cfg", "cloud-init"}, {"/usr/sbin/qemu-ga", "QEMU guest agent"}, {"/usr/bin/qemu-ga", "QEMU guest agent"}} {
		if c.exists(CheckAgent, c.root, a[0]) && !slices.Contains(c.r.Facts.Agents, a[1]) {
			c.r.Facts.Agents = append(c.r.Facts.Agents, a[1])
		}
	}
	if c.in.Target == "azure" && !slices.Contains(c.r.Facts.Agents, "Azure Linux agent") {
		c.found(CheckAgent, readiness.Notes, c.root.Name, "Install walinuxagent if extensions, password reset or run-command are wanted there.", "the Azure Linux agent is not installed; the VM runs without it")
	}
	for _, n := range c.list(CheckAgent, c.root, "/etc/cloud/cloud.cfg.d") {
		s, ok := c.text(CheckAgent, c.root, "/etc/cloud/cloud.cfg.d/"+n)
		for line := range strings.Lines(s) {
			l := strings.TrimSpace(line)
			if ok && strings.HasPrefix(l, "datasource_list:") && c.in.Target == "azure" && !strings.Contains(l, "Azure") {
				c.found(CheckAgent, readiness.Notes, c.root.Name+":/etc/cloud/cloud.cfg.d/"+n, "", "cloud-init looks for %s only, not for Azure's", strings.TrimSpace(strings.TrimPrefix(l, "datasource_list:")))
			}
		}
	}
	c.ran(CheckRemote)
	if !c.exists(CheckRemote, c.root, "/usr/sbin/sshd") && !c.exists(CheckRemote, c.root, "/usr/sbin/dropbear") {
		c.found(CheckRemote, readiness.Notes, c.root.Name, "Have another way in, such as the serial console.", "no SSH server was found")
	}
}

// kernelNames are how distributions name kernels and their initramfs; %s is the version.
var initrdNames = regexp.MustCompile(`^(?:initrd\.img-(.+)|initramfs-(.+)\.img|initrd-(.+)|initramfs-(.+))$`)

func version(base string) string {
	m := initrdNames.FindStringSubmatch(base)
	for _, s := range m[min(1, len(m)):] {
		if s != "" {
			return s
		}
	}
	for _, p := range []string{"vmlinuz-", "vmlinux-", "bzImage-", "Image-"} {
		if v, ok := strings.CutPrefix(base, p); ok {
			return v
		}
	}
	return ""
}

func (c *checker) objectOf(v *volume, name string) string { return fmt.Sprintf("%s:%s", v.Name, name) }
