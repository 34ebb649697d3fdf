package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/ledger/sessionvirt"
)

// demo is one performance.
type demo struct {
	bin    string
	sim    string // the hvsim binary
	hyperv string // which sites are simulated Hyper-V hosts: "", primary or both
	report string
	once   bool
	stage  bool   // only set the stage
	store  string // address of the vault's store; "" = a directory
	out    *screen

	dir    string
	cred   credentials
	vault  *process
	api    *armclient.Client
	sites  []*site
	guest  machine
	cloud  func(ctx context.Context, s *site) error // makes the recovery site, if that is no host
	item   string                                   // resource id
	watch  *watcher
	result result
}

const (
	vmName    = "ledger"
	policy    = "every-5-seconds"
	frequency = 5 // seconds
)

// play tells the story from an empty directory to the committed failover.
func (d *demo) play(ctx context.Context) error {
	var err error
	if d.dir, err = os.MkdirTemp("/tmp", "hf-demo-"); err != nil {
		return err
	}
	acts := []func(context.Context) error{d.build, d.bringUp, d.register}
	if d.stage {
		acts = append(acts, d.waitOnStage)
	} else {
		acts = append(acts, d.protect, d.replicate, d.drill, d.disaster, d.prove, d.commit)
	}
	for _, act := range acts {
		if err := act(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return errors.Join(err, d.writeReport())
		}
	}
	if err := d.finish(); err != nil || d.once {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// build makes the guest's image and both sites' libvirts.
func (d *demo) build(ctx context.Context) error {
	d.out.heading("Build a two-disk ledger VM and start two sites")
	cache, err := guestimage.DefaultCacheDir()
	if err != nil {
		return err
	}
	img, err := guestimage.Build(ctx, guestimage.Config{CacheDir: cache})
	if err != nil {
		return err
	}
	d.out.line("guest image: kernel %s", img.Kernel)
	for _, s := range []*site{{name: "primary", role: "source"}, {name: "recovery", role: "recovery"}} {
		d.sites = append(d.sites, s)
		switch {
		case d.cloud != nil && s.role == "recovery":
			err = d.cloud(ctx, s)
		case d.hyperv == "both" || d.hyperv == s.name:
			err = d.buildHyperV(ctx, s, img)
		default:
			err = d.buildKVM(ctx, s, img)
		}
		if err != nil {
			return fmt.Errorf("start site %s: %w", s.name, err)
		}
	}
	return nil
}

// buildKVM starts a libvirt session; at the primary site with the ledger VM.
func (d *demo) buildKVM(ctx context.Context, s *site, img guestimage.Image) (err error) {
	if s.virt, err = sessionvirt.Start(ctx, ""); err != nil {
		return err
	}
	s.on = kvm{s.virt}
	d.out.line("site %-9s libvirt session in %s", s.name, s.virt.Dir)
	if s.role == "source" {
		d.guest, err = sessionvirt.NewGuest(ctx, s.virt, img, vmName, sessionvirt.GuestConfig{KVM: sessionvirt.KVMUsable(ctx), Network: "user", Words: []string{"churn=10"}})
	}
	return err
}

// buildHyperV prepares a simulated Hyper-V host, which at the primary site is started with the ledger VM.
func (d *demo) buildHyperV(ctx context.Context, s *site, img guestimage.Image) error {
	h, err := newHyperV(d.sim, d.dir, s.name)
	if err != nil {
		return err
	}
	s.on = h
	d.out.line("site %-9s simulated Hyper-V host in %s", s.name, h.dir)
	if s.role == "source" {
		d.guest, err = newHVMachine(ctx, h, img)
		return err
	}
	return h.start(ctx)
}

// bringUp starts the vault and boots the VM at the primary site.
func (d *demo) bringUp(ctx context.Context) error {
	d.out.heading("Start the vault and the source VM")
	if err := d.startVault(ctx); err != nil {
		return err
	}
	d.out.line("portal: %s  user %s  password %s", d.cred.Portal, d.cred.User, d.cred.Password)
	began := time.Now()
	if err := d.guest.Start(ctx); err != nil {
		return err
	}
	d.watch = watchAcks(d.guest)
	d.out.line("VM %q runs and writes hash-chained records to both disks (booted in %.1f s)", vmName, time.Since(began).Seconds())
	return nil
}

// register makes both sites known and waits until the VM is discovered.
func (d *demo) register(ctx context.Context) error {
	d.out.heading("Register both sites with key files and discover")
	for _, s := range d.sites {
		op, err := d.api.CreateFabric(ctx, s.name, s.on.kind())
		if err != nil {
			return err
		}
		if err := op.Wait(ctx, nil, d.out.job); err != nil {
			return err
		}
		if err := d.startAgent(ctx, s); err != nil {
			return err
		}
		d.out.line("site %-9s host registered, agent runs (outbound HTTPS only)", s.name)
	}
	err := d.until(ctx, time.Minute, "the VM to be discovered", func() (bool, error) {
		for _, s := range d.sites {
			if err := s.agent.alive(); err != nil {
				return false, err
			}
		}
		_, err := d.protectable(ctx)
		if dr.KindOf(err) == dr.KindNotFound {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	vm, err := d.protectable(ctx)
	if err != nil {
		return err
	}
	d.out.line("discovered VM %q (%s)", vm.Properties.FriendlyName, vm.Name)
	return nil
}

// waitOnStage says where everything is and waits for the end.
func (d *demo) waitOnStage(ctx context.Context) error {
	d.out.line("STAGE endpoint=%s primary=primary recovery=recovery vm=%s", d.cred.Endpoint, vmName)
	<-ctx.Done()
	return ctx.Err()
}

func (d *demo) protectable(ctx context.Context) (armclient.ProtectableItem, error) {
	c, err := d.api.Container(ctx, "primary")
	if err != nil {
		return armclient.ProtectableItem{}, err
	}
	vms, err := d.api.ProtectableItems(ctx, c.ID)
	if err != nil {
		return armclient.ProtectableItem{}, err
	}
	for _, vm := range vms {
		if vm.Properties.FriendlyName == vmName {
			return vm, nil
		}
	}
	return armclient.ProtectableItem{}, dr.Errorf(dr.KindNotFound, "demo", "VM %q is not discovered yet", vmName)
}

// protect creates the policy, pairs the sites and replicates for the first time.
func (d *demo) protect(ctx context.Context) error {
	d.out.heading("Create a policy and enable protection while the guest writes")
	hours, interval := int32(24), int32(frequency)
	op, err := d.api.SavePolicy(ctx, policy, armwire.PolicySettings{InstanceType: "HyperVReplicaAzure", RecoveryPointHistoryDuration: &hours, ReplicationInterval: &interval})
	if err := d.follow(ctx, op, err); err != nil {
		return err
	}
	src, err := d.api.Container(ctx, "primary")
	if err != nil {
		return err
	}
	dst, err := d.api.Container(ctx, "recovery")
	if err != nil {
		return err
	}
	op, err = d.api.CreateMapping(ctx, src.ID, "primary-to-recovery", policy, dst.ID)
	if err := d.follow(ctx, op, err); err != nil {
		return err
	}
	vm, err := d.protectable(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	op, err = d.api.Items().Enable(ctx, src.ID, vm, policy, armwire.EnableDetails{InstanceType: "HyperVReplicaAzure", HVHostVMID: vm.Name, VMName: vmName})
	if err := d.follow(ctx, op, err); err != nil {
		return err
	}
	d.item = src.ID + "/replicationProtectedItems/" + vm.Name
	// Initial replication is a job of its own, as in the field: it goes on after
	// "enable" has ended.
	err = d.until(ctx, 5*time.Minute, "the initial replication", func() (bool, error) {
		jobs, err := d.api.Jobs().List(ctx, "")
		if err != nil {
			return false, err
		}
		for _, j := range jobs {
			if j.Properties.ScenarioName == "IrCompletion" {
				d.out.job(j.Properties)
				if j.Properties.State == "Failed" {
					return false, jobError(j.Properties)
				}
			}
		}
		it, err := d.api.Items().Get(ctx, d.item)
		return err == nil && it.Properties.ProtectionState == "Protected", err
	})
	if err != nil {
		return err
	}
	points, err := d.api.Items().Points(ctx, d.item)
	if err != nil || len(points) == 0 {
		return fmt.Errorf("the VM is protected and has no recovery point (%v)", err)
	}
	first := points[len(points)-1].Properties
	d.result.Initial = initialResult{Bytes: first.StoredBytes, Seconds: time.Since(began).Seconds()}
	d.result.initialDirty = first.DirtyBytes
	d.out.line("first recovery point: %s of disk stored as %s, compressed and encrypted", size(first.DirtyBytes), size(first.StoredBytes))
	return nil
}

func (d *demo) follow(ctx context.Context, op *armclient.Operation, err error) error {
	if err != nil {
		return err
	}
	return op.Wait(ctx, nil, d.out.job)
}

func jobError(j armwire.Job) error {
	var texts []string
	for _, e := range j.Errors {
		texts = append(texts, e.ServiceErrorDetails.Message)
	}
	return fmt.Errorf("job %s: %s", j.FriendlyName, strings.Join(texts, "; "))
}

// replicate watches some delta cycles arrive.
func (d *demo) replicate(ctx context.Context) error {
	d.out.heading("Delta replication every %d seconds", frequency)
	seen := map[string]bool{}
	points, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		return err
	}
	for _, p := range points {
		seen[p.Name] = true
	}
	const want = 3
	return d.until(ctx, 2*time.Minute, "delta cycles", func() (bool, error) {
		points, err := d.api.Items().Points(ctx, d.item)
		if err != nil {
			return false, err
		}
		for i := len(points) - 1; i >= 0; i-- {
			p := points[i]
			if seen[p.Name] {
				continue
			}
			seen[p.Name] = true
			c := cycle{Dirty: p.Properties.DirtyBytes, Shipped: p.Properties.StoredBytes, Seconds: time.Since(*p.Properties.RecoveryPointTime).Seconds()}
			d.result.Cycles = append(d.result.Cycles, c)
			d.out.line("%s  dirty %-10s shipped %-10s listed %.1f s after its instant", p.Name, size(c.Dirty), size(c.Shipped), c.Seconds)
		}
		acked, _ := d.watch.last()
		d.out.progress("guest has %d records acknowledged; next cycle …", acked)
		return len(d.result.Cycles) >= want, nil
	})
}

// drill is a test failover on an isolated network with proof and clean-up.
func (d *demo) drill(ctx context.Context) error {
	d.out.heading("Test failover on an isolated network")
	op, err := d.api.Items().TestFailover(ctx, d.item, "", "", false)
	if err := d.follow(ctx, op, err); err != nil {
		return err
	}
	if shot, err := d.api.Jobs().Screenshot(ctx, op.JobID); err == nil {
		path := filepath.Join(d.dir, "drill.png")
		if err := os.WriteFile(path, shot, 0o644); err != nil {
			return err
		}
		d.out.line("boot verified, console screenshot taken (%s, %s)", path, http.DetectContentType(shot))
	} else if dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	op, err = d.api.Items().CleanupTest(ctx, d.item, "the demo's drill was good")
	return d.follow(ctx, op, err)
}

// disaster kills the source VM and its agent and fails over to the latest point.
func (d *demo) disaster(ctx context.Context) error {
	// The drill took a while; a fresh cycle shows what the RPO is in practice.
	if err := d.oneMoreCycle(ctx); err != nil {
		return err
	}
	d.out.heading("Disaster: kill -9 the source VM and its agent")
	if err := d.guest.Kill(ctx); err != nil {
		return err
	}
	d.result.killed = time.Now()
	d.sites[0].agent.kill()
	acked, err := d.guest.Acked()
	if err != nil {
		return err
	}
	d.result.Ledger.LastAcked = acked
	d.watch.stop()
	d.out.line("the last record that the outside saw acknowledged is %d", acked)

	d.out.heading("Unplanned failover to the latest recovery point")
	began := time.Now()
	op, err := d.api.Items().UnplannedFailover(ctx, d.item, "", false)
	if err := d.follow(ctx, op, err); err != nil {
		return err
	}
	d.result.RTO = time.Since(began).Seconds()
	return nil
}

// oneMoreCycle waits for the next recovery point.
func (d *demo) oneMoreCycle(ctx context.Context) error {
	before, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		return err
	}
	return d.until(ctx, 3*time.Minute, "the next recovery point", func() (bool, error) {
		now, err := d.api.Items().Points(ctx, d.item)
		return err == nil && len(now) > 0 && now[0].Name != before[0].Name, err
	})
}

// prove reads what the recovered guest says about its own ledger.
func (d *demo) prove(ctx context.Context) error {
	d.out.heading("The guest's ledger proves what survived")
	item, err := d.api.Items().Get(ctx, d.item)
	if err != nil {
		return err
	}
	if item.Properties.FailoverRecoveryPointID == nil {
		return errors.New("the item names no recovery point after the failover")
	}
	var point *armclient.RecoveryPoint
	points, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		return err
	}
	for i := range points {
		if strings.EqualFold(points[i].ID, *item.Properties.FailoverRecoveryPointID) || points[i].Name == *item.Properties.FailoverRecoveryPointID {
			point = &points[i]
		}
	}
	if point == nil {
		return fmt.Errorf("recovery point %s is not listed", *item.Properties.FailoverRecoveryPointID)
	}
	at := *point.Properties.RecoveryPointTime
	d.result.RPO = d.result.killed.Sub(at).Seconds()
	console, err := d.recoveredConsole(ctx, item.Properties.RecoveryVM)
	if err != nil {
		return err
	}
	l := &d.result.Ledger
	l.Recovered, l.OrderOK, l.ChainOK = console.FoundA, console.Order, console.Chain
	// Complete: everything that was acknowledged before the instant of the point
	// is there, and nothing is there that was not written before the kill.
	must := d.watch.ackedAt(at)
	complete := l.Recovered >= must && l.Recovered <= l.LastAcked+2*ledger.AckEvery
	d.out.line("recovered %d records; %d were acknowledged at the point's instant, %d in the end", l.Recovered, must, l.LastAcked)
	d.out.line("order of writes across the disks: %s   hash chain: %s   complete: %s", verdict(l.OrderOK), verdict(l.ChainOK), verdict(complete))
	if !complete || !l.OrderOK || !l.ChainOK || must == 0 {
		return errors.New("the ledger proof did not hold")
	}
	d.result.OK = true
	return nil
}

func verdict(ok bool) string {
	if ok {
		return "ok"
	}
	return "BROKEN"
}

// recoveredConsole reads the recovery VM's serial console from the recovery
// host, as its operator would.
func (d *demo) recoveredConsole(ctx context.Context, vm string) (ledger.Console, error) {
	var c ledger.Console
	on := d.sites[1].on
	var path string
	err := d.until(ctx, 2*time.Minute, "the recovered guest's ledger", func() (_ bool, err error) {
		if path, err = on.serial(ctx, vm); err != nil {
			return false, err
		}
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		c, err = ledger.ReadConsole(f)
		return err == nil && c.Boots > 0 && c.BootAcked > c.FoundA, err
	})
	if err != nil {
		raw, _ := os.ReadFile(path)
		err = fmt.Errorf("%w; its console ends: %q", err, raw[max(0, len(raw)-1500):])
	}
	return c, err
}

// serialPath finds <serial type='file'><source path='…'/> in a domain's XML.
func serialPath(xml string) string {
	_, rest, ok := strings.Cut(xml, "<serial type='file'>")
	if !ok {
		return ""
	}
	_, rest, _ = strings.Cut(rest, "<source path='")
	path, _, _ := strings.Cut(rest, "'")
	return path
}

// commit makes the recovery VM the production VM.
func (d *demo) commit(ctx context.Context) error {
	d.out.heading("Commit")
	op, err := d.api.Items().Act(ctx, d.item, "failoverCommit")
	return d.follow(ctx, op, err)
}
