package store

import (
	"container/list"
	"context"
	"sync"
)

// cacheKey names a decoded frame or a stored chunk of one object of a view.
type cacheKey struct {
	seg   int32
	index uint32
}

// cache is a size-bounded LRU of byte slices whose misses are filled once,
// however many callers ask at the same time. Values are never changed after
// they are in the cache, so readers share them.
type cache struct {
	limit int64

	mu      sync.Mutex
	used    int64
	entries map[cacheKey]*list.Element
	order   list.List // front = newest
	filling map[cacheKey]*fill
}

type entry struct {
	key  cacheKey
	data []byte
}

type fill struct {
	done chan struct{}
	data []byte
	err  error
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, entries: map[cacheKey]*list.Element{}, filling: map[cacheKey]*fill{}}
}

// get returns the value, filling it by load if needed. A failed load is not
// remembered, and each waiter whose own context still lives tries again when
// the one that loaded was cancelled.
func (c *cache) get(ctx context.Context, key cacheKey, load func(context.Context) ([]byte, error)) ([]byte, error) {
	for {
		c.mu.Lock()
		if e, ok := c.entries[key]; ok {
			c.order.MoveToFront(e)
			data := e.Value.(*entry).data
			c.mu.Unlock()
			return data, nil
		}
		f, busy := c.filling[key]
		if !busy {
			f = &fill{done: make(chan struct{})}
			c.filling[key] = f
		}
		c.mu.Unlock()
		if !busy {
			f.data, f.err = load(ctx)
			c.finish(key, f)
			return f.data, f.err
		}
		select {
		case <-f.done:
			if f.err == nil {
				return f.data, nil
			}
			if ctx.Err() != nil || !isContextError(f.err) {
				return nil, f.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// has reports whether the value is there or on its way.
func (c *cache) has(key cacheKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, there := c.entries[key]
	_, busy := c.filling[key]
	return there || busy
}

func (c *cache) finish(key cacheKey, f *fill) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.filling, key)
	if f.err == nil {
		c.entries[key] = c.order.PushFront(&entry{key, f.data})
		c.used += int64(cap(f.data))
		for c.used > c.limit && c.order.Len() > 1 {
			old := c.order.Remove(c.order.Back()).(*entry)
			delete(c.entries, old.key)
			c.used -= int64(cap(old.data))
		}
	}
	close(f.done)
}
