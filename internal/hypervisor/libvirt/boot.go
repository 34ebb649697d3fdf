package libvirt

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// isolatedName is the libvirt network behind hypervisor.IsolatedNetwork on
// privileged hosts: a bridge without address and forwarding.
const isolatedName = "holdfast-isolated"

// bootRecord remembers what Boot creates, before it creates it. Stored as
// boot/<digest of the name>/boot.json, version in the bytes.
type bootRecord struct {
	Version int      `json:"version"` // 1
	Name    string   `json:"name"`
	Owner   string   `json:"owner"`
	UUID    string   `json:"uuid"`
	Files   []string `json:"files"` // local images
}

const recordVersion = 1

func (h *Host) bootPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(h.cfg.Dir, bootDir, hex.EncodeToString(sum[:6]))
}

// Boot defines and starts a recovery VM.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	const op = "Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	unlock, err := h.lock(ctx, op, dr.VMID("name:"+spec.Name))
	if err != nil {
		return "", err
	}
	defer unlock()
	if id, found, err := h.bootedBefore(ctx, spec); err != nil || found {
		return id, err
	}
	plan, err := h.plan(ctx, spec)
	if err != nil {
		return "", err
	}
	root, err := plan.domainXML()
	if err != nil {
		return "", err
	}
	rec := bootRecord{Version: recordVersion, Name: spec.Name, Owner: spec.Owner, UUID: plan.uuid}
	for _, d := range spec.Disks {
		rec.Files = append(rec.Files, d.Path)
	}
	if err := h.bring(ctx, plan, root, rec); err != nil {
		// The caller's context may have ended; what was begun is taken back all the same.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.CallTimeout)
		defer cancel()
		if uerr := h.demolish(undo, rec); uerr != nil {
			h.log.Warn("what was created of a recovery VM is left over; the next Boot or Remove deletes it", "vm", spec.Name, "err", uerr)
		}
		return "", err
	}
	return dr.VMID(plan.uuid), nil
}

// bootedBefore finds the VM of an earlier call, starts it if that call died
// before it could, or clears the leftovers of a call that died earlier still.
func (h *Host) bootedBefore(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, bool, error) {
	const op = "Boot"
	var dom golibvirt.Domain
	err := h.call(ctx, op, "look up VM "+spec.Name, func(c *conn) (err error) {
		dom, err = c.DomainLookupByName(spec.Name)
		return err
	})
	switch {
	case err == nil:
		root, err := h.domainTree(ctx, op, dom, xmlInactive)
		if err != nil {
			return "", false, err
		}
		if ownerOf(root) != spec.Owner {
			return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the host has a VM named %s that does not belong to %s", spec.Name, spec.Owner).
				WithHint("choose another name for the recovery VM, or rename the VM %s on the host", spec.Name)
		}
		return vmID(dom.UUID), true, h.start(ctx, op, dom)
	case dr.CodeOf(err) != dr.CodeVMNotFound:
		return "", false, err
	}
	rec, err := readRecord(h.bootPath(spec.Name))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "read the record of recovery VM %s: %w", spec.Name, err)
	}
	if rec.Owner != spec.Owner || rec.Name != spec.Name {
		return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "leftovers of a recovery VM %s belong to %s", rec.Name, rec.Owner)
	}
	return "", false, h.demolish(ctx, rec)
}

// plan gathers what the domain's XML depends on.
func (h *Host) plan(ctx context.Context, spec hypervisor.BootSpec) (bootPlan, error) {
	const op = "Boot"
	p := bootPlan{spec: spec, uuid: newUUID(), dir: h.bootPath(spec.Name), accel: h.cfg.Accel, exists: fileExists}
	if spec.KeepUUID {
		u, err := parseUUID(string(spec.Config.VM.ID))
		if err != nil {
			return p, dr.Errorf(dr.KindInvalid, "libvirt."+op, "the captured UUID %q of VM %s is not one", spec.Config.VM.ID, spec.Name)
		}
		p.uuid = string(vmID(u))
		_, err = h.find(ctx, op, dr.VMID(p.uuid))
		if err == nil {
			return p, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the host has a VM with the UUID %s already", p.uuid).
				WithHint("the recovery VM takes over the identity of its source, so both can't be defined on one host: remove the source VM's definition, or choose another recovery host")
		}
		if dr.CodeOf(err) != dr.CodeVMNotFound {
			return p, err
		}
	}
	err := h.call(ctx, op, "read the capabilities of the host", func(c *conn) error {
		doc, err := c.ConnectGetCapabilities()
		if err != nil {
			return err
		}
		root, err := parseTree([]byte(doc))
		if err != nil {
			return err
		}
		v, err := c.ConnectGetLibVersion()
		if err != nil {
			return err
		}
		p.caps = readCapabilities(root)
		p.caps.nullNIC = v >= 8_007_000
		return nil
	})
	if err != nil {
		return p, err
	}
	_, err = exec.LookPath("swtpm")
	p.caps.swtpm = err == nil
	p.caps.privileged = h.cfg.URI == uriSystem
	p.netName, err = h.network(ctx, spec.Network)
	return p, err
}

