package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/guest"
	"holdfast/internal/vhdx"
)

// secret reads the password, or makes one.
func secret(o options) (password string, made bool, err error) {
	if o.password == "" {
		b := make([]byte, 15)
		if _, err := rand.Read(b); err != nil {
			return "", false, err
		}
		return base32.StdEncoding.EncodeToString(b), true, nil
	}
	raw, err := os.ReadFile(o.password)
	if err != nil {
		return "", false, fmt.Errorf("read the password: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", false, fmt.Errorf("the password file %s is empty", o.password)
	}
	return line, false, nil
}

func openSite(ctx context.Context, o options, log *slog.Logger) (*hvsim.Site, error) {
	if o.hosts < 1 || o.hosts > 64 || o.vms < 0 || o.vms > 10000 {
		return nil, fmt.Errorf("%d hosts and %d VMs are not possible: 1 to 64 hosts, at most 10000 VMs", o.hosts, o.vms)
	}
	cfg := hvsim.Config{Dir: o.dir, Log: log, Seed: o.seed, JobTime: o.jobTime, MergeTime: o.mergeTime, Inline: o.inline}
	for i := range o.hosts {
		cfg.Hosts = append(cfg.Hosts, hvsim.HostConfig{Name: fmt.Sprintf("HV%d", i+1)})
	}
	if o.run {
		cfg.Runner = guest.New(guest.Config{Accel: o.accel, Log: log})
	}
	site, err := hvsim.New(cfg)
	if err != nil {
		return nil, err
	}
	if err := site.Open(ctx); err != nil {
		return nil, errors.Join(err, site.Close())
	}
	return site, nil
}

// fill makes the VMs that are not there yet.
func fill(ctx context.Context, o options, site *hvsim.Site) error {
	hosts := site.Hosts()
	for i := range o.vms {
		h := hosts[i%len(hosts)]
		name := fmt.Sprintf("vm-%04d", i+1)
		if h.VM(name) != nil {
			continue
		}
		spec := hvsim.VMSpec{Name: name, Generation: 1 + i%2, CPUs: 1 + i%4, MemoryMB: int64(1024 << (i % 4)), OS: "Windows Server 2022 Datacenter", OSVersion: "10.0.20348", FQDN: name + ".example.test",
			Disks: []hvsim.DiskSpec{{Name: "os", Size: 64 << 30}}, NICs: []hvsim.NICSpec{{Switch: "External", DHCP: true, IPs: []string{fmt.Sprintf("10.1.%d.%d", i/250, 2+i%250)}}}}
		if i%3 == 0 {
			spec.OS, spec.OSVersion = "Debian GNU/Linux", "12"
		}
		if i%4 == 0 {
			spec.Disks = append(spec.Disks, hvsim.DiskSpec{Name: "data", Size: 200 << 30})
		}
		if _, err := h.AddVM(ctx, spec); err != nil {
			return fmt.Errorf("make VM %s: %w", name, err)
		}
	}
	for _, text := range o.import_ {
		if err := importVM(ctx, site, text); err != nil {
			return err
		}
	}
	return nil
}

// importVM makes a VM of existing images, or starts it again if an earlier run made it.
func importVM(ctx context.Context, site *hvsim.Site, text string) error {
	spec := hvsim.VMSpec{Generation: 1, CPUs: 1, MemoryMB: 512}
	host := "HV1"
	var images []string
	for _, part := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		var err error
		switch key {
		case "name":
			spec.Name = value
		case "host":
			host = value
		case "gen":
			spec.Generation, err = strconv.Atoi(value)
		case "cpus":
			spec.CPUs, err = strconv.Atoi(value)
		case "memory":
			spec.MemoryMB, err = strconv.ParseInt(value, 10, 64)
		case "os":
			spec.OS = value
		case "disk":
			images = append(images, value)
		default:
			err = errors.New("there is no such word")
		}
		if err != nil {
			return fmt.Errorf("--vm %s: %s: %w", text, part, err)
		}
	}
	h := site.Host(host)
	if h == nil || spec.Name == "" || len(images) == 0 {
		return fmt.Errorf("--vm %s: it needs a name, a host of the site and at least one disk", text)
	}
	if vm := h.VM(spec.Name); vm != nil {
		return vm.Start(ctx)
	}
	spec.NICs = []hvsim.NICSpec{{Switch: "External", DHCP: true}}
	for i, image := range images {
		path := fmt.Sprintf(`C:\VMs\%s\disk%d.vhdx`, spec.Name, i)
		local, err := h.Local(path)
		if err == nil {
			err = copyImage(image, local)
		}
		if err != nil {
			return fmt.Errorf("--vm %s: %s: %w", spec.Name, image, err)
		}
		d := hvsim.DiskSpec{Path: path, Controller: "SCSI"}
		if spec.Generation == 1 && i == 0 {
			d.Controller = "IDE"
		}
		spec.Disks = append(spec.Disks, d)
	}
	if _, err := h.AddVM(ctx, spec); err != nil {
		return fmt.Errorf("make VM %s: %w", spec.Name, err)
	}
	return nil
}

// copyImage makes a dynamic VHDX of a raw image, or copies a VHDX.
func copyImage(from, to string) (err error) {
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
	magic := make([]byte, 8)
	if n, err := src.ReadAt(magic, 0); n == 8 && err == nil && string(magic) == "vhdxfile" {
		dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(dst, src)
		return errors.Join(err, dst.Close())
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	size := (st.Size() + 4095) &^ 4095
	f, err := vhdx.Create(to, vhdx.CreateSpec{Size: size})
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	c, err := vhdx.OpenChain(to, vhdx.ChainOptions{Write: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < st.Size(); off += int64(len(buf)) {
		n, err := src.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if p := buf[:n]; !zero(p) {
			clear(buf[n:])
			if _, err := c.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
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

// plan reads the plan of faults.
func plan(o options, site *hvsim.Site) error {
	if o.faults == "" {
		return nil
	}
	f, err := os.Open(o.faults)
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := hvsim.ReadFaults(f)
	if err != nil {
		return err
	}
	site.SetFaults(list...)
	return nil
}

// write lets VMs without guests change their disks.
func write(ctx context.Context, o options, site *hvsim.Site, log *slog.Logger) *sync.WaitGroup {
	var wg sync.WaitGroup
	if o.writeEvery <= 0 || o.run {
		return &wg
	}
	wg.Go(func() {
		tick := time.NewTicker(o.writeEvery)
		defer tick.Stop()
		writers := map[string]interface{ Step(n int) error }{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for _, h := range site.Hosts() {
				for i, vm := range h.VMs() {
					w := writers[vm.ID()]
					if w == nil {
						w = vm.Workload(o.seed + uint64(i))
						writers[vm.ID()] = w
					}
					if err := w.Step(1); err != nil && ctx.Err() == nil {
						log.Debug("a VM did not write", "vm", vm.ID(), "err", err)
					}
				}
			}
		}
	})
	return &wg
}
