package guestcheck

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/guestcheck/initramfs"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/readiness"
)

// A driver that a target needs: any of the modules does.
type driver struct {
	what    string
	modules []string
	config  []string // kernel configuration options, in the order of modules
	early   bool     // needed before the root file system is mounted
}

func driversFor(target string) []driver {
	if target == "kvm" {
		return []driver{
			{"virtio's PCI bus", []string{"virtio_pci"}, []string{"CONFIG_VIRTIO_PCI"}, true},
			{"virtio disks", []string{"virtio_blk", "virtio_scsi"}, []string{"CONFIG_VIRTIO_BLK", "CONFIG_SCSI_VIRTIO"}, true},
			{"virtio network", []string{"virtio_net"}, []string{"CONFIG_VIRTIO_NET"}, false},
		}
	}
	return []driver{
		{"Hyper-V's bus", []string{"hv_vmbus"}, []string{"CONFIG_HYPERV"}, true},
		{"Hyper-V disks", []string{"hv_storvsc"}, []string{"CONFIG_HYPERV_STORAGE"}, true},
		{"Hyper-V network", []string{"hv_netvsc"}, []string{"CONFIG_HYPERV_NET"}, false},
	}
}

// kernel is a kernel with its initramfs as they lie on a volume.
type kernel struct {
	v       *volume
	dir     string
	version string
	image   string
	initrds []string
}

const maxKernels = 12

// kernels checks that each kernel has the drivers that the target needs.
func (c *checker) kernels() {
	ks := c.findKernels()
	if len(ks) == 0 {
		c.skip(CheckDrivers, "", "no kernel was found on a volume that can be read")
		return
	}
	slices.SortStableFunc(ks, func(a, b kernel) int { return compareVersions(b.version, a.version) })
	for n, k := range ks {
		if n == maxKernels {
			c.skip(CheckDrivers, "", "there are %d kernels; only the newest %d are looked into", len(ks), n)
			break
		}
		c.kernel(k, n == 0)
	}
}

func (c *checker) findKernels() []kernel {
	var out []kernel
	add := func(v *volume, name string) *kernel {
		dir, base := path.Dir(name), path.Base(name)
		ver := version(base)
		for k := range out {
			if o := &out[k]; o.v == v && o.dir == dir && (ver != "" && o.version == ver || o.image == name) {
				return o
			}
		}
		out = append(out, kernel{v: v, dir: dir, version: ver})
		return &out[len(out)-1]
	}
	for _, v := range c.vols {
		if v.fs == nil || v.Content == layout.NTFS {
			continue
		}
		for _, dir := range []string{"/", "/boot"} {
			for _, n := range c.list(CheckDrivers, v, dir) {
				full := path.Join(dir, n)
				switch ver := version(n); {
				case ver == "" || rescue(n) || strings.HasSuffix(n, ".old") || hasAny(n, ".hmac", ".bak", ".dpkg"):
				case initrdNames.MatchString(n):
					k := add(v, full)
					k.initrds = append(k.initrds, full)
				default:
					add(v, full).image = full
				}
			}
		}
	}
	for _, e := range c.entries { // what the loader names in its own way
		v, name, ok := c.bootFile(e, e.kernel)
		if !ok || version(path.Base(name)) != "" {
			continue
		}
		k := add(e.v, name)
		k.v, k.image = v, name
		for _, i := range e.initrd {
			if _, n, ok := c.bootFile(e, i); ok && !slices.Contains(k.initrds, n) {
				k.initrds = append(k.initrds, n)
			}
		}
	}
	return slices.DeleteFunc(out, func(k kernel) bool { return k.image == "" })
}

// bootFile finds a file that a boot loader's configuration names: from the
// volume's root, from the directory of the configuration, or in the tree.
func (c *checker) bootFile(e bootEntry, name string) (*volume, string, bool) {
	if i := strings.LastIndexByte(name, ')'); i >= 0 {
		name = name[i+1:] // (hd0,1)/vmlinuz
	}
	for _, n := range []string{path.Join("/", name), path.Join(path.Dir(e.file), name), path.Join("/boot", name)} {
		if c.exists(CheckDrivers, e.v, n) {
			return e.v, n, true
		}
	}
	for _, v := range c.vols {
		if v.fs != nil && c.exists(CheckDrivers, v, path.Join("/", name)) {
			return v, path.Join("/", name), true
		}
	}
	return nil, "", false
}

