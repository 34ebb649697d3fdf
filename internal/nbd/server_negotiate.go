package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// maxOptions bounds the options of one negotiation.
const maxOptions = 1024

// allocationID is the id under which base:allocation is granted.
const allocationID uint32 = 1

// errDone ends a negotiation that the client ended properly.
var errDone = errors.New("negotiation ended by the client")

// negotiate runs the server's side of the handshake. On nil the connection is
// in the transmission phase with c.dev set.
func (c *conn) negotiate() error {
	c.nc.SetDeadline(time.Now().Add(c.srv.cfg.HandshakeTimeout))
	be := binary.BigEndian
	greeting := be.AppendUint64(nil, magicGreeting)
	greeting = be.AppendUint64(greeting, magicOption)
	greeting = be.AppendUint16(greeting, handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := c.nc.Write(greeting); err != nil {
		return fmt.Errorf("write greeting: %w", err)
	}
	var b [optionHeaderSize]byte
	if _, err := io.ReadFull(c.br, b[:4]); err != nil {
		return fmt.Errorf("read client flags: %w", err)
	}
	flags := be.Uint32(b[:])
	if flags&^uint32(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", ErrProtocol, flags)
	}
	noZeroes := flags&uint32(handshakeNoZeroes) != 0
	for range maxOptions {
		if _, err := io.ReadFull(c.br, b[:]); err != nil {
			return fmt.Errorf("read option: %w", err)
		}
		if m := be.Uint64(b[:]); m != magicOption {
			return fmt.Errorf("%w: option magic %#x", ErrProtocol, m)
		}
		opt, size := option(be.Uint32(b[8:])), be.Uint32(b[12:])
		if size > maxOptionData {
			c.reply(opt, repErrTooBig, "option data too long")
			return fmt.Errorf("%w: option %v with %d bytes", ErrProtocol, opt, size)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(c.br, data); err != nil {
			return fmt.Errorf("read option %v: %w", opt, err)
		}
		transmit, err := c.option(opt, data, noZeroes)
		if err != nil {
			return err
		}
		if transmit {
			return c.nc.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("%w: more than %d options", ErrProtocol, maxOptions)
}

// option answers one option; transmit says that negotiation is over.
func (c *conn) option(opt option, data []byte, noZeroes bool) (transmit bool, err error) {
	switch opt {
	case optExportName:
		return true, c.exportName(string(data), noZeroes)
	case optAbort:
		c.reply(opt, repAck, "")
		return false, errDone
	case optList:
		return false, c.list(data)
	case optStartTLS:
		return false, c.reply(opt, repErrPolicy, "this server has no TLS; use a unix socket or a tunnel")
	case optInfo, optGo:
		return c.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, c.reply(opt, repErrInvalid, "no data expected")
		}
		c.structured = true
		return false, c.reply(opt, repAck, "")
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	}
	return false, c.reply(opt, repErrUnsup, "unknown option")
}

func (c *conn) reply(opt option, typ optReply, text string) error {
	return c.replyData(appendOptReply(nil, opt, typ, []byte(text)))
}

func (c *conn) replyData(b []byte) error {
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("write option reply: %w", err)
	}
	return nil
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.reply(optList, repErrInvalid, "no data expected")
	}
	names := c.srv.cfg.Exports.Names()
	if names == nil {
		return c.reply(optList, repErrPolicy, "exports are not listed")
	}
	var b []byte
	for _, name := range names {
		b = appendOptReply(b, optList, repServer, appendString(nil, name))
	}
	return c.replyData(appendOptReply(b, optList, repAck, nil))
}

// open finds an export; on failure the reply code and text for the client. The
// text says nothing of a cause that is the server's own business.
func (c *conn) open(name string) (Device, optReply, string) {
	dev, err := c.srv.cfg.Exports.Open(c.ctx, name)
	switch {
	case err == nil:
		return dev, 0, ""
	case errors.Is(err, ErrNoSuchExport):
		return nil, repErrUnknown, "no such export"
	}
	c.log.Warn("open nbd export", "export", name, "error", err)
	return nil, repErrBit + 4, "export cannot be opened now" // ERR_PLATFORM
}

// use makes dev the device of the transmission phase.
func (c *conn) use(name string, dev Device) {
	c.export, c.dev, c.size = name, dev, dev.Size()
	c.wdev, _ = dev.(WritableDevice)
	if c.metaExport != name {
		c.allocation = false
	}
}

func exportFlags(dev Device, structured bool) Flags {
	f := FlagHasFlags | FlagSendCache
	if _, ok := dev.(WritableDevice); ok {
		f |= FlagSendFlush | FlagSendFUA | FlagSendTrim | FlagSendWriteZeroes
	} else {
		f |= FlagReadOnly | FlagCanMultiConn
	}
	if structured {
		f |= FlagSendDF
	}
	return f
}

func (c *conn) exportName(name string, noZeroes bool) error {
	dev, _, text := c.open(name)
	if dev == nil {
		// The option has no error reply; hanging up is the answer.
		return fmt.Errorf("client asked for export %.64q: %s", name, text)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(dev.Size()))
	b = binary.BigEndian.AppendUint16(b, uint16(exportFlags(dev, c.structured)))
	if !noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	c.use(name, dev)
	return c.replyData(b)
}

func (c *conn) info(opt option, data []byte) (transmit bool, err error) {
	name, wanted, ok := parseInfoRequest(data)
	if !ok {
		return false, c.reply(opt, repErrInvalid, "malformed request")
	}
	dev, code, text := c.open(name)
	if dev == nil {
		return false, c.reply(opt, code, text)
	}
	be := binary.BigEndian
	e := be.AppendUint16(nil, infoExport)
	e = be.AppendUint64(e, uint64(dev.Size()))
	e = be.AppendUint16(e, uint16(exportFlags(dev, c.structured)))
	b := appendOptReply(nil, opt, repInfo, e)
	if slices.Contains(wanted, infoName) {
		b = appendOptReply(b, opt, repInfo, append(be.AppendUint16(nil, infoName), name...))
	}
	s := be.AppendUint16(nil, infoBlockSize)
	s = be.AppendUint32(s, 1)
	s = be.AppendUint32(s, uint32(c.srv.cfg.PreferredBlock))
	s = be.AppendUint32(s, uint32(c.srv.cfg.MaxRequest))
	b = appendOptReply(b, opt, repInfo, s)
	b = appendOptReply(b, opt, repAck, nil)
	if opt == optGo {
		c.use(name, dev)
	}
	return opt == optGo, c.replyData(b)
}

// metaContext lists or grants contexts: there is one, base:allocation.
func (c *conn) metaContext(opt option, data []byte) error {
	set := opt == optSetMetaContext
	if set {
		c.allocation = false // whatever comes of it, an earlier choice is void
	}
	name, queries, ok := parseMetaRequest(data)
	switch {
	case !ok:
		return c.reply(opt, repErrInvalid, "malformed request")
	case !c.structured:
		return c.reply(opt, repErrInvalid, "structured replies must be negotiated first")
	}
	dev, code, text := c.open(name)
	if dev == nil {
		return c.reply(opt, code, text)
	}
	match := !set && len(queries) == 0
	for _, q := range queries {
		// A bare namespace lists everything in it, and selects nothing.
		match = match || q == ContextAllocation || !set && q == ContextAllocation[:strings.Index(ContextAllocation, ":")+1]
	}
	var b []byte
	if match {
		id := allocationID
		if !set {
			id = 0
		}
		b = appendOptReply(b, opt, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), ContextAllocation...))
	}
	if set {
		c.allocation, c.metaExport = match, name
	}
	return c.replyData(appendOptReply(b, opt, repAck, nil))
}
