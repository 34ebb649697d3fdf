// Package image makes a disk as guests have them: an ext4 file system with the
// files of this machine. It promises the same disk for the same seed on the same machine, and needs no root.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
)

// unit is the file system's block.
const unit = 4 << 10

// Make makes a raw disk of the given size at path with the program mkfs (mkfs.ext4).
func Make(ctx context.Context, mkfs, path string, size int64, seed uint64) error {
	files := path + ".files"
	defer os.RemoveAll(files)
	if err := fillTree(files, size, seed); err != nil {
		return err
	}
	if err := rawhost.CreateSparse(path, size); err != nil {
		return err
	}
	_, err := meter.Command(ctx, mkfs, "-q", "-F", "-m", "0", "-J", "size=4", "-i", "8192", "-d", files, path)
	return err
}

// fillTree collects readable files of /usr below dir, in a random order that depends on the seed only, until
// they fill a file system of the given size to about 90 %. A machine with few
// files gets some of them twice: neither Holdfast nor its peers would notice.
func fillTree(dir string, size int64, seed uint64) error {
	type file struct {
		path string
		size int64
	}
	var all []file
	var total int64
	for _, root := range []string{"/usr/lib", "/usr/bin", "/usr/share"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // not for us
			}
			if d.Type().IsRegular() {
				if st, err := d.Info(); err == nil && st.Size() > 0 && st.Size() < size/8 {
					all = append(all, file{p, st.Size()})
					if total += st.Size(); total > 8*size {
						return fs.SkipAll // enough to choose from
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	bytes := size - size/10 - 8<<20
	inodes := size/8192 - size/8192/8 - 64
	for round := 0; len(all) > 0 && bytes > 0 && inodes > 0; round++ {
		before := bytes
		for i, f := range all {
			need := (f.size+unit-1)&^(unit-1) + 512 // its name
			if need > bytes || inodes <= 0 {
				continue
			}
			sub := filepath.Join(dir, fmt.Sprintf("%d-%d", round, i/256))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
			if err := copyFile(f.path, filepath.Join(sub, fmt.Sprintf("%d-%s", i%256, filepath.Base(f.path)))); err != nil {
				if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return err
			}
			bytes -= need
			inodes--
		}
		if before-bytes < size/100 {
			break // what is left is too small for any file
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
