package vhdx

import (
	"context"
)

const mergeBuffer = 4 * mib

// Merge writes what a differencing file holds into its direct parent. The child is
// left for the caller to delete. It must not be open for writing elsewhere.
//
// After a crash or an error in between the chain through the child reads as before and
// Merge can be called again; a merge that had finished is not repeated. While it runs,
// the parent has a new DataWriteGuid that the child knows as Linkage2 ([MS-VHDX]
// 2.6.2.6.3, note 12), so nobody else takes the parent for what it was. At the end
// the parent takes the child's DataWriteGuid: files on top of the child fit the parent
// afterwards and only need Reparent. Other children of the parent are lost by a merge.
// progress, which may be nil, is told bytes of the disk.
func Merge(ctx context.Context, child, parent string, progress func(done, total int64)) error {
	c, err := Open(child, OpenOptions{Write: true})
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := Open(parent, OpenOptions{Write: true})
	if err != nil {
		return err
	}
	err = merge(ctx, c, p, progress)
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	return err
}

func merge(ctx context.Context, c, p *File, progress func(done, total int64)) error {
	if !c.meta.hasParent {
		return inFile(c.path, failure("metadata", -1, ErrUnsupported, "the file has no parent to be merged into"))
	}
	if p.hdr.dataWrite == c.hdr.dataWrite {
		return nil // an earlier merge came to its end
	}
	if err := c.fits(p); err != nil {
		return inFile(c.path, err)
	}
	if err := announce(c, p); err != nil {
		return err
	}
	if c.meta.size > p.meta.size {
		if err := p.Resize(c.meta.size); err != nil {
			return err
		}
	}
	into := &Chain{files: []*File{p}}
	buf := make([]byte, min(mergeBuffer, c.meta.blockSize))
	blocks := c.meta.blocks()
	for block := range blocks {
		if err := ctx.Err(); err != nil {
			return inFile(c.path, err)
		}
		if err := mergeBlock(c, into, block, buf); err != nil {
			return err
		}
		if progress != nil {
			progress(min((block+1)*c.meta.blockSize, c.meta.size), c.meta.size)
		}
	}
	if err := p.Flush(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.settle(); err != nil {
		return inFile(p.path, err)
	}
	p.hdr.dataWrite = c.hdr.dataWrite
	return inFile(p.path, p.putHeader())
}

// announce gives the parent a new DataWriteGuid after telling the child.
func announce(c, p *File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keepGUID = true
	l := c.meta.parent
	if p.hdr.dataWrite == l.Linkage2 {
		return nil // a merge that was cut off goes on
	}
	if l.Linkage2.IsZero() {
		l.Linkage2 = NewGUID()
		if err := c.setLocator(l); err != nil {
			return inFile(c.path, err)
		}
	}
	p.hdr.dataWrite = l.Linkage2
	return inFile(p.path, p.putHeader())
}

// mergeBlock writes one block's own parts. They are whole sectors, so that the
// parent never has to look at its own parents.
func mergeBlock(c *File, into *Chain, block int64, buf []byte) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	base := block * c.meta.blockSize
	to := min(c.meta.blockSize, c.meta.size-base)
	err := c.runs(block, 0, to, func(r run) error {
		switch r.src {
		case fromParent:
			return nil
		case zeros:
			return into.Zero(base+r.from, r.to-r.from)
		}
		for r.from < r.to {
			part := buf[:min(int64(len(buf)), r.to-r.from)]
			if err := c.s.ReadAt(part, r.off); err != nil {
				return err
			}
			if _, err := into.WriteAt(part, base+r.from); err != nil {
				return err
			}
			r.from, r.off = r.from+int64(len(part)), r.off+int64(len(part))
		}
		return nil
	})
	return inFile(c.path, err)
}