// network resolves BootSpec.Network to the name of a network that is active.
func (h *Host) network(ctx context.Context, want string) (string, error) {
	const op = "Boot"
	session := h.cfg.URI == uriSession
	switch {
	case want == "", want == hypervisor.IsolatedNetwork && session, want == userNetwork && session:
		if want == userNetwork {
			return userNetwork, nil
		}
		return "", nil
	case session:
		return "", dr.New(dr.KindNotFound, dr.CodeNotFound, "libvirt."+op, "the host has no network %q: without privileges it has only %q", want, userNetwork)
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	if want == hypervisor.IsolatedNetwork {
		want = isolatedName
	}
	err := h.nets.do(ctx, func(c *conn) error {
		n, err := c.NetworkLookupByName(want)
		if isCode(err, golibvirt.ErrNoNetwork) && want == isolatedName {
			doc := el("network").with(el("name").withText(isolatedName), el("bridge", "name", "virbr-hf", "stp", "off", "delay", "0"))
			if _, cerr := c.NetworkCreateXML(doc.String()); cerr == nil {
				return nil
			}
			n, err = c.NetworkLookupByName(want) // made by another call meanwhile?
		}
		if err != nil {
			return err
		}
		on, err := c.NetworkIsActive(n)
		if err == nil && on == 0 {
			err = dr.Errorf(dr.KindPrecondition, "libvirt."+op, "network %s is not active", want).WithHint("start it with 'virsh net-start %s'", want)
		}
		return err
	})
	return want, wrap(op, "find network "+want, err)
}

// bring creates files, overlays and the domain, and starts it.
func (h *Host) bring(ctx context.Context, p bootPlan, root *node, rec bootRecord) error {
	const op = "Boot"
	for _, f := range rec.Files {
		if fileExists(f) {
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the local image %s exists and was not made for VM %s", f, p.spec.Name)
		}
	}
	if err := h.makeDir(p.dir); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "make the directory of VM %s: %w", p.spec.Name, err)
	}
	if err := writeRecord(p.dir, rec); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "record VM %s: %w", p.spec.Name, err)
	}
	if nv := p.spec.Config.Native[nativeNVRAM]; len(nv) > 0 && root.at("os", "loader") != nil {
		if err := os.WriteFile(filepath.Join(p.dir, "nvram.fd"), nv, 0o600); err != nil {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "write the firmware variables of VM %s: %w", p.spec.Name, err)
		}
	}
	for _, d := range p.spec.Disks {
		if err := h.makeOverlay(ctx, p.spec.Name, d); err != nil {
			return err
		}
	}
	dom, err := h.define(ctx, p.spec.Name, root)
	if err != nil {
		return err
	}
	err = h.start(ctx, op, dom)
	if isCode(err, golibvirt.ErrCPUIncompatible) {
		h.log.Warn("this host lacks features of the captured CPU; starting with its own model", "vm", p.spec.Name, "err", err)
		root.replace("cpu", el("cpu", "mode", "host-model"))
		if dom, err = h.define(ctx, p.spec.Name, root); err == nil {
			err = h.start(ctx, op, dom)
		}
	}
	return err
}

func (h *Host) define(ctx context.Context, name string, root *node) (golibvirt.Domain, error) {
	var dom golibvirt.Domain
	err := h.call(ctx, "Boot", "define VM "+name, func(c *conn) (err error) {
		dom, err = c.DomainDefineXML(root.String())
		return err
	})
	return dom, err
}

