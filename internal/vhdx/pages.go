package vhdx

import (
	"slices"
	"sync"
)

// maxPages bounds the clean pages of one file's cache: 8 MiB.
const maxPages = 2048

// pageCache holds 4 KiB pages of BAT and sector bitmaps. Its own lock guards the
// maps; the bytes of a page are guarded by the file's lock. Changed pages stay
// until they were committed.
type pageCache struct {
	mu    sync.Mutex
	s     readerAt
	pages map[int64]*[pageSize]byte
	dirty map[int64]*[pageSize]byte
}

func (c *pageCache) init(s readerAt) {
	c.s = s
	c.pages, c.dirty = map[int64]*[pageSize]byte{}, map[int64]*[pageSize]byte{}
}

// get returns the page that holds the byte at off.
func (c *pageCache) get(off int64) (*[pageSize]byte, error) {
	at := off &^ (pageSize - 1)
	c.mu.Lock()
	p := c.dirty[at]
	if p == nil {
		p = c.pages[at]
	}
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p = new([pageSize]byte)
	if err := c.s.ReadAt(p[:], at); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if q := c.pages[at]; q != nil {
		return q, nil
	}
	for k := range c.pages { // any one will do
		if len(c.pages) < maxPages {
			break
		}
		delete(c.pages, k)
	}
	c.pages[at] = p
	return p, nil
}

// change returns the page to be changed. The file's lock must be held for writing.
func (c *pageCache) change(off int64) (*[pageSize]byte, error) {
	p, err := c.get(off)
	if err != nil {
		return nil, err
	}
	at := off &^ (pageSize - 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pages, at)
	c.dirty[at] = p
	return p, nil
}

// fresh is change for a page whose old content does not count: it is all zeros.
func (c *pageCache) fresh(off int64) *[pageSize]byte {
	p := new([pageSize]byte)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pages, off)
	c.dirty[off] = p
	return p
}

// changed lists the pages to be committed in the order of the file.
func (c *pageCache) changed() []update {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]update, 0, len(c.dirty))
	for off, p := range c.dirty {
		out = append(out, update{off: off, data: p[:]})
	}
	slices.SortFunc(out, func(a, b update) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	return out
}

// clean says that all changed pages were committed.
func (c *pageCache) clean() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for off, p := range c.dirty {
		if len(c.pages) < maxPages {
			c.pages[off] = p
		}
	}
	clear(c.dirty)
}

func (c *pageCache) changes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty)
}

// forget drops clean pages: the file was changed behind them.
func (c *pageCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.pages)
}
