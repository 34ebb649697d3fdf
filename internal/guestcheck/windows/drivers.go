package windows

import (
	"strings"

	"holdfast/internal/readiness"
)

// A driver that a target needs: any of the services does.
type driver struct {
	what     string
	services []string
	early    bool // Windows needs it to read its own disk
	sev      readiness.Severity
}

func (i *inspection) needed() []driver {
	if i.in.Target == "kvm" {
		return []driver{
			{"virtio disks", []string{"viostor", "vioscsi"}, true, readiness.Blocks},
			{"virtio network", []string{"netkvm"}, false, readiness.Warns},
		}
	}
	out := []driver{
		{"Hyper-V's bus", []string{"vmbus"}, true, readiness.Blocks},
		{"Hyper-V disks", []string{"storvsc"}, true, readiness.Blocks},
		{"Hyper-V's storage accelerator", []string{"storflt"}, true, readiness.Warns},
		{"Hyper-V network", []string{"netvsc"}, false, readiness.Warns},
	}
	if i.in.Generation != 2 { // its boot disk is on an emulated IDE controller
		sev := readiness.Blocks
		if i.in.Generation == 0 {
			sev = readiness.Warns
		}
		out = append(out, driver{"IDE channels", []string{"atapi"}, true, sev}, driver{"the IDE controller", []string{"intelide"}, true, sev})
	}
	return out
}

// Values of Start.
const (
	startBoot     = 0
	startAuto     = 2
	startDisabled = 4
)

func (i *inspection) drivers() {
	i.out.Ran(Drivers)
	for _, d := range i.needed() {
		why, object, open := "", "", false
		for _, s := range d.services {
			w := i.driver(s, d.early)
			if w == "" || w == notTold {
				open = true
				break
			}
			if object == "" || !strings.HasSuffix(w, notInstalled) {
				why, object = w, i.service(s)
			}
		}
		if open {
			continue
		}
		way := "Install the driver at the source"
		switch {
		case i.in.Target == "kvm":
			way += " (virtio-win), with a disk of that kind attached once so that Windows starts it at boot."
		case d.early:
			way += `, and set Start to 0 under HKLM\SYSTEM\CurrentControlSet\Services.`
		default:
			way += " (integration services; they are part of Windows since Windows Server 2012)."
		}
		end := "without it there is no network"
		if d.early {
			end = "Windows would not find its disk (INACCESSIBLE_BOOT_DEVICE)"
			if d.sev != readiness.Blocks {
				end = "starting may be slow, or fail"
			}
		}
		i.found(Drivers, d.sev, object, way, "the driver for %s: %s; %s", d.what, why, end)
	}
}

const (
	notInstalled = "is not installed"
	notTold      = "?"
)

// driver says what is wrong with a driver; notTold was reported.
func (i *inspection) driver(name string, early bool) string {
	path := i.service(name)
	_, is := i.key(Drivers, i.system, path)
	start := uint64(0)
	if is == have {
		start, is = i.number(Drivers, i.system, path, "Start")
	}
	switch {
	case is == unknown:
		return notTold
	case is == absent:
		return name + " " + notInstalled
	case start >= startDisabled:
		return name + " is disabled"
	case early && start != startBoot:
		return name + " is not started at boot (Start is " + string(rune('0'+start)) + ")"
	}
	file := "/Windows/System32/drivers/" + name + ".sys"
	image, is := i.value(Drivers, i.system, path, "ImagePath")
	if p := imagePath(image.Text()); is == have && p != "" {
		file = p
	}
	switch i.exists(Drivers, file) {
	case unknown:
		return notTold
	case absent:
		return name + "'s file " + file + " is missing"
	}
	if o, is := i.number(Drivers, i.system, path+`\StartOverride`, "0"); early && is == have && o != startBoot {
		i.found(Drivers, readiness.Notes, path+`\StartOverride`, "If the first start ends with INACCESSIBLE_BOOT_DEVICE, delete the value at the source.",
			"%s is started at boot, but held back on the hardware that Windows knows (StartOverride); Windows decides anew on other hardware", name)
	}
	return ""
}

// imagePath makes a name on the system's volume of what a service says; "" if it can't.
func imagePath(s string) string {
	s = strings.ReplaceAll(strings.Trim(s, `" `), `\`, "/")
	l := strings.ToLower(s)
	for _, p := range []string{"/systemroot/", "%systemroot%/", "/??/c:/windows/", "c:/windows/"} {
		if strings.HasPrefix(l, p) {
			return "/Windows/" + s[len(p):]
		}
	}
	if strings.HasPrefix(l, "system32/") {
		return "/Windows/" + s
	}
	return ""
}

// storage says whether Windows takes data disks into use that it sees for the first time there.
func (i *inspection) storage() {
	path := i.service(`partmgr\Parameters`)
	n, is := i.number(Storage, i.system, path, "SanPolicy")
	if is == unknown {
		return
	}
	i.out.Ran(Storage)
	if is == have && n == 1 {
		return
	}
	policy := map[uint64]string{0: "not set", 2: "OfflineAll", 3: "OfflineShared", 4: "OfflineInternal"}[n]
	if policy == "" {
		policy = "not known"
	}
	sev := readiness.Notes
	if i.in.Disks > 1 {
		sev = readiness.Warns
	}
	i.found(Storage, sev, path, "Set it at the source with diskpart: san policy=onlineall.", "the policy for new disks (SanPolicy) is %s, not OnlineAll: data disks may be offline after the start at the target", policy)
}