// makeOverlay creates a disk's local image on its recovery point, or an empty one without socket.
func (h *Host) makeOverlay(ctx context.Context, vm string, d hypervisor.BootDisk) error {
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o750); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Boot", "make the directory of disk %s of VM %s: %w", d.ID, vm, err)
	}
	args := []string{"create", "-q", "-f", "qcow2"}
	if d.Socket != "" {
		args = append(args, "-F", "raw", "-b", "nbd+unix:///"+url.PathEscape(d.Export)+"?socket="+escapeSocket(d.Socket))
	}
	if _, err := h.qemuImg(ctx, append(args, d.Path, strconv.FormatInt(d.Size, 10))...); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Boot", "create the local image of disk %s of VM %s: %w", d.ID, vm, err)
	}
	return nil
}

// escapeSocket escapes a path in a query, keeping its slashes readable.
func escapeSocket(path string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(path), "%2F", "/"), "+", "%20")
}

func writeRecord(dir string, rec bootRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "boot-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, "boot.json"))
	}
	return err
}

func readRecord(dir string) (bootRecord, error) {
	var rec bootRecord
	b, err := readLimited(filepath.Join(dir, "boot.json"), 1<<20)
	if errors.Is(err, os.ErrNotExist) {
		if _, derr := os.Stat(dir); derr == nil {
			// Died between making the directory and the record: nothing else exists.
			if rerr := os.RemoveAll(dir); rerr != nil {
				return rec, rerr
			}
		}
		return rec, err
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w", dir, err)
	}
	if rec.Version != recordVersion {
		return rec, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, "libvirt.Boot", "%s has version %d, known is %d", dir, rec.Version, recordVersion)
	}
	return rec, nil
}

// demolish removes a recovery VM and all its files. Idempotent.
func (h *Host) demolish(ctx context.Context, rec bootRecord) error {
	const op = "Remove"
	dom, err := h.find(ctx, op, dr.VMID(rec.UUID))
	switch {
	case err == nil:
		// The UUID may have come back as somebody else's VM: with KeepUUID it is the source's.
		root, err := h.domainTree(ctx, op, dom, xmlInactive)
		if err != nil {
			return err
		}
		if ownerOf(root) != rec.Owner {
			break
		}
		if err := h.destroy(ctx, op, dom); err != nil {
			return err
		}
		flags := golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineSnapshotsMetadata | golibvirt.DomainUndefineNvram | golibvirt.DomainUndefineCheckpointsMetadata
		err = h.call(ctx, op, "undefine VM "+rec.Name, func(c *conn) error { return c.DomainUndefineFlags(dom, flags) })
		if err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
			return err
		}
	case dr.CodeOf(err) != dr.CodeVMNotFound:
		return err
	}
	for _, f := range rec.Files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "delete a disk of VM %s: %w", rec.Name, err)
		}
	}
	if err := os.RemoveAll(h.bootPath(rec.Name)); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "delete the files of VM %s: %w", rec.Name, err)
	}
	return h.dropIsolated(ctx)
}

// dropIsolated removes the isolated network when no VM is on it any more.
func (h *Host) dropIsolated(ctx context.Context) error {
	if h.cfg.URI != uriSystem {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	err := h.nets.do(ctx, func(c *conn) error {
		n, err := c.NetworkLookupByName(isolatedName)
		if isCode(err, golibvirt.ErrNoNetwork) {
			return nil
		}
		if err != nil {
			return err
		}
		doc, err := c.NetworkGetXMLDesc(n, 0)
		if err != nil {
			return err
		}
		root, err := parseTree([]byte(doc))
		if err != nil {
			return err
		}
		if root.attr("connections") != "" && root.attr("connections") != "0" {
			return nil
		}
		return c.NetworkDestroy(n)
	})
	if isCode(err, golibvirt.ErrNoNetwork) {
		return nil
	}
	return wrap("Remove", "remove network "+isolatedName, err)
}

// Remove undoes Boot.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) error {
	const op = "Remove"
	rec, found, err := h.recordOf(id)
	if err != nil {
		return err
	}
	if !found {
		_, err := h.find(ctx, op, id)
		switch {
		case dr.CodeOf(err) == dr.CodeVMNotFound:
			return nil
		case err != nil:
			return err
		}
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "libvirt."+op, "VM %s was not made by this host's agent and is left alone", id)
	}
	if owner == "" || rec.Owner != owner {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "libvirt."+op, "VM %s belongs to %s, not to %s, and is left alone", rec.Name, rec.Owner, owner)
	}
	unlock, err := h.lock(ctx, op, dr.VMID("name:"+rec.Name))
	if err != nil {
		return err
	}
	defer unlock()
	return h.demolish(ctx, rec)
}

