package libvirt

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// isolatedName is the libvirt network behind hypervisor.IsolatedNetwork on
// privileged hosts: a bridge without address and forwarding.
const isolatedName = "holdfast-isolated"

// machines makes and removes recovery VMs.
type machines struct {
	cfg  Config
	virt *virt.Client
}

func (m *machines) bootPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(m.cfg.Dir, bootDir, hex.EncodeToString(sum[:6]))
}

// Boot defines and starts a recovery VM.
func (m *machines) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	const op = "Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	unlock, err := m.virt.Lock(ctx, op, dr.VMID("name:"+spec.Name))
	if err != nil {
		return "", err
	}
	defer unlock()
	if id, found, err := m.bootedBefore(ctx, spec); err != nil || found {
		return id, err
	}
	plan, err := m.plan(ctx, spec)
	if err != nil {
		return "", err
	}
	root, err := plan.Domain()
	if err != nil {
		return "", err
	}
	rec := bootRecord{Version: recordVersion, Name: spec.Name, Owner: spec.Owner, UUID: plan.UUID}
	for _, d := range spec.Disks {
		if fileExists(d.Path) { // before anything is recorded as this VM's: undoing deletes what is recorded
			return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the local image %s exists and was not made for VM %s", d.Path, spec.Name)
		}
		rec.Files = append(rec.Files, d.Path)
	}
	if err := m.bring(ctx, plan, root, rec); err != nil {
		// The caller's context may have ended; what was begun is taken back all the same.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.CallTimeout)
		defer cancel()
		if uerr := m.demolish(undo, rec); uerr != nil {
			m.cfg.Log.Warn("what was created of a recovery VM is left over; the next Boot or Remove deletes it", "vm", spec.Name, "err", uerr)
		}
		return "", err
	}
	return dr.VMID(plan.UUID), nil
}

// bootedBefore finds the VM of an earlier call, starts it if that call died
// before it could, or clears the leftovers of a call that died earlier still.
func (m *machines) bootedBefore(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, bool, error) {
	const op = "Boot"
	rec, recErr := readRecord(m.bootPath(spec.Name))
	if recErr != nil && !errors.Is(recErr, os.ErrNotExist) {
		return "", false, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "read the record of recovery VM %s: %w", spec.Name, recErr)
	}
	if recErr == nil && (rec.Owner != spec.Owner || rec.Name != spec.Name) {
		return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "a recovery VM %s belongs to %s", rec.Name, rec.Owner)
	}
	var dom golibvirt.Domain
	err := m.virt.Call(ctx, op, "look up VM "+spec.Name, func(c *virt.Conn) (err error) {
		dom, err = c.DomainLookupByName(spec.Name)
		return err
	})
	switch {
	case dr.CodeOf(err) == dr.CodeVMNotFound && recErr != nil:
		return "", false, nil
	case dr.CodeOf(err) == dr.CodeVMNotFound:
		return "", false, m.demolish(ctx, rec)
	case err != nil:
		return "", false, err
	}
	root, err := m.virt.Tree(ctx, op, dom, virt.Defined)
	if err != nil {
		return "", false, err
	}
	if domxml.OwnerOf(root) != spec.Owner {
		return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the host has a VM named %s that does not belong to %s", spec.Name, spec.Owner).
			WithHint("choose another name for the recovery VM, or rename the VM %s on the host", spec.Name)
	}
	if recErr != nil || rec.UUID != string(virt.ID(dom.UUID)) {
		// Defined by a call that had been given up and undone before libvirt got to it: it has no disks.
		return "", false, m.demolish(ctx, bootRecord{Name: spec.Name, Owner: spec.Owner, UUID: string(virt.ID(dom.UUID))})
	}
	return virt.ID(dom.UUID), true, start(ctx, m.virt, op, dom)
}

