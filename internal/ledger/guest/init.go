//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"holdfast/internal/ledger"
)

const (
	self     = "/ledger"
	busybox  = "/bin/busybox"
	agent    = "/usr/sbin/qemu-ga"
	hook     = "/etc/qemu/fsfreeze-hook"
	dataDir  = "/disk/data"
	systemFS = "/disk/sys"
)

// supervisor is process 1: it alone collects children, so nobody else waits.
type supervisor struct {
	mu     sync.Mutex
	ledger int // process id of the ledger, 0 before it runs
	agent  int
}

// runInit never returns.
func runInit() {
	mountAll()
	loadModules("core")
	disks := findDisks(3 * time.Second)
	if len(disks) < 2 {
		loadModules("fallback") // other disk controllers cost boot time, so only if needed
		disks = findDisks(60 * time.Second)
	}
	mounted := true // never write a ledger into memory, where it would prove nothing
	for label, dir := range map[string]string{"data": dataDir, "sys": systemFS} {
		os.MkdirAll(dir, 0o755)
		if err := syscall.Mount(disks[label], dir, "ext4", 0, "errors=panic"); err != nil {
			stop(fmt.Sprintf("mount %s (%q): %v", label, disks[label], err))
			mounted = false
		}
	}
	s := &supervisor{}
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, syscall.SIGTERM, syscall.SIGUSR2, syscall.SIGINT)
	go func() {
		sig := <-sigs
		s.shutdown(sig == syscall.SIGTERM || sig == syscall.SIGINT)
	}()
	go watchPowerButton()
	if net := kernelWords().text("net"); net != "" {
		bringUp(net)
	}
	if mounted {
		s.mu.Lock()
		s.ledger = spawn(self, "run", filepath.Join(dataDir, ledger.FileA), filepath.Join(systemFS, ledger.FileB))
		s.mu.Unlock()
	}
	s.startAgent()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		died := pid == s.agent
		s.mu.Unlock()
		if died {
			time.Sleep(time.Second)
			s.startAgent()
		}
	}
}

func (s *supervisor) startAgent() {
	port := serialPort("org.qemu.guest_agent.0")
	if _, err := os.Stat(agent); err != nil || port == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.agent = spawn(agent, "-m", "virtio-serial", "-p", port, "-F"+hook, "-t", "/run")
}

// shutdown stops the ledger, unmounts, and restarts or powers off.
func (s *supervisor) shutdown(restart bool) {
	s.mu.Lock() // for good: nothing is started any more
	if s.ledger > 0 {
		syscall.Kill(s.ledger, syscall.SIGTERM)
		for i := 0; i < 50 && syscall.Kill(s.ledger, 0) == nil; i++ {
			time.Sleep(20 * time.Millisecond)
		}
	}
	syscall.Kill(-1, syscall.SIGKILL)
	time.Sleep(50 * time.Millisecond)
	for _, dir := range []string{dataDir, systemFS} {
		if syscall.Unmount(dir, 0) != nil {
			syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
		}
	}
	syscall.Sync()
	cmd := syscall.LINUX_REBOOT_CMD_POWER_OFF
	if restart {
		cmd = syscall.LINUX_REBOOT_CMD_RESTART
	}
	syscall.Reboot(cmd)
}

func mountAll() {
	for _, m := range [][3]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		os.MkdirAll(m[1], 0o755)
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != syscall.EBUSY {
			say(fmt.Sprintf("ledger: mount %s: %v", m[1], err))
		}
	}
	os.Symlink("/proc/self/fd", "/dev/fd")
}

// loadModules loads the modules of one class in the order that the image's
// builder computed from their dependencies.
func loadModules(class string) {
	list, err := os.ReadFile("/lib/modules/" + class)
	if err != nil {
		return
	}
	for name := range strings.FieldsSeq(string(list)) {
		b, err := os.ReadFile("/lib/modules/" + name)
		if err != nil || len(b) == 0 {
			continue
		}
		params := []byte{0}
		_, _, e := syscall.Syscall(syscall.SYS_INIT_MODULE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&params[0])))
		if e != 0 && e != syscall.EEXIST && e != syscall.ENODEV {
			say(fmt.Sprintf("ledger: load module %s: %v", name, e))
		}
	}
}

