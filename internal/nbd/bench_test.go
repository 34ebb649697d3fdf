//go:build unix

package nbd

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fullDevice is all data, so that no read is answered with a hole.
func fullDevice(size int64) *memDevice {
	d := newMemDevice(size)
	for i := range d.data {
		d.data[i] = byte(i>>12) | 1
	}
	for i := range d.present {
		d.present[i] = true
	}
	return d
}

// oneExtent answers Extents as cheaply as a device can.
type oneExtent struct{ *memDevice }

func (d oneExtent) Extents(_ context.Context, off, length int64) ([]AllocationExtent, error) {
	return []AllocationExtent{{Off: off, Len: length}}, nil
}

func benchRead(b *testing.B, c *Client, size, depth int) {
	b.SetBytes(int64(size))
	b.ReportAllocs()
	ctx := context.Background()
	lat := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	span := c.Size() / int64(size)
	b.ResetTimer()
	for range depth {
		wg.Go(func() {
			p := make([]byte, size)
			for {
				i := next.Add(1) - 1
				if i >= int64(b.N) {
					return
				}
				begin := time.Now()
				if err := c.ReadAt(ctx, p, i%span*int64(size)); err != nil {
					b.Error(err)
					return
				}
				lat[i] = time.Since(begin)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(lat)
	b.ReportMetric(float64(lat[len(lat)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(lat[len(lat)*99/100].Nanoseconds())/1e3, "p99-µs")
}

// BenchmarkRead: our client on our server, and on others in the same run.
func BenchmarkRead(b *testing.B) {
	const size = 256 << 20
	ours := serveDevices(b, ExportMap{"": oneExtent{fullDevice(size)}}).sock
	dir := socketDir(b)
	kit := filepath.Join(dir, "kit")
	spawn(b, kit, "nbdkit", "-f", "-U", kit, "pattern", "256M")
	for _, srv := range []struct{ name, sock string }{{"holdfast", ours}, {"nbdkit-pattern", kit}} {
		for _, k := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 8}, {64 << 10, 1}, {256 << 10, 1}, {256 << 10, 8}, {1 << 20, 4}} {
			b.Run(fmt.Sprintf("%s/%dKiB/depth%d", srv.name, k.size>>10, k.depth), func(b *testing.B) {
				benchRead(b, dialUnix(b, srv.sock, ""), k.size, k.depth)
			})
		}
	}
}

// BenchmarkNbdcopy: a foreign client reads all of our server, and of qemu-nbd.
func BenchmarkNbdcopy(b *testing.B) {
	const size = 512 << 20
	dev := fullDevice(size)
	srv := serveDevices(b, ExportMap{"": readOnly{oneExtent{dev}}})
	dir := socketDir(b)
	kit := filepath.Join(dir, "kit")
	spawn(b, kit, "nbdkit", "-f", "-U", kit, "pattern", "512M")
	for _, s := range []struct{ name, uri string }{{"holdfast", srv.uri("")}, {"nbdkit-pattern", "nbd+unix:///?socket=" + kit}} {
		b.Run(s.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				run(b, "nbdcopy", s.uri, "null:")
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	c := serveDevices(b, ExportMap{"": fullDevice(64 << 20)}).dial(b, "")
	for _, size := range []int{4 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			p := make([]byte, size)
			for i := range b.N {
				if err := c.WriteAt(context.Background(), p, int64(i*size)%(64<<20)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
