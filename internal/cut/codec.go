package cut

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/minio/minlz"
)

// A section's plaintext (index, commit, digest table) is
//
//	raw length u32 | codec u8 | packed length u32 | packed bytes | zeros
//
// where the zeros make sure that the raw length never exceeds sectionRatio
// times the stored length plus sectionSlack. A reader that enforces this can't be made to allocate
// much more than what somebody really stored.
const (
	sectionFixed = 9
	sectionRatio = 16
	sectionSlack = 64 << 10
	sectionMax   = 256 << 20
)

// decoders is the one shared, stateless decoder: DecodeAll may be called
// concurrently and starts no goroutine. It is made at the first use, because a program that reads
// nothing should not pay for it.
var decoders = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(sectionMax), zstd.WithDecoderMaxWindow(sectionMax), zstd.WithDecodeAllCapLimit(true))
})

func newZstd(workers int) (*zstd.Encoder, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(1<<maxFrameLog2))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	return e, nil
}

// unpack decompresses src, which must yield exactly rawLen bytes, into dst's
// capacity if that is enough.
func unpack(codec Codec, src, dst []byte, rawLen int) ([]byte, error) {
	if cap(dst) < rawLen {
		dst = make([]byte, 0, rawLen)
	}
	dst = dst[:0:rawLen]
	var err error
	switch codec {
	case CodecNone:
		if len(src) == rawLen {
			dst = append(dst, src...)
		}
	case CodecZstd:
		var d *zstd.Decoder
		if d, err = decoders(); err == nil {
			dst, err = d.DecodeAll(src, dst)
		}
	case CodecMinLZ:
		var n int
		if n, err = minlz.DecodedLen(src); err == nil && n == rawLen {
			dst, err = minlz.Decode(dst[:rawLen], src)
		}
	default:
		err = fmt.Errorf("unknown %s", codec)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("decompress: %w", err)
	case len(dst) != rawLen:
		return nil, fmt.Errorf("decompress: the result is not the %d bytes that it should be", rawLen)
	}
	return dst, nil
}

// worthIt says whether compression saved enough to pay for decompression.
func worthIt(packed, raw int) bool { return packed < raw-raw/32 }

// packSection builds a section's plaintext. enc may be nil.
func packSection(raw []byte, enc *zstd.Encoder) ([]byte, error) {
	if len(raw) > sectionMax {
		return nil, fmt.Errorf("section has %d bytes, at most %d are allowed", len(raw), sectionMax)
	}
	codec, packed := CodecNone, raw
	if enc != nil {
		if p := enc.EncodeAll(raw, nil); worthIt(len(p), len(raw)) {
			codec, packed = CodecZstd, p
		}
	}
	pad := 0
	if short := (len(raw)-sectionSlack+sectionRatio-1)/sectionRatio - (sectionFixed + len(packed) + sealOverhead); len(raw) > sectionSlack && short > 0 {
		pad = short
	}
	b := make([]byte, sectionFixed, sectionFixed+len(packed)+pad)
	le.PutUint32(b, uint32(len(raw)))
	b[4] = byte(codec)
	le.PutUint32(b[5:], uint32(len(packed)))
	b = append(b, packed...)
	return b[:len(b)+pad], nil
}

// unpackSection is the inverse of packSection for the plaintext of a section that is stored in stored bytes.
func unpackSection(plain []byte, stored int) ([]byte, error) {
	if len(plain) < sectionFixed {
		return nil, fmt.Errorf("%d bytes are too few", len(plain))
	}
	raw, packed := int64(le.Uint32(plain)), int64(le.Uint32(plain[5:]))
	body := plain[sectionFixed:]
	if packed > int64(len(body)) || raw > sectionMax || raw > sectionSlack+sectionRatio*int64(stored) {
		return nil, fmt.Errorf("it claims %d bytes in %d", raw, len(plain))
	}
	if !isZero(body[packed:]) {
		return nil, fmt.Errorf("its padding is not zero")
	}
	return unpack(Codec(plain[4]), body[:packed], nil, int(raw))
}
