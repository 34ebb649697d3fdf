package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/hvsim"
	"holdfast/internal/vhdx"
)

// imageVM is a VM of --vm.
type imageVM struct {
	spec   hvsim.VMSpec
	host   string
	images []string
}

// parseVM reads the words of --vm.
func parseVM(text string, hosts int) (imageVM, error) {
	v := imageVM{host: hostName(0), spec: hvsim.VMSpec{Generation: 1, CPUs: 1, MemoryMB: 512}}
	seen := map[string]bool{}
	number := func(value string, low, high int64) (int64, error) {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("it must be a number from %d to %d", low, high)
		}
		return n, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(part, "=")
		var n int64
		var err error
		switch {
		case !ok || value == "":
			err = errors.New("it must be WORD=VALUE (files can't have a comma in their names)")
		case seen[key] && key != "disk":
			err = errors.New("it was said before")
		case key == "name":
			v.spec.Name = value
			if strings.ContainsAny(value, `<>:"/\|?*`) || strings.Trim(value, ". ") != value {
				err = errors.New(`the name is used for a directory of Windows: none of <>:"/\|?*, no dot or blank at its ends`)
			}
		case key == "host":
			err = fmt.Errorf("the hosts are %s to %s", hostName(0), hostName(hosts-1))
			for i := range hosts {
				if strings.EqualFold(value, hostName(i)) {
					v.host, err = value, nil
				}
			}
		case key == "gen":
			n, err = number(value, 1, 2)
			v.spec.Generation = int(n)
		case key == "cpus":
			n, err = number(value, 1, 64)
			v.spec.CPUs = int(n)
		case key == "memory":
			v.spec.MemoryMB, err = number(value, 32, 1<<20)
		case key == "os":
			v.spec.OS = value
		case key == "disk":
			v.images = append(v.images, value)
		default:
			err = errors.New("the words are name, host, gen, cpus, memory, os and disk")
		}
		if err != nil {
			return v, fmt.Errorf("%q: %w", part, err)
		}
		seen[key] = true
	}
	if v.spec.Name == "" || len(v.images) == 0 || len(v.images) > 64 {
		return v, errors.New("it needs a name and 1 to 64 disks")
	}
	return v, nil
}

// bring makes the VM of copies of its images, or starts it again if an earlier run made it.
func (v imageVM) bring(ctx context.Context, site *hvsim.Site, errOut io.Writer) error {
	if vm := find(site, v.spec.Name); vm != nil {
		return vm.Start(ctx)
	}
	h := site.Host(v.host)
	spec := v.spec
	spec.Dir = `C:\VMs\` + spec.Name
	spec.NICs = []hvsim.NICSpec{{Switch: "External", DHCP: true}}
	for _, image := range v.images { // all of them before anything is copied
		if err := judge(image); err != nil {
			return err
		}
	}
	for i, image := range v.images {
		path := fmt.Sprintf(`%s\disk%d.vhdx`, spec.Dir, i)
		if vm, _ := h.FindFile(path); vm != nil {
			return fmt.Errorf("%s of host %s is a disk of VM %s", path, v.host, vm.State().Name)
		}
		local, err := h.Local(path)
		if err == nil {
			err = copyImage(ctx, image, local, errOut)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", image, err)
		}
		d := hvsim.DiskSpec{Path: path, Controller: "SCSI"}
		if spec.Generation == 1 && i == 0 {
			d.Controller = "IDE"
		}
		spec.Disks = append(spec.Disks, d)
	}
	return add(ctx, h, spec)
}

// judge refuses images of formats that would be taken for raw ones.
func judge(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return fmt.Errorf("%s is no file, or is empty", image)
	}
	magic := make([]byte, 8)
	if n, err := f.ReadAt(magic, 0); n < len(magic) {
		return fmt.Errorf("%s has only %d bytes: %w", image, n, err)
	}
	for prefix, format := range map[string]string{"QFI\xfb": "qcow2", "KDMV": "VMDK", "conectix": "VHD"} {
		if strings.HasPrefix(string(magic), prefix) {
			return fmt.Errorf("%s is a %s image: qemu-img convert -O raw makes a raw one of it", image, format)
		}
	}
	return nil
}

// copyImage makes a dynamic VHDX of a raw image, or copies a VHDX.
func copyImage(ctx context.Context, from, to string, errOut io.Writer) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) { // of a run that was interrupted
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	var dst interface {
		io.WriterAt
		io.Closer
	}
	magic := make([]byte, 8)
	size := st.Size()
	if _, err := src.ReadAt(magic, 0); err == nil && string(magic) == "vhdxfile" {
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if dst = f; f.Truncate(size) != nil {
			return errors.Join(fmt.Errorf("%s can't have %d bytes", to, size), f.Close())
		}
	} else {
		size = (size + 4095) &^ 4095
		f, err := vhdx.Create(to, vhdx.CreateSpec{Size: size})
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
		if dst, err = vhdx.OpenChain(to, vhdx.ChainOptions{Write: true}); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, 1<<20)
	shown := time.Now()
	for off := int64(0); off < st.Size(); off += int64(len(buf)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(shown) > 2*time.Second {
			shown = time.Now()
			fmt.Fprintf(errOut, "hvsim: %d of %d MiB of %s copied\n", off>>20, st.Size()>>20, from)
		}
		n, err := src.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if p := buf[:n]; !zero(p) {
			clear(buf[n:])
			if _, err := dst.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
				return err
			}
		}
	}
	return nil
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
