package libvirt

import (
	"context"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// MakeLocal pulls each disk's backing image into its local one.
func (m *machines) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	const op = "MakeLocal"
	dom, err := m.virt.Find(ctx, op, id)
	if err != nil {
		return err
	}
	root, err := m.virt.Tree(ctx, op, dom, virt.Live)
	if err != nil {
		return err
	}
	vm := domxml.Read(root)
	sizes := make([]int64, len(vm.Disks))
	var done, total int64
	for i, d := range vm.Disks {
		if err := m.virt.Measure(ctx, op, dom, &d); err != nil {
			return err
		}
		sizes[i] = d.Size
		total += d.Size
	}
	for i, d := range vm.Disks {
		report := func(share float64) {
			if progress != nil {
				progress(done+int64(share*float64(sizes[i])), total)
			}
		}
		if err := m.pull(ctx, dom, d.ID, report); err != nil {
			return err
		}
		done += sizes[i]
		report(0)
	}
	return nil
}

// pull makes one disk local. Clusters that are local already are skipped by QEMU.
func (m *machines) pull(ctx context.Context, dom golibvirt.Domain, disk string, report func(share float64)) error {
	const op = "MakeLocal"
	what := fmt.Sprintf("make disk %s of VM %s local", disk, dom.Name)
	const attempts = 2 // a job of an earlier process may fail just before this one looks
	for try := 0; ; try++ {
		root, err := m.virt.Tree(ctx, op, dom, virt.Live)
		if err != nil {
			return err
		}
		if !domxml.HasBacking(root, disk) {
			return nil
		}
		if try >= attempts {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "%s: the copy ended before everything was local", what).
				WithHint("check that the recovery point's server runs; the copy goes on from where it is when it is started again")
		}
		err = m.virt.Call(ctx, op, what, func(c *virt.Conn) error {
			found, _, _, _, _, err := c.DomainGetBlockJobInfo(dom, disk, 0)
			if err != nil || found != 0 {
				return err // a job of an earlier call runs on
			}
			return c.DomainBlockPull(dom, disk, 0, 0)
		})
		if err != nil && !virt.IsCode(err, golibvirt.ErrBlockCopyActive) {
			return err
		}
		for {
			var found int32
			var cur, end uint64
			err := m.virt.Call(ctx, op, what, func(c *virt.Conn) (err error) {
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
			if err := virt.Sleep(ctx, 100*time.Millisecond); err != nil {
				return virt.Wrap(op, what, err)
			}
		}
	}
}