// plan gathers what the domain's XML depends on.
func (m *machines) plan(ctx context.Context, spec hypervisor.BootSpec) (domxml.Plan, error) {
	const op = "Boot"
	p := domxml.Plan{Spec: spec, UUID: newUUID(), Dir: m.bootPath(spec.Name), Accel: m.cfg.Accel, Exists: fileExists}
	if spec.KeepUUID {
		u, err := virt.ParseUUID(string(spec.Config.VM.ID))
		if err != nil {
			return p, dr.Errorf(dr.KindInvalid, "libvirt."+op, "the captured UUID %q of VM %s is not one", spec.Config.VM.ID, spec.Name)
		}
		p.UUID = string(virt.ID(u))
		_, err = m.virt.Find(ctx, op, dr.VMID(p.UUID))
		if err == nil {
			return p, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "libvirt."+op, "the host has a VM with the UUID %s already", p.UUID).
				WithHint("the recovery VM takes over the identity of its source, so both can't be defined on one host: remove the source VM's definition, or choose another recovery host")
		}
		if dr.CodeOf(err) != dr.CodeVMNotFound {
			return p, err
		}
	}
	err := m.virt.Call(ctx, op, "read the capabilities of the host", func(c *virt.Conn) error {
		doc, err := c.ConnectGetCapabilities()
		if err != nil {
			return err
		}
		root, err := domxml.Parse([]byte(doc))
		if err != nil {
			return err
		}
		p.Caps = domxml.ReadCapabilities(root)
		return nil
	})
	if err != nil {
		return p, err
	}
	_, err = exec.LookPath("swtpm")
	p.Caps.SWTPM = err == nil
	p.Caps.Privileged = !m.virt.Session()
	if p.Network, err = m.network(ctx, spec.Network); err != nil {
		return p, err
	}
	p.Attach = map[string]string{}
	for _, a := range spec.Adapters {
		if p.Attach[a.Network], err = m.network(ctx, a.Network); err != nil {
			return p, err
		}
	}
	return p, nil
}

// network resolves BootSpec.Network to the name of a network that is active.
func (m *machines) network(ctx context.Context, want string) (string, error) {
	const op = "Boot"
	session := m.virt.Session()
	switch {
	case want == "", want == hypervisor.IsolatedNetwork && session, want == domxml.UserNetwork && session:
		if want == domxml.UserNetwork {
			return domxml.UserNetwork, nil
		}
		return "", nil
	case session:
		return "", dr.New(dr.KindNotFound, dr.CodeNotFound, "libvirt."+op, "the host has no network %q: without privileges it has only %q", want, domxml.UserNetwork)
	}
	if want == hypervisor.IsolatedNetwork {
		want = isolatedName
	}
	err := m.virt.CallNetworks(ctx, op, "find network "+want, func(c *virt.Conn) error {
		n, err := c.NetworkLookupByName(want)
		if virt.IsCode(err, golibvirt.ErrNoNetwork) && want == isolatedName {
			doc := domxml.El("network").With(domxml.El("name").WithText(isolatedName), domxml.El("bridge", "name", "virbr-hf", "stp", "off", "delay", "0"))
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
	return want, err
}

// bring creates files, overlays and the domain, and starts it.
func (m *machines) bring(ctx context.Context, p domxml.Plan, root *domxml.Node, rec bootRecord) error {
	const op = "Boot"
	if err := m.virt.MakeDir(p.Dir); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "make the directory of VM %s: %w", p.Spec.Name, err)
	}
	if err := writeRecord(p.Dir, rec); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "record VM %s: %w", p.Spec.Name, err)
	}
	nv := p.Spec.Config.Native[domxml.NativeNVRAM]
	switch {
	case len(nv) == 0:
	case root.At("os", "loader") == nil:
		m.cfg.Log.Warn("the captured firmware is not on this host; the recovery VM starts with default firmware variables", "vm", p.Spec.Name)
	default:
		if err := os.WriteFile(p.NVRAMPath(), nv, 0o600); err != nil {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "write the firmware variables of VM %s: %w", p.Spec.Name, err)
		}
	}
	for _, d := range p.Spec.Disks {
		if err := m.makeOverlay(ctx, p.Spec.Name, d); err != nil {
			return err
		}
	}
	dom, err := m.define(ctx, p.Spec.Name, root)
	if err != nil {
		return err
	}
	err = start(ctx, m.virt, op, dom)
	if virt.IsCode(err, golibvirt.ErrCPUIncompatible) {
		m.cfg.Log.Warn("this host lacks features of the captured CPU; starting with its own model", "vm", p.Spec.Name, "err", err)
		root.Replace("cpu", domxml.El("cpu", "mode", "host-model"))
		if dom, err = m.define(ctx, p.Spec.Name, root); err == nil {
			err = start(ctx, m.virt, op, dom)
		}
	}
	return err
}

func (m *machines) define(ctx context.Context, name string, root *domxml.Node) (golibvirt.Domain, error) {
	var dom golibvirt.Domain
	err := m.virt.Call(ctx, "Boot", "define VM "+name, func(c *virt.Conn) (err error) {
		dom, err = c.DomainDefineXML(root.String())
		return err
	})
	return dom, err
}

