package virt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// The screenshot's answer is a stream of packets. go-libvirt can deadlock at a
// stream's end: it stops listening at the first of two packets that may end
// one, and when the second comes its reader waits for ever with a lock held
// that the caller needs. So this one call is made here, on a connection of its own.
//
// Format: libvirt's RPC, XDR (big-endian, strings padded to 4 bytes). A packet is
//
//	0 length, itself included | 4 program | 8 version | 12 procedure | 16 type | 20 serial | 24 status | 28 payload
const (
	rpcHeader  = 28
	rpcProgram = 0x20008086
	rpcVersion = 1

	procConnectOpen = 1
	procAuthList    = 66
	procAuthPolkit  = 70
	procScreenshot  = 211

	typeCall   = 0
	typeReply  = 1
	typeStream = 3

	statusOK       = 0
	statusError    = 1
	statusContinue = 2

	authNone   = 0
	authPolkit = 2

	maxPacket = 32 << 20 // libvirt's own limit is 32 MiB
	maxEarly  = 64
)

var errRPC = errors.New("libvirt sent something that is not its protocol")

// Screenshot returns the picture of a domain's first display, in the format of
// QEMU's choice, of at most limit bytes.
func (c *Client) Screenshot(ctx context.Context, dom golibvirt.Domain, limit int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	raw, err := c.main.dialRaw(ctx)
	if err != nil {
		return nil, Wrap("Screenshot", "take a screenshot of VM "+dom.Name, err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	img, err := screenshot(raw, c.cfg.URI, dom, limit)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return img, Wrap("Screenshot", "take a screenshot of VM "+dom.Name, err)
}

// dialRaw connects to the first socket that listens.
func (p *pool) dialRaw(ctx context.Context) (net.Conn, error) {
	var errs []error
	for _, path := range p.sockets {
		var d net.Dialer
		raw, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return raw, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func screenshot(rw io.ReadWriter, uri string, dom golibvirt.Domain, limit int) ([]byte, error) {
	r := &rpc{rw: rw}
	auth, err := r.call(procAuthList, nil)
	if err != nil {
		return nil, err
	}
	if polkit, err := needsPolkit(auth); err != nil {
		return nil, err
	} else if polkit {
		if _, err := r.call(procAuthPolkit, nil); err != nil {
			return nil, err
		}
	}
	open := appendString(binary.BigEndian.AppendUint32(nil, 1), uri) // 1: the name is given
	if _, err := r.call(procConnectOpen, binary.BigEndian.AppendUint32(open, 0)); err != nil {
		return nil, err
	}
	args := appendString(nil, dom.Name)
	args = append(args, dom.UUID[:]...)
	args = binary.BigEndian.AppendUint32(args, uint32(dom.ID))
	args = append(args, make([]byte, 8)...) // screen, flags
	if _, err := r.call(procScreenshot, args); err != nil {
		return nil, err
	}
	var img []byte
	for {
		p, err := r.packet(typeStream, procScreenshot)
		if err != nil {
			return nil, err
		}
		if p.status == statusOK || len(p.payload) == 0 {
			return img, nil
		}
		if len(img)+len(p.payload) > limit {
			return nil, fmt.Errorf("the picture is larger than %d bytes", limit)
		}
		img = append(img, p.payload...)
	}
}

// needsPolkit reads the ways of authentication: it does only where nothing is not enough.
func needsPolkit(list []byte) (bool, error) {
	if len(list) < 4 {
		return false, errRPC
	}
	n, rest := binary.BigEndian.Uint32(list), list[4:]
	if uint64(len(rest)) != 4*uint64(n) {
		return false, errRPC
	}
	polkit := false
	for ; len(rest) > 0; rest = rest[4:] {
		switch binary.BigEndian.Uint32(rest) {
		case authNone:
			return false, nil
		case authPolkit:
			polkit = true
		}
	}
	return polkit, nil
}

// rpc is one conversation, a call at a time.
type rpc struct {
	rw     io.ReadWriter
	serial uint32
	early  []rpcPacket // of the stream, come before the reply
}

type rpcPacket struct {
	status  uint32
	payload []byte
}

func (r *rpc) call(proc uint32, args []byte) ([]byte, error) {
	r.serial++
	b := make([]byte, 0, rpcHeader+len(args))
	for _, v := range []uint32{uint32(rpcHeader + len(args)), rpcProgram, rpcVersion, proc, typeCall, r.serial, statusOK} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	if _, err := r.rw.Write(append(b, args...)); err != nil {
		return nil, err
	}
	p, err := r.packet(typeReply, proc)
	return p.payload, err
}

// packet returns the next packet of a type, which must belong to the last
// call. The daemon may send a stream's first packets before the call's reply.
func (r *rpc) packet(typ, proc uint32) (rpcPacket, error) {
	if typ == typeStream && len(r.early) > 0 {
		p := r.early[0]
		r.early = r.early[1:]
		return p, nil
	}
	for {
		got, p, err := r.read(proc)
		switch {
		case err != nil:
			return rpcPacket{}, err
		case got == typ:
			return p, nil
		case got != typeStream || len(r.early) >= maxEarly:
			return rpcPacket{}, fmt.Errorf("%w: packet of type %d instead of %d", errRPC, got, typ)
		}
		r.early = append(r.early, p)
	}
}

// read reads one packet and returns its type.
func (r *rpc) read(proc uint32) (uint32, rpcPacket, error) {
	var h [rpcHeader]byte
	if _, err := io.ReadFull(r.rw, h[:]); err != nil {
		return 0, rpcPacket{}, err
	}
	field := func(i int) uint32 { return binary.BigEndian.Uint32(h[i:]) }
	n := field(0)
	if n < rpcHeader || n > maxPacket || field(4) != rpcProgram || field(8) != rpcVersion || field(12) != proc || field(20) != r.serial {
		return 0, rpcPacket{}, fmt.Errorf("%w: packet of %d bytes with header %x", errRPC, n, h[4:])
	}
	var body bytes.Buffer // grows with what comes, whatever the length says
	if _, err := io.CopyN(&body, r.rw, int64(n-rpcHeader)); err != nil {
		return 0, rpcPacket{}, err
	}
	switch status := field(24); status {
	case statusOK, statusContinue:
		return field(16), rpcPacket{status, body.Bytes()}, nil
	case statusError:
		return 0, rpcPacket{}, rpcError(body.Bytes())
	}
	return 0, rpcPacket{}, fmt.Errorf("%w: header %x", errRPC, h[4:])
}

// rpcError reads code, domain and the optional message of an error.
func rpcError(b []byte) error {
	if len(b) < 16 {
		return errRPC
	}
	e := golibvirt.Error{Code: binary.BigEndian.Uint32(b), Message: "libvirt gave no reason"}
	if n := binary.BigEndian.Uint32(b[12:]); binary.BigEndian.Uint32(b[8:]) == 1 && uint64(n) <= uint64(len(b)-16) {
		e.Message = string(b[16 : 16+n])
	}
	return e
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, (4-len(s)%4)%4)...)
}
