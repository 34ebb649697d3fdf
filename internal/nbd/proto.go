package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Magic numbers of the protocol (big endian on the wire, as everything else).
const (
	magicGreeting   uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags; the client's flags have the same two bits.
const (
	handshakeFixedNewstyle uint16 = 1 << 0
	handshakeNoZeroes      uint16 = 1 << 1
)

type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
)

func (o option) String() string {
	switch o {
	case optExportName:
		return "EXPORT_NAME"
	case optAbort:
		return "ABORT"
	case optList:
		return "LIST"
	case optStartTLS:
		return "STARTTLS"
	case optInfo:
		return "INFO"
	case optGo:
		return "GO"
	case optStructuredReply:
		return "STRUCTURED_REPLY"
	case optListMetaContext:
		return "LIST_META_CONTEXT"
	case optSetMetaContext:
		return "SET_META_CONTEXT"
	}
	return fmt.Sprintf("option %d", uint32(o))
}

type optReply uint32

const (
	repAck         optReply = 1
	repServer      optReply = 2
	repInfo        optReply = 3
	repMetaContext optReply = 4

	repErrBit     optReply = 1 << 31
	repErrUnsup            = repErrBit + 1
	repErrPolicy           = repErrBit + 2
	repErrInvalid          = repErrBit + 3
	repErrUnknown          = repErrBit + 6
	repErrTooBig           = repErrBit + 9
)

func (r optReply) String() string {
	switch r {
	case repErrUnsup:
		return "not supported"
	case repErrPolicy:
		return "refused by policy"
	case repErrInvalid:
		return "invalid request"
	case repErrUnknown:
		return "unknown export"
	case repErrTooBig:
		return "request too big"
	case repErrBit + 5:
		return "TLS required"
	case repErrBit + 7:
		return "server is shutting down"
	case repErrBit + 8:
		return "block size negotiation required"
	}
	if r&repErrBit != 0 {
		return fmt.Sprintf("error %d", uint32(r&^repErrBit))
	}
	return fmt.Sprintf("reply %d", uint32(r))
}

const (
	infoExport    uint16 = 0
	infoName      uint16 = 1
	infoBlockSize uint16 = 3
)

// Flags are the transmission flags of an export.
type Flags uint16

// Transmission flags.
const (
	FlagHasFlags        Flags = 1 << 0
	FlagReadOnly        Flags = 1 << 1
	FlagSendFlush       Flags = 1 << 2
	FlagSendFUA         Flags = 1 << 3
	FlagRotational      Flags = 1 << 4
	FlagSendTrim        Flags = 1 << 5
	FlagSendWriteZeroes Flags = 1 << 6
	FlagSendDF          Flags = 1 << 7
	FlagCanMultiConn    Flags = 1 << 8
	FlagSendCache       Flags = 1 << 10
)

type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