// recordOf finds the record of a recovery VM by its UUID.
func (h *Host) recordOf(id dr.VMID) (bootRecord, bool, error) {
	dirs, err := filepath.Glob(filepath.Join(h.cfg.Dir, bootDir, "*", "boot.json"))
	if err != nil {
		return bootRecord{}, false, dr.Errorf(dr.KindInternal, "libvirt.Remove", "look for records: %w", err)
	}
	for _, d := range dirs {
		rec, err := readRecord(filepath.Dir(d))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return rec, false, dr.Errorf(dr.KindUnavailable, "libvirt.Remove", "read the records of recovery VMs: %w", err)
		}
		if strings.EqualFold(rec.UUID, string(id)) {
			return rec, true, nil
		}
	}
	return bootRecord{}, false, nil
}

// MakeLocal pulls each disk's backing image into its local one.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	const op = "MakeLocal"
	dom, err := h.find(ctx, op, id)
	if err != nil {
		return err
	}
	root, err := h.domainTree(ctx, op, dom, 0)
	if err != nil {
		return err
	}
	vm := readDomain(root)
	sizes := make([]int64, len(vm.Disks))
	var done, total int64
	for i, d := range vm.Disks {
		if sizes[i], err = h.blockSize(ctx, op, dom, d.ID); err != nil {
			return err
		}
		total += sizes[i]
	}
	for i, d := range vm.Disks {
		report := func(share float64) {
			if progress != nil {
				progress(done+int64(share*float64(sizes[i])), total)
			}
		}
		if err := h.pull(ctx, dom, d.ID, report); err != nil {
			return err
		}
		done += sizes[i]
		report(0)
	}
	return nil
}

// pull makes one disk local. Clusters that are local already are skipped by QEMU.
func (h *Host) pull(ctx context.Context, dom golibvirt.Domain, disk string, report func(share float64)) error {
	const op = "MakeLocal"
	what := fmt.Sprintf("make disk %s of VM %s local", disk, dom.Name)
	const attempts = 2 // a job of an earlier process may fail just before this one looks
	for try := 0; ; try++ {
		root, err := h.domainTree(ctx, op, dom, 0)
		if err != nil {
			return err
		}
		if !hasBacking(root, disk) {
			return nil
		}
		if try >= attempts {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "%s: the copy ended before everything was local", what).
				WithHint("check that the recovery point's server runs; the copy goes on from where it is when it is started again")
		}
		err = h.call(ctx, op, what, func(c *conn) error {
			found, _, _, _, _, err := c.DomainGetBlockJobInfo(dom, disk, 0)
			if err != nil || found != 0 {
				return err // a job of an earlier call runs on
			}
			return c.DomainBlockPull(dom, disk, 0, 0)
		})
		if err != nil && !isCode(err, golibvirt.ErrBlockCopyActive) {
			return err
		}
		for {
			var found int32
			var cur, end uint64
			err := h.call(ctx, op, what, func(c *conn) (err error) {
				found, _, _, cur, end, err = c.DomainGetBlockJobInfo(dom, disk, 0)
				return err
			})
			if err != nil {
				return err
			}
			if found == 0 {
				break
			}
			if end > 0 {
				report(min(float64(cur)/float64(end), 1))
			}
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return wrap(op, what, err)
			}
		}
	}
}

// hasBacking reports whether a disk of a running domain still reads from another image.
func hasBacking(root *node, disk string) bool {
	for _, d := range root.at("devices").all("disk") {
		if d.at("target").attr("dev") == disk {
			return d.at("backingStore").attr("type") != ""
		}
	}
	return false
}

func newUUID() string {
	var u golibvirt.UUID
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return string(vmID(u))
}
