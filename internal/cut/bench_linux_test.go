package cut_test

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"holdfast/internal/cut"
)

// realData is a sample of the files under /usr/lib: of every 4 MiB the first
// MiB, each file padded to whole units as a file system does it.
var realData = sync.OnceValue(func() []byte {
	const want, every = 256 << 20, 4 << 20
	data := make([]byte, 0, want+every)
	seen := 0
	_ = filepath.WalkDir("/usr/lib", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || len(data) >= want {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		if pad := (cut.Unit - len(b)%cut.Unit) % cut.Unit; pad != 0 {
			b = append(b, make([]byte, pad)...)
		}
		for ; len(b) > 0; seen += cut.Unit {
			if seen%every < 1<<20 {
				data = append(data, b[:cut.Unit]...)
			}
			b = b[cut.Unit:]
		}
		return nil
	})
	return data[:min(len(data), want)]
})

// BenchmarkCodec is what the codecs alone cost on the same data: the part of BenchmarkIngest that is not ours.
func BenchmarkCodec(b *testing.B) {
	data := realData()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(cut.Block))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	start := cpuSeconds()
	var dst []byte
	for b.Loop() {
		for off := 0; off+cut.Block <= len(data); off += cut.Block {
			dst = enc.EncodeAll(data[off:off+cut.Block], dst[:0])
		}
	}
	perGiB(b, start, int64(len(data))*int64(b.N))
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func perGiB(b *testing.B, start float64, bytes int64) {
	b.ReportMetric((cpuSeconds()-start)/(float64(bytes)/(1<<30)), "cpu-s/GiB")
}

// BenchmarkIngest seals real data as tile images, the initial replication's work.
func BenchmarkIngest(b *testing.B) {
	data := realData()
	if len(data) < cut.TileSize {
		b.Fatalf("only %d bytes of real data found", len(data))
	}
	for _, codec := range []cut.Codec{cut.CodecZstd, cut.CodecMinLZ, cut.CodecNone} {
		b.Run(codec.String(), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var stored int64
			start := cpuSeconds()
			for b.Loop() {
				stored = 0
				for off := 0; off < len(data); off += cut.TileSize {
					cfg := tileConfig(0, uint32(off/cut.TileSize))
					cfg.Codec = codec
					w, err := cut.NewWriter(io.Discard, cfg)
					if err != nil {
						b.Fatal(err)
					}
					for in := off; in < min(len(data), off+cut.TileSize); in += 1 << 20 {
						if err := w.Data(ctx, 0, int64(in), data[in:min(len(data), in+1<<20)]); err != nil {
							b.Fatal(err)
						}
					}
					s, err := w.Close(nil)
					if err != nil {
						b.Fatal(err)
					}
					stored += s.Size
				}
			}
			perGiB(b, start, int64(len(data))*int64(b.N))
			b.ReportMetric(float64(stored)/float64(len(data)), "ratio")
		})
	}
}

// BenchmarkScatteredCut seals 4096 random blocks of 4 KiB of noise.
func BenchmarkScatteredCut(b *testing.B) {
	noise := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	units := rand.New(rand.NewPCG(1, 2)).Perm(1 << 20)[:4096]
	b.SetBytes(int64(len(noise)))
	start := cpuSeconds()
	for b.Loop() {
		w, err := cut.NewWriter(io.Discard, cutConfig())
		if err != nil {
			b.Fatal(err)
		}
		for i, u := range units {
			if err := w.Data(ctx, 0, int64(u)*cut.Unit, noise[i*cut.Unit:][:cut.Unit]); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Close(testCommit(cut.Disk{ID: "vda", Size: 4 << 30})); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
}

// BenchmarkDecode decodes the frames of a tile image of real data.
func BenchmarkDecode(b *testing.B) {
	data := realData()[:cut.TileSize]
	for _, codec := range []cut.Codec{cut.CodecZstd, cut.CodecMinLZ, cut.CodecNone} {
		b.Run(codec.String(), func(b *testing.B) {
			cfg := tileConfig(0, 0)
			cfg.Codec = codec
			obj, sealed := build(b, cfg, nil, func(w *cut.Writer) error { return w.Data(ctx, 0, 0, data) })
			s := open(b, obj, sealed.Name)
			b.SetBytes(sealed.DataBytes)
			start := cpuSeconds()
			var dst []byte
			for b.Loop() {
				for i, f := range s.Frames() {
					var err error
					if dst, err = s.DecodeFrame(i, obj[f.Off:f.Off+int64(f.CLen)], dst); err != nil {
						b.Fatal(err)
					}
				}
			}
			perGiB(b, start, sealed.DataBytes*int64(b.N))
		})
	}
}

// BenchmarkOpen opens a cut of 50,000 extents and a tile image.
func BenchmarkOpen(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	cfg := cutConfig()
	obj, sealed := build(b, cfg, testCommit(cut.Disk{ID: "vda", Size: 1 << 40}), func(w *cut.Writer) error {
		for off := int64(0); w.Extents() < 50_000; off += int64(1+r.IntN(1000)) * cut.Unit {
			p := []byte{1, byte(off >> 12), byte(off >> 20)}
			if err := w.Data(ctx, 0, off, append(p, make([]byte, cut.Unit-3)...)); err != nil {
				return err
			}
		}
		return nil
	})
	tile, tsealed := build(b, tileConfig(0, 0), nil, func(w *cut.Writer) error { return w.Data(ctx, 0, 0, realData()[:cut.TileSize]) })
	b.Run("cut50k", func(b *testing.B) {
		for b.Loop() {
			if _, err := cut.Open(ctx, cut.Bytes(obj), sealed.Name, testKeys()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tile", func(b *testing.B) {
		for b.Loop() {
			if _, err := cut.Open(ctx, cut.Bytes(tile), tsealed.Name, testKeys()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDigest is the resynchronization's scan of memory.
func BenchmarkDigest(b *testing.B) {
	data := realData()[:cut.TileSize]
	obj, sealed := build(b, tileConfig(0, 0), nil, nil)
	d := open(b, obj, sealed.Name).DigestKey().NewDigester()
	b.SetBytes(int64(len(data)))
	start := cpuSeconds()
	for b.Loop() {
		for off := 0; off < len(data); off += cut.Block {
			d.Sum(data[off : off+cut.Block])
		}
	}
	perGiB(b, start, int64(len(data))*int64(b.N))
}