func (c command) String() string {
	names := [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

const (
	cmdFlagFUA    uint16 = 1 << 0
	cmdFlagNoHole uint16 = 1 << 1
	cmdFlagDF     uint16 = 1 << 2
	cmdFlagReqOne uint16 = 1 << 3
)

const chunkFlagDone uint16 = 1 << 0

type chunkType uint16

const (
	chunkNone        chunkType = 0
	chunkOffsetData  chunkType = 1
	chunkOffsetHole  chunkType = 2
	chunkBlockStatus chunkType = 5
	chunkErrorBit    chunkType = 1 << 15
	chunkError                 = chunkErrorBit + 1
	chunkErrorOffset           = chunkErrorBit + 2
)

// ContextAllocation is the metadata context which tells holes and zeroes; its
// flags are [StateHole] and [StateZero].
const ContextAllocation = "base:allocation"

// ContextDirtyPrefix, followed by the name of a bitmap, is QEMU's metadata
// context of changed blocks; its flag is [StateDirty].
const ContextDirtyPrefix = "qemu:dirty-bitmap:"

// Flags which [Client.Extents] reports. Which ones mean something depends on
// the context.
const (
	StateHole  uint32 = 1 << 0 // base:allocation: nothing is allocated here
	StateZero  uint32 = 1 << 1 // base:allocation: reads as zeroes
	StateDirty uint32 = 1 << 0 // qemu:dirty-bitmap:…: changed since the bitmap began
)

// Sizes of fixed structures and limits on variable ones, both directions.
const (
	optionHeaderSize   = 16
	optReplyHeaderSize = 20
	requestSize        = 28
	simpleReplySize    = 16
	chunkHeaderSize    = 20

	maxString       = 4096     // protocol document: no string is longer
	maxOptionData   = 64 << 10 // one option or option reply
	maxOptReplies   = 1024     // replies to one option
	maxErrorPayload = 64 << 10 // an error chunk
	maxStatusBytes  = 16 << 20 // one block status chunk: 2 Mi extents
	maxRequestBytes = 32 << 20 // what every server must be assumed to take at most
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNoSuchExport: the server said that it has no export of that name.
	// No other failure of asking wraps it.
	ErrNoSuchExport = errors.New("no such export")
	// ErrContextNotGranted: the server did not grant a wanted metadata context.
	ErrContextNotGranted = errors.New("metadata context not granted")
	// ErrProtocol: the other side broke the protocol. The connection is gone.
	ErrProtocol = errors.New("protocol violation")
	// ErrConnectionLost: the connection ended under pending or later requests.
	ErrConnectionLost = errors.New("connection lost")
	// ErrClosed: Close was called on this side.
	ErrClosed = errors.New("closed")
	// ErrOutOfRange: the request reaches beyond the end of the export, is
	// negative, or is not aligned to the server's minimum block size.
	ErrOutOfRange = errors.New("outside of the export")
	// ErrUnsupported: the server does not offer the operation on this export.
	ErrUnsupported = errors.New("not supported by the server")
)

// Errno is an error code of the NBD protocol. A server's reply carries one; a
// [Device] of ours may return or wrap one to choose it. Errnos are compared
// with errors.Is.
type Errno uint32

// Error codes of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted (EPERM)"
	case EIO:
		return "input/output error (EIO)"
	case ENOMEM:
		return "out of memory (ENOMEM)"
	case EINVAL:
		return "invalid argument (EINVAL)"
	case ENOSPC:
		return "no space left (ENOSPC)"
	case EOVERFLOW:
		return "value too large (EOVERFLOW)"
	case ENOTSUP:
		return "operation not supported (ENOTSUP)"
	case ESHUTDOWN:
		return "server is shutting down (ESHUTDOWN)"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// request is the fixed header of a transmission request.
//
//	0 u32 magic | 4 u16 flags | 6 u16 command | 8 u64 cookie | 16 u64 offset | 24 u32 length
type request struct {
	flags  uint16
	cmd    command
	cookie uint64
	off    uint64
	length uint32
}

func (r request) put(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b[0:], magicRequest)
	be.PutUint16(b[4:], r.flags)
	be.PutUint16(b[6:], uint16(r.cmd))
	be.PutUint64(b[8:], r.cookie)
	be.PutUint64(b[16:], r.off)
	be.PutUint32(b[24:], r.length)
}

func parseRequest(b []byte) (request, error) {
	be := binary.BigEndian
	if m := be.Uint32(b); m != magicRequest {
		return request{}, fmt.Errorf("%w: request magic %#x", ErrProtocol, m)
	}
	return request{
		flags: be.Uint16(b[4:]), cmd: command(be.Uint16(b[6:])), cookie: be.Uint64(b[8:]),
		off: be.Uint64(b[16:]), length: be.Uint32(b[24:]),
	}, nil
}

// putSimpleReply writes: 0 u32 magic | 4 u32 error | 8 u64 cookie.
func putSimpleReply(b []byte, errno Errno, cookie uint64) {
	be := binary.BigEndian
	be.PutUint32(b[0:], magicSimple)
	be.PutUint32(b[4:], uint32(errno))
	be.PutUint64(b[8:], cookie)
}

// putChunkHeader writes: 0 u32 magic | 4 u16 flags | 6 u16 type | 8 u64 cookie | 16 u32 payload length.
func putChunkHeader(b []byte, flags uint16, typ chunkType, cookie uint64, length int) {
	be := binary.BigEndian
	be.PutUint32(b[0:], magicStructured)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], uint16(typ))
	be.PutUint64(b[8:], cookie)
	be.PutUint32(b[16:], uint32(length))
}

// appendOption appends: u64 magic | u32 option | u32 length | data.
func appendOption(b []byte, opt option, data []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendOptReply appends: u64 magic | u32 option | u32 type | u32 length | data.
func appendOptReply(b []byte, opt option, typ optReply, data []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(typ))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendString appends a string behind its u32 length.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// cutString takes a string with u32 length off the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxString || int(n) > len(b)-4 {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}

// Body of INFO and GO:
//
//	u32 name length | name | u16 count | count × u16
func appendInfoRequest(b []byte, export string, infos ...uint16) []byte {
	b = appendString(b, export)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

func parseInfoRequest(b []byte) (export string, infos []uint16, ok bool) {
	export, b, ok = cutString(b)
	if !ok || len(b) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) != 2*n {
		return "", nil, false
	}
	for ; len(b) > 0; b = b[2:] {
		infos = append(infos, binary.BigEndian.Uint16(b))
	}
	return export, infos, true
}

// Body of LIST_META_CONTEXT and SET_META_CONTEXT:
//
//	u32 name length | name | u32 count | count × (u32 length | query)
func appendMetaRequest(b []byte, export string, queries []string) []byte {
	b = appendString(b, export)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = appendString(b, q)
	}
	return b
}

func parseMetaRequest(b []byte) (export string, queries []string, ok bool) {
	export, b, ok = cutString(b)
	if !ok || len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n)*4 > uint64(len(b)) {
		return "", nil, false
	}
	for range n {
		var q string
		if q, b, ok = cutString(b); !ok {
			return "", nil, false
		}
		queries = append(queries, q)
	}
	return export, queries, len(b) == 0
}