func (c *checker) kernel(k kernel, newest bool) {
	object := c.objectOf(k.v, k.image)
	fact := Kernel{Version: k.version}
	config, haveConfig := "", false
	builtin := map[string]bool{}
	if k.version != "" {
		config, haveConfig = c.text(CheckDrivers, k.v, path.Join(k.dir, "config-"+k.version))
		for _, lib := range []string{"/lib/modules/", "/usr/lib/modules/"} {
			if v, n := c.tree.find(lib + k.version + "/modules.builtin"); v != nil {
				if s, ok := c.text(CheckDrivers, v, n); ok {
					builtin, haveConfig = initramfs.Builtin([]byte(s)), true
				}
			}
		}
	}
	early := map[string]bool{}
	for _, n := range k.initrds {
		in, err := c.initramfs(k.v, n)
		if err != nil {
			c.skip(CheckDrivers, c.objectOf(k.v, n), "the initramfs can't be looked into: %v", err)
			return
		}
		fact.Initramfs, fact.Formats = n, append(fact.Formats, in.Formats...)
		for m := range in.Modules {
			early[m] = true
		}
		for m := range in.Builtin {
			builtin[m], haveConfig = true, true
		}
	}
	sev := readiness.Warns
	if newest {
		sev = readiness.Blocks
	}
	c.ran(CheckDrivers)
	for _, d := range driversFor(c.in.Target) {
		have := ""
		for i, m := range d.modules {
			if builtin[m] || early[m] || strings.Contains("\n"+config, "\n"+d.config[i]+"=y") {
				have = m
			}
		}
		if have == "" && !d.early && k.version != "" {
			have = c.installed(k.version, d.modules)
		}
		switch {
		case have != "":
			fact.Drivers = append(fact.Drivers, have)
		case !haveConfig:
			c.skip(CheckDrivers, object, "%s is not in its initramfs, and neither a configuration nor modules.builtin tells whether it is built into the kernel", d.modules[0])
		case d.early:
			c.found(CheckDrivers, sev, object, "Add "+d.modules[0]+" to the initramfs (update-initramfs: /etc/initramfs-tools/modules; dracut: add_drivers+=) and build it again.",
				"the driver for %s (%s) is neither in the initramfs nor in the kernel: the root file system would not be found", d.what, strings.Join(d.modules, " or "))
		default:
			c.found(CheckDrivers, readiness.Warns, object, "Install the kernel's full set of modules.", "the driver for %s (%s) is neither in the initramfs nor in the kernel, and not found among its modules", d.what, strings.Join(d.modules, " or "))
		}
	}
	c.r.Facts.Kernels = append(c.r.Facts.Kernels, fact)
}

func (c *checker) initramfs(v *volume, name string) (initramfs.Contents, error) {
	f, err := v.fs.Open(name)
	if err != nil {
		return initramfs.Contents{}, err
	}
	return initramfs.Read(f)
}

// installed looks for a module among those of the root file system.
func (c *checker) installed(version string, modules []string) string {
	for _, lib := range []string{"/lib/modules/", "/usr/lib/modules/"} {
		v, n := c.tree.find(lib + version + "/modules.dep")
		if v == nil {
			continue
		}
		s, _ := c.text(CheckDrivers, v, n)
		for line := range strings.Lines(s) {
			file, _, _ := strings.Cut(line, ":")
			if m := initramfs.Module(file); slices.Contains(modules, m) {
				return m
			}
		}
	}
	return ""
}

// compareVersions orders 5.10.0-9 before 5.10.0-10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x != "" && y != "" {
			m, _ := strconv.ParseUint(x, 10, 64)
			n, _ := strconv.ParseUint(y, 10, 64)
			if m != n {
				if m < n {
					return -1
				}
				return 1
			}
			a, b = a[len(x):], b[len(y):]
			continue
		}
		if a[0] != b[0] {
			return strings.Compare(a, b)
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) string {
	n := 0
	for n < len(s) && n < 18 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n]
}
