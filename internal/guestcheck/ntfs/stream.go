package ntfs

import (
	"io"
	"sort"
	"sync"
)

const maxUnit = 1 << 20 // bytes of a compression unit; Windows makes 64 KiB

// stream is the content of an attribute that lies in clusters.
type stream struct {
	f    *FS
	runs []run // ordered, without gaps
	size int64
	init int64
	unit int64 // clusters; 0 = not compressed

	mu   sync.Mutex
	at   int64 // the unit that is unpacked, + 1
	data []byte
}

// ReadAt reads; holes and what was never written are zeros.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > s.size-off {
		p, eof = p[:s.size-off], io.EOF
	}
	n := 0
	if off < s.init {
		q := p[:min(int64(len(p)), s.init-off)]
		var err error
		if s.unit > 0 {
			err = s.unpacked(q, off)
		} else {
			err = s.raw(q, off)
		}
		if err != nil {
			return 0, err
		}
		n = len(q)
	}
	clear(p[n:])
	return len(p), eof
}

// raw fills p with what lies in the clusters.
func (s *stream) raw(p []byte, off int64) error {
	c := s.f.cluster
	for len(p) > 0 {
		vcn := off / c
		k := sort.Search(len(s.runs), func(k int) bool { return s.runs[k].vcn+s.runs[k].n > vcn })
		if k == len(s.runs) || s.runs[k].vcn > vcn {
			return corrupt("cluster %d of a file lies nowhere", vcn)
		}
		r := s.runs[k]
		in := off - r.vcn*c
		n := int64(len(p))
		if left := r.n - in/c; n/c >= left-1 { // r.n may be too large to count in bytes
			n = min(n, left*c-in%c)
		}
		if r.lcn < 0 {
			clear(p[:n])
		} else if err := read(s.f.dev, p[:n], r.lcn*c+in); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// unpacked fills p from compression units: one without holes is stored as it
// is, one that is all hole is zeros, any other is compressed.
func (s *stream) unpacked(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.unit * s.f.cluster
	for len(p) > 0 {
		k := off / size
		if s.at != k+1 {
			b, err := s.unpack(k)
			if err != nil {
				return err
			}
			s.at, s.data = k+1, b
		}
		n := copy(p, s.data[off%size:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (s *stream) unpack(k int64) ([]byte, error) {
	c := s.f.cluster
	b := make([]byte, s.unit*c)
	stored := int64(0)
	for stored < s.unit {
		vcn := k*s.unit + stored
		j := sort.Search(len(s.runs), func(j int) bool { return s.runs[j].vcn+s.runs[j].n > vcn })
		if j == len(s.runs) || s.runs[j].lcn < 0 {
			break
		}
		stored += min(s.unit-stored, s.runs[j].vcn+s.runs[j].n-vcn)
	}
	if stored == 0 {
		return b, nil
	}
	in := make([]byte, stored*c)
	if err := s.raw(in, k*s.unit*c); err != nil {
		return nil, err
	}
	if stored == s.unit {
		return in, nil
	}
	return b, lznt1(b, in)
}

// lznt1 unpacks into dst, which is zeroed; what is missing stays zero.
func lznt1(dst, src []byte) error {
	for at := 0; len(src) >= 2 && at < len(dst); at += 4096 {
		head := le.Uint16(src)
		if head == 0 {
			return nil
		}
		n := int(head&0xFFF) + 1
		if src = src[2:]; n > len(src) {
			return corrupt("a compressed block of %d bytes", n)
		}
		chunk := dst[at:min(len(dst), at+4096)]
		if head&0x8000 == 0 {
			copy(chunk, src[:n])
		} else if err := lzBlock(chunk, src[:n]); err != nil {
			return err
		}
		src = src[n:]
	}
	return nil
}

func lzBlock(dst, src []byte) error {
	at := 0
	for len(src) > 0 {
		flags := src[0]
		src = src[1:]
		for bit := 0; bit < 8 && len(src) > 0; bit++ {
			if flags>>bit&1 == 0 {
				if at >= len(dst) {
					return corrupt("a compressed block is too long")
				}
				dst[at], src = src[0], src[1:]
				at++
				continue
			}
			if len(src) < 2 {
				return corrupt("a compressed block ends early")
			}
			// The nearer to the block's start, the fewer bits for the distance.
			bits := 4
			for 1<<bits < at {
				bits++
			}
			pair := int(le.Uint16(src))
			back, n := pair>>(16-bits)+1, pair&(1<<(16-bits)-1)+3
			if src = src[2:]; back > at || n > len(dst)-at {
				return corrupt("a compressed block points outside of itself")
			}
			for range n {
				dst[at] = dst[at-back]
				at++
			}
		}
	}
	return nil
}