// findDisks maps ext4 labels to devices, whatever bus they sit on, and gives up waiting for both after limit.
func findDisks(limit time.Duration) map[string]string {
	found := map[string]string{}
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		devs, _ := filepath.Glob("/sys/class/block/*")
		for _, d := range devs {
			dev := "/dev/" + filepath.Base(d)
			if label := ext4Label(dev); label == "data" || label == "sys" {
				found[label] = dev
			}
		}
		if len(found) == 2 || time.Now().After(deadline) {
			return found
		}
	}
}

func ext4Label(dev string) string {
	if strings.HasPrefix(dev, "/dev/ram") || strings.HasPrefix(dev, "/dev/loop") {
		return ""
	}
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	var sb [1024]byte
	if _, err := f.ReadAt(sb[:], 1024); err != nil || binary.LittleEndian.Uint16(sb[0x38:]) != 0xEF53 {
		return ""
	}
	label, _, _ := bytes.Cut(sb[0x78:0x88], []byte{0})
	return string(label)
}

// serialPort finds the device of a named virtio-serial port, "" if the machine has none.
func serialPort(name string) string {
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range ports {
		if b, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(p))
		}
	}
	return ""
}

// watchPowerButton turns the ACPI power button into a shutdown.
func watchPowerButton() {
	const evKey, keyPower = 1, 116
	devs, _ := filepath.Glob("/dev/input/event*")
	for _, dev := range devs {
		go func() {
			f, err := os.Open(dev)
			if err != nil {
				return
			}
			defer f.Close()
			var ev [24]byte // struct input_event of 64-bit Linux
			for {
				if n, err := f.Read(ev[:]); err != nil || n != len(ev) {
					return
				}
				if binary.LittleEndian.Uint16(ev[16:]) == evKey && binary.LittleEndian.Uint16(ev[18:]) == keyPower {
					syscall.Kill(1, syscall.SIGUSR2)
				}
			}
		}()
	}
}

// bringUp configures eth0 ("dhcp", "ADDR/BITS" or "ADDR/BITS,GATEWAY") and serves the data disk by HTTP.
func bringUp(net string) {
	run(busybox, "ip", "link", "set", "eth0", "up")
	run(busybox, "ip", "link", "set", "lo", "up")
	if net == "dhcp" {
		spawn(busybox, "udhcpc", "-i", "eth0", "-f", "-t", "20", "-s", "/etc/udhcpc.script")
	} else {
		addr, gateway, _ := strings.Cut(net, ",")
		run(busybox, "ip", "addr", "add", addr, "dev", "eth0")
		if gateway != "" {
			run(busybox, "ip", "route", "add", "default", "via", gateway)
		}
	}
	spawn(busybox, "httpd", "-f", "-p", "80", "-h", dataDir)
}

// spawn starts a program on the console and returns its process id, 0 if it could not be started.
func spawn(path string, args ...string) int {
	out, err := os.OpenFile(consolePath, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return 0
	}
	defer out.Close()
	pid, err := syscall.ForkExec(path, append([]string{path}, args...), &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/"},
		Files: []uintptr{out.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		say(fmt.Sprintf("ledger: start %s: %v", path, err))
		return 0
	}
	return pid
}

// run waits for a program; only before the collecting loop runs.
func run(path string, args ...string) {
	if pid := spawn(path, args...); pid > 0 {
		syscall.Wait4(pid, nil, 0, nil)
	}
}

// kernelWords reads the kernel command line.
func kernelWords() words {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

type words []string

func (w words) has(name string) bool {
	for _, s := range w {
		if s == name {
			return true
		}
	}
	return false
}

func (w words) text(name string) string {
	for _, s := range w {
		if v, ok := strings.CutPrefix(s, name+"="); ok {
			return v
		}
	}
	return ""
}

func (w words) number(name string, otherwise int64) int64 {
	var n int64
	if _, err := fmt.Sscanf(w.text(name), "%d", &n); err != nil || n < 0 {
		return otherwise
	}
	return n
}
