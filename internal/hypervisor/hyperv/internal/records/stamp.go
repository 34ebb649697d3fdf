package records

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/dr"
)

// Stamp is whose a checkpoint or reference point is: its name on the host is
// TOKEN@HOST.DIRECTORY. With it several agents (or an agent and a doctor) with
// directories of their own leave each other's alone, while what came with a VM that
// was moved here from another host has no agent any more that could reach it.
type Stamp struct {
	Host string // digest of the host's name
	Dir  string // id of the product directory
}

// Prefix begins the names of everything that Holdfast makes on a host.
const Prefix = "hf-"

const stampDigits = 8

// StampOf is the stamp of a directory on the host with that name.
func StampOf(computer, dir string) Stamp {
	sum := sha256.Sum256([]byte(strings.ToLower(computer)))
	return Stamp{hex.EncodeToString(sum[:])[:stampDigits], dir}
}

// Name is what the token's checkpoint and reference point are called on the host.
func (s Stamp) Name(token string) string { return token + "@" + s.Host + "." + s.Dir }

// ParseName takes a name of Holdfast apart; ok is false for any other.
func ParseName(name string) (token string, s Stamp, ok bool) {
	token, rest, ok := strings.Cut(name, "@")
	host, dir, dot := strings.Cut(rest, ".")
	if !ok || !dot || !strings.HasPrefix(token, Prefix) || !digits(host) || !digits(dir) {
		return "", Stamp{}, false
	}
	return token, Stamp{host, dir}, true
}

func digits(s string) bool {
	return len(s) == stampDigits && strings.Trim(s, "0123456789abcdef") == ""
}

// Is reports whether a name is that of a token of this directory. A host that was renamed meanwhile does not matter.
func (s Stamp) Is(name, token string) bool {
	t, of, ok := ParseName(name)
	return ok && t == token && of.Dir == s.Dir
}

// Owned reports whether a name is this directory's, or that of an agent on another
// host, which can't reach the VM any more.
func (s Stamp) Owned(name string) bool {
	_, of, ok := ParseName(name)
	return ok && (of.Dir == s.Dir || of.Host != s.Host)
}

// dirRecord is the file owner.json.
type dirRecord struct {
	Version int    `json:"version"` // 1
	ID      string `json:"id"`
}

// Directory makes and locks the product directory and reads its id, which a new one gets.
func Directory(dir string) (id string, lock *os.File, err error) {
	const op = "hyperv.Open"
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", nil, dr.Errorf(dr.KindUnavailable, op, "prepare directory %s: %w", dir, err)
	}
	lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return "", nil, dr.Errorf(dr.KindUnavailable, op, "open the lock of directory %s: %w", dir, err)
	}
	if held, lerr := lockHeld(lock); held {
		err = dr.Errorf(dr.KindConflict, op, "another process works with directory %s", dir).WithHint("Stop it, for example the agent's service, or use another directory.")
	} else if lerr != nil {
		err = dr.Errorf(dr.KindUnavailable, op, "lock directory %s: %w", dir, lerr)
	} else if id, err = dirID(filepath.Join(dir, "owner.json")); err != nil {
		err = dr.Errorf(dr.KindUnavailable, op, "read the id of directory %s: %w", dir, err)
	}
	if err != nil {
		return "", nil, errors.Join(err, lock.Close())
	}
	return id, lock, nil
}

func dirID(path string) (string, error) {
	var r dirRecord
	err := Read(path, &r)
	if errors.Is(err, fs.ErrNotExist) {
		var b [stampDigits / 2]byte
		_, _ = rand.Read(b[:]) // never fails
		r = dirRecord{1, hex.EncodeToString(b[:])}
		return r.ID, Write(path, r)
	}
	if err == nil && (r.Version != 1 || !digits(r.ID)) {
		err = fmt.Errorf("%s has version %d and id %q", path, r.Version, r.ID)
	}
	return r.ID, err
}
