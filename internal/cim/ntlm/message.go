package ntlm

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf16"
)

// maxMessage bounds a message; real ones have some hundred bytes.
const maxMessage = 64 << 10

const (
	typeNegotiate    = 1
	typeChallenge    = 2
	typeAuthenticate = 3

	headNegotiate    = 32 // without version
	headChallenge    = 48
	headAuthenticate = 64
	micOffset        = 72
	micEnd           = 88
)

var (
	signature = []byte("NTLMSSP\x00")
	// version says Windows 10.0 and NTLM revision 15 ([MS-NLMP] 2.2.2.10); it is information only.
	version = []byte{10, 0, 0, 0, 0, 0, 0, 15}
)

// Attribute ids ([MS-NLMP] 2.2.2.1).
const (
	avEnd          = 0
	avComputer     = 1
	avDomain       = 2
	avDNSComputer  = 3
	avDNSDomain    = 4
	avFlags        = 6
	avTimestamp    = 7
	avTargetName   = 9
	avBinding      = 10
	avFlagsMIC     = 0x2
	maxAttributes  = 64
	timestampBytes = 8
)

type attribute struct {
	id    uint16
	value []byte
}

type attributes []attribute

func (a attributes) get(id uint16) ([]byte, bool) {
	for _, p := range a {
		if p.id == id {
			return p.value, true
		}
	}
	return nil, false
}

func (a *attributes) set(id uint16, v []byte) {
	for i, p := range *a {
		if p.id == id {
			(*a)[i].value = v
			return
		}
	}
	*a = append(*a, attribute{id, v})
}

func (a attributes) encode() []byte {
	var b []byte
	for _, p := range a {
		b = binary.LittleEndian.AppendUint16(b, p.id)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(p.value)))
		b = append(b, p.value...)
	}
	return append(b, 0, 0, 0, 0) // avEnd
}

// parseAttributes reads a list up to its end mark and returns it without that mark.
func parseAttributes(b []byte) (attributes, error) {
	var a attributes
	for {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: target information has no end", ErrMessage)
		}
		id, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if id == avEnd {
			return a, nil
		}
		if len(b) < 4+n || len(a) == maxAttributes {
			return nil, fmt.Errorf("%w: target information is cut off or too long", ErrMessage)
		}
		if id == avTimestamp && n != timestampBytes || id == avFlags && n != 4 || id == avBinding && n != 16 {
			return nil, fmt.Errorf("%w: target information %d has %d bytes", ErrMessage, id, n)
		}
		a.set(id, b[4:4+n])
		b = b[4+n:]
	}
}

func header(kind uint32) []byte {
	return binary.LittleEndian.AppendUint32(append([]byte(nil), signature...), kind)
}

// builder lays out a message: fixed part first, payload behind it.
type builder struct{ head, payload []byte }

func (b *builder) field(base int, v []byte) {
	b.head = binary.LittleEndian.AppendUint16(b.head, uint16(len(v)))
	b.head = binary.LittleEndian.AppendUint16(b.head, uint16(len(v)))
	b.head = binary.LittleEndian.AppendUint32(b.head, uint32(base+len(b.payload)))
	b.payload = append(b.payload, v...)
}

func checkHeader(msg []byte, kind uint32, min int) error {
	switch {
	case len(msg) > maxMessage:
		return fmt.Errorf("%w: %d bytes", ErrMessage, len(msg))
	case len(msg) < 12 || string(msg[:8]) != string(signature):
		return fmt.Errorf("%w: no NTLMSSP signature", ErrMessage)
	case binary.LittleEndian.Uint32(msg[8:]) != kind:
		return fmt.Errorf("%w: type %d where %d belongs", ErrMessage, binary.LittleEndian.Uint32(msg[8:]), kind)
	case len(msg) < min:
		return fmt.Errorf("%w: type %d has only %d bytes", ErrMessage, kind, len(msg))
	}
	return nil
}

// field reads the payload that the descriptor at an offset points to.
func field(msg []byte, at int) ([]byte, error) {
	n := int64(binary.LittleEndian.Uint16(msg[at:]))
	off := int64(binary.LittleEndian.Uint32(msg[at+4:]))
	if n == 0 {
		return nil, nil
	}
	if off < 12 || off+n > int64(len(msg)) {
		return nil, fmt.Errorf("%w: field at %d points outside", ErrMessage, at)
	}
	return msg[off : off+n], nil
}

func encodeNegotiate(flags uint32) []byte {
	b := binary.LittleEndian.AppendUint32(header(typeNegotiate), flags)
	b = append(b, make([]byte, 16)...) // domain and workstation are not named
	return append(b, version...)
}

