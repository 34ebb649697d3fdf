package hosting

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"holdfast/cmd/holdfast/internal/console"
)

// DefaultState is where an agent keeps its state, unless told otherwise.
func DefaultState() string {
	if runtime.GOOS != "windows" {
		return "/var/lib/holdfast/agent"
	}
	data := os.Getenv("ProgramData")
	if data == "" {
		data = `C:\ProgramData`
	}
	return filepath.Join(data, "Holdfast", "agent")
}

// ProductDir is where the agent of a state directory keeps what it knows of the host's VMs, unless told otherwise.
func ProductDir(state, chosen string) (string, error) {
	if chosen == "" {
		chosen = state + ".vms"
	}
	dir, err := filepath.Abs(chosen)
	if err != nil {
		return "", console.Usage("--dir: %v", err)
	}
	return dir, nil
}

// Workshops are the directories below the agent's in which commands work beside it.
var Workshops = [...]string{"doctor", "plan"}

// Workshop makes the directory in which a command works beside the agent, which
// uses its own. It stays: the next run, and cleanup, find there what one that was killed had left on the host.
// Whoever may not write there gets a directory in the user's cache.
func Workshop(state, chosen, name string) (string, error) {
	dir, err := ProductDir(state, chosen)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, name)
	err = os.MkdirAll(dir, 0o755)
	if cache, cerr := os.UserCacheDir(); errors.Is(err, fs.ErrPermission) && chosen == "" && cerr == nil { // not root: the host is reached over the network
		dir = filepath.Join(cache, "holdfast", name)
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return "", console.ClassifyAs(err, "make the directory "+dir)
	}
	return dir, nil
}
