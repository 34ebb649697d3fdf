package meter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SelfCPU is the CPU time that this process has used, without its children.
func SelfCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("ask for own CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// ProcessCPU is the CPU time that a running process has used, in ticks of 10 ms.
func ProcessCPU(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The fields after the program's name, which may hold spaces: utime and stime are the 12th and 13th.
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("read CPU time of process %d: %d fields", pid, len(f))
	}
	u, uerr := strconv.ParseInt(f[11], 10, 64)
	s, serr := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(u+s) * 10 * time.Millisecond, errors.Join(uerr, serr)
}

// PeakRSS is the most memory that this process has had resident, bytes, mapped files included.
// The kernel's rusage would count what the parent had before exec.
func PeakRSS() (int64, error) { return procField("/proc/self/status", "VmHWM:") }

func procField(path, name string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// LoadAverage is the load of the last 1, 5 and 15 minutes; zeroes where it is not known.
func LoadAverage() (l [3]float64) {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return l
	}
	for i, f := range strings.Fields(string(raw))[:3] {
		l[i], _ = strconv.ParseFloat(f, 64)
	}
	return l
}

// Machine describes the processor, and how much memory there is.
func Machine() (cpu string, memoryMiB int64) {
	cpu = "unknown"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		id := map[string]string{}
		for line := range strings.Lines(string(raw)) {
			if k, v, ok := strings.Cut(line, ":"); ok && id[strings.TrimSpace(k)] == "" {
				id[strings.TrimSpace(k)] = strings.TrimSpace(v)
			}
		}
		// The name alone says little where the hypervisor hides it.
		cpu = fmt.Sprintf("%s (family %s, model %s)", id["model name"], id["cpu family"], id["model"])
	}
	if n, err := procField("/proc/meminfo", "MemTotal:"); err == nil {
		memoryMiB = n >> 20
	}
	return cpu, memoryMiB
}

// EnoughSpace fails if less than want bytes are free at dir.
func EnoughSpace(dir string, want int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < want {
		return fmt.Errorf("%s has %s free, %s are needed: choose another place with -dir", dir, gib(free), gib(want))
	}
	return nil
}

// Allocated is what a file occupies, bytes; never more than its length.
func Allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return min(st.Size(), sys.Blocks*512)
	}
	return st.Size()
}

// Chill takes the files below path out of the page cache.
func Chill(path string) error {
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil { // dirty pages stay
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