// makeOverlay creates a disk's local image on its recovery point, or an empty one without socket.
func (m *machines) makeOverlay(ctx context.Context, vm string, d hypervisor.BootDisk) error {
	dir := filepath.Dir(d.Path)
	err := os.MkdirAll(filepath.Dir(dir), 0o755)
	if err == nil && !fileExists(dir) {
		err = m.virt.MakeDir(dir) // QEMU has to get into it
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Boot", "make the directory of disk %s of VM %s: %w", d.ID, vm, err)
	}
	args := []string{"create", "-q", "-f", "qcow2"}
	if d.Socket != "" {
		args = append(args, "-F", "raw", "-b", "nbd+unix:///"+url.PathEscape(d.Export)+"?socket="+escapeSocket(d.Socket))
	}
	if _, err := m.virt.QEMUImg(ctx, append(args, d.Path, strconv.FormatInt(d.Size, 10))...); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Boot", "create the local image of disk %s of VM %s: %w", d.ID, vm, err)
	}
	return nil
}

// escapeSocket escapes a path in a query, keeping its slashes readable.
func escapeSocket(path string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(path), "%2F", "/"), "+", "%20")
}

// demolish removes a recovery VM and all its files. Idempotent.
func (m *machines) demolish(ctx context.Context, rec bootRecord) error {
	const op = "Remove"
	dom, err := m.virt.Find(ctx, op, dr.VMID(rec.UUID))
	switch {
	case err == nil:
		// The UUID may have come back as somebody else's VM: with KeepUUID it is the source's.
		root, err := m.virt.Tree(ctx, op, dom, virt.Defined)
		if err != nil {
			return err
		}
		if domxml.OwnerOf(root) != rec.Owner {
			break
		}
		if err := destroy(ctx, m.virt, op, dom); err != nil {
			return err
		}
		flags := golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineSnapshotsMetadata | golibvirt.DomainUndefineNvram | golibvirt.DomainUndefineCheckpointsMetadata
		err = m.virt.Call(ctx, op, "undefine VM "+rec.Name, func(c *virt.Conn) error { return c.DomainUndefineFlags(dom, flags) })
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
	if err := os.RemoveAll(m.bootPath(rec.Name)); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "delete the files of VM %s: %w", rec.Name, err)
	}
	return m.dropIsolated(ctx)
}

// dropIsolated removes the isolated network when no VM is on it any more.
func (m *machines) dropIsolated(ctx context.Context) error {
	if m.virt.Session() {
		return nil
	}
	err := m.virt.CallNetworks(ctx, "Remove", "remove network "+isolatedName, func(c *virt.Conn) error {
		n, err := c.NetworkLookupByName(isolatedName)
		if virt.IsCode(err, golibvirt.ErrNoNetwork) {
			return nil
		}
		if err != nil {
			return err
		}
		doc, err := c.NetworkGetXMLDesc(n, 0)
		if err != nil {
			return err
		}
		root, err := domxml.Parse([]byte(doc))
		if err != nil {
			return err
		}
		if root.Get("connections") != "" && root.Get("connections") != "0" {
			return nil
		}
		return c.NetworkDestroy(n)
	})
	if virt.IsCode(err, golibvirt.ErrNoNetwork) {
		return nil
	}
	return err
}

// Remove undoes Boot.
func (m *machines) Remove(ctx context.Context, id dr.VMID, owner string) error {
	const op = "Remove"
	rec, found, err := m.recordOf(func(rec bootRecord) bool {
		if id == "" {
			return rec.Owner == owner
		}
		return strings.EqualFold(rec.UUID, string(id))
	})
	if err != nil {
		return err
	}
	if !found && id == "" {
		return nil // Boot records before it makes anything
	}
	if !found {
		dom, err := m.virt.Find(ctx, op, id)
		if dr.CodeOf(err) == dr.CodeVMNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		root, err := m.virt.Tree(ctx, op, dom, virt.Defined)
		if err != nil {
			return err
		}
		rec = bootRecord{Name: dom.Name, Owner: domxml.OwnerOf(root), UUID: string(id)}
		if rec.Owner == "" {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "libvirt."+op, "VM %s was not made as a recovery VM and is left alone", dom.Name)
		}
	}
	if owner == "" || rec.Owner != owner {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "libvirt."+op, "VM %s belongs to %s, not to %s, and is left alone", rec.Name, rec.Owner, owner)
	}
	unlock, err := m.virt.Lock(ctx, op, dr.VMID("name:"+rec.Name))
	if err != nil {
		return err
	}
	defer unlock()
	return m.demolish(ctx, rec)
}

func newUUID() string {
	var u golibvirt.UUID
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return string(virt.ID(u))
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