func decodeNegotiate(msg []byte) (flags uint32, err error) {
	// Old clients end after the flags.
	if err := checkHeader(msg, typeNegotiate, 16); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(msg[12:]), nil
}

type challengeMessage struct {
	flags     uint32
	challenge [8]byte
	target    []byte // as encoded
	info      attributes
}

func (c challengeMessage) encode() []byte {
	const base = headChallenge + 8
	var b builder
	b.head = header(typeChallenge)
	b.field(base, c.target)
	b.head = binary.LittleEndian.AppendUint32(b.head, c.flags)
	b.head = append(b.head, c.challenge[:]...)
	b.head = append(b.head, make([]byte, 8)...)
	var info []byte
	if c.info != nil {
		info = c.info.encode()
	}
	b.field(base, info)
	b.head = append(b.head, version...)
	return append(b.head, b.payload...)
}

func decodeChallenge(msg []byte) (c challengeMessage, err error) {
	if err := checkHeader(msg, typeChallenge, headChallenge); err != nil {
		return c, err
	}
	c.flags = binary.LittleEndian.Uint32(msg[20:])
	copy(c.challenge[:], msg[24:32])
	if c.target, err = field(msg, 12); err != nil {
		return c, err
	}
	if c.flags&flagTargetInfo == 0 {
		return c, nil
	}
	info, err := field(msg, 40)
	if err != nil {
		return c, err
	}
	c.info, err = parseAttributes(info)
	return c, err
}

type authenticateMessage struct {
	flags                     uint32
	lm, nt                    []byte
	domain, user, workstation []byte // as encoded
	key                       []byte // encrypted session key
}

// encode renders the message with its MIC zero.
func (a authenticateMessage) encode() []byte {
	var b builder
	b.head = header(typeAuthenticate)
	// The payload's order is Windows': names, then answers, then key. Descriptors have their own.
	var names [3][2]int
	for i, v := range [][]byte{a.domain, a.user, a.workstation} {
		names[i] = [2]int{len(b.payload), len(v)}
		b.payload = append(b.payload, v...)
	}
	b.field(micEnd, a.lm)
	b.field(micEnd, a.nt)
	for _, n := range names {
		b.head = binary.LittleEndian.AppendUint16(b.head, uint16(n[1]))
		b.head = binary.LittleEndian.AppendUint16(b.head, uint16(n[1]))
		b.head = binary.LittleEndian.AppendUint32(b.head, uint32(micEnd+n[0]))
	}
	b.field(micEnd, a.key)
	b.head = binary.LittleEndian.AppendUint32(b.head, a.flags)
	b.head = append(b.head, version...)
	b.head = append(b.head, make([]byte, micEnd-micOffset)...)
	return append(b.head, b.payload...)
}

func decodeAuthenticate(msg []byte) (a authenticateMessage, err error) {
	if err := checkHeader(msg, typeAuthenticate, headAuthenticate); err != nil {
		return a, err
	}
	for at, p := range map[int]*[]byte{12: &a.lm, 20: &a.nt, 28: &a.domain, 36: &a.user, 44: &a.workstation, 52: &a.key} {
		if *p, err = field(msg, at); err != nil {
			return a, err
		}
	}
	a.flags = binary.LittleEndian.Uint32(msg[60:])
	return a, nil
}

// blob is NTLMv2_CLIENT_CHALLENGE ([MS-NLMP] 2.2.2.7).
func encodeBlob(at uint64, challenge []byte, info attributes) []byte {
	b := []byte{1, 1, 0, 0, 0, 0, 0, 0}
	b = binary.LittleEndian.AppendUint64(b, at)
	b = append(b, challenge...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, info.encode()...)
	return append(b, 0, 0, 0, 0)
}

func decodeBlob(b []byte) (attributes, error) {
	if len(b) < 32 || b[0] != 1 || b[1] != 1 {
		return nil, fmt.Errorf("%w: answer is not NTLMv2", ErrWeak)
	}
	return parseAttributes(b[28:])
}

func utf16le(s string) []byte {
	u := utf16.Encode([]rune(s))
	b := make([]byte, 0, 2*len(u))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// decodeText reads a name in the encoding that the flags tell. OEM is read as Latin-1: names
// outside ASCII from clients without Unicode are theirs to explain.
func decodeText(b []byte, flags uint32) string {
	if flags&flagUnicode == 0 {
		r := make([]rune, len(b))
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r)
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}

// fileTime counts 100 ns since 1601 ([MS-DTYP] 2.3.3).
func fileTime(t time.Time) uint64 {
	const epoch = 116444736000000000 // 1970 in that count
	return uint64(t.UnixNano()/100 + epoch)
}
