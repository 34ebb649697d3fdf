package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
)

// negotiator runs the client's side of the fixed newstyle handshake.
type negotiator struct {
	rw  io.Writer
	br  *bufio.Reader
	cfg ClientConfig
	ex  negotiated
}

func (n *negotiator) run() (negotiated, error) {
	n.ex = negotiated{min: 1, pref: 4096, max: maxRequestBytes}
	if err := n.greet(); err != nil {
		return n.ex, err
	}
	if err := n.structuredReplies(); err != nil {
		return n.ex, err
	}
	if len(n.cfg.Contexts) > 0 {
		if err := n.metaContexts(); err != nil {
			return n.ex, err
		}
	}
	return n.ex, n.goTransmit()
}

func (n *negotiator) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(n.br, b[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	be := binary.BigEndian
	if be.Uint64(b[:]) != magicGreeting {
		return fmt.Errorf("%w: greeting %.8q is not an NBD server's", ErrProtocol, b[:8])
	}
	flags := be.Uint16(b[16:])
	if be.Uint64(b[8:]) != magicOption || flags&handshakeFixedNewstyle == 0 {
		return fmt.Errorf("%w: server does not speak the fixed newstyle handshake", ErrProtocol)
	}
	reply := be.AppendUint32(nil, uint32(flags&(handshakeFixedNewstyle|handshakeNoZeroes)))
	if _, err := n.rw.Write(reply); err != nil {
		return fmt.Errorf("write client flags: %w", err)
	}
	return nil
}

// ask sends one option and calls fn for every reply before the final one.
// An error reply of the server comes back as its code, with its message.
func (n *negotiator) ask(opt option, data []byte, fn func(typ optReply, data []byte) error) (code optReply, message string, err error) {
	if _, err := n.rw.Write(appendOption(nil, opt, data)); err != nil {
		return 0, "", fmt.Errorf("send option %v: %w", opt, err)
	}
	for range maxOptReplies {
		typ, data, err := n.reply(opt)
		if err != nil {
			return 0, "", fmt.Errorf("read reply to option %v: %w", opt, err)
		}
		switch {
		case typ&repErrBit != 0:
			return typ, fmt.Sprintf("server replied %v to %v (%.256q)", typ, opt, data), nil
		case typ == repAck:
			if len(data) != 0 {
				return 0, "", fmt.Errorf("%w: acknowledgement of %v carries %d bytes", ErrProtocol, opt, len(data))
			}
			return repAck, "", nil
		case fn == nil:
			return 0, "", fmt.Errorf("%w: unexpected %v to %v", ErrProtocol, typ, opt)
		}
		if err := fn(typ, data); err != nil {
			return 0, "", err
		}
	}
	return 0, "", fmt.Errorf("%w: more than %d replies to %v", ErrProtocol, maxOptReplies, opt)
}

func (n *negotiator) reply(opt option) (optReply, []byte, error) {
	var b [optReplyHeaderSize]byte
	if _, err := io.ReadFull(n.br, b[:]); err != nil {
		return 0, nil, err
	}
	be := binary.BigEndian
	if m := be.Uint64(b[:]); m != magicOptReply {
		return 0, nil, fmt.Errorf("%w: option reply magic %#x", ErrProtocol, m)
	}
	if got := option(be.Uint32(b[8:])); got != opt {
		return 0, nil, fmt.Errorf("%w: reply is to %v", ErrProtocol, got)
	}
	size := be.Uint32(b[16:])
	if size > maxOptionData {
		return 0, nil, fmt.Errorf("%w: option reply of %d bytes", ErrProtocol, size)
	}
	data := make([]byte, size)
	_, err := io.ReadFull(n.br, data)
	return optReply(be.Uint32(b[12:])), data, err
}

func (n *negotiator) structuredReplies() error {
	code, msg, err := n.ask(optStructuredReply, nil, nil)
	if err != nil {
		return err
	}
	n.ex.structured = code == repAck
	if !n.ex.structured && len(n.cfg.Contexts) > 0 {
		return fmt.Errorf("%w: %q: the server has no structured replies: %s", ErrContextNotGranted, n.cfg.Contexts[0], msg)
	}
	return nil
}

func (n *negotiator) metaContexts() error {
	n.ex.contexts = make(map[uint32]string)
	granted := make(map[string]uint32)
	code, msg, err := n.ask(optSetMetaContext, appendMetaRequest(nil, n.cfg.Export, n.cfg.Contexts), func(typ optReply, data []byte) error {
		if typ != repMetaContext || len(data) < 4 {
			return fmt.Errorf("%w: %v of %d bytes to %v", ErrProtocol, typ, len(data), optSetMetaContext)
		}
		id, name := binary.BigEndian.Uint32(data), string(data[4:])
		if !slices.Contains(n.cfg.Contexts, name) {
			return fmt.Errorf("%w: server granted metadata context %.64q which was not asked for", ErrProtocol, name)
		}
		_, dupName := granted[name]
		_, dupID := n.ex.contexts[id]
		if dupName || dupID {
			return fmt.Errorf("%w: server granted metadata context %.64q (id %d) twice", ErrProtocol, name, id)
		}
		granted[name] = id
		n.ex.contexts[id] = name
		return nil
	})
	if err != nil {
		return err
	}
	switch code {
	case repAck:
	case repErrUnknown:
		return fmt.Errorf("%w: %s", ErrNoSuchExport, msg)
	case repErrUnsup:
		return fmt.Errorf("%w: %q: %s", ErrContextNotGranted, n.cfg.Contexts[0], msg)
	default:
		return fmt.Errorf("ask for metadata contexts: %s", msg)
	}
	for _, name := range n.cfg.Contexts {
		id, ok := granted[name]
		if !ok {
			return fmt.Errorf("%w: %q", ErrContextNotGranted, name)
		}
		n.ex.contextsOrder = append(n.ex.contextsOrder, id)
	}
	return nil
}

func (n *negotiator) goTransmit() error {
	haveExport := false
	code, msg, err := n.ask(optGo, appendInfoRequest(nil, n.cfg.Export, infoBlockSize), func(typ optReply, data []byte) error {
		if typ != repInfo || len(data) < 2 {
			return fmt.Errorf("%w: %v of %d bytes to %v", ErrProtocol, typ, len(data), optGo)
		}
		be := binary.BigEndian
		switch kind := be.Uint16(data); kind {
		case infoExport:
			if len(data) != 12 {
				return fmt.Errorf("%w: export information of %d bytes", ErrProtocol, len(data))
			}
			size := be.Uint64(data[2:])
			if size > math.MaxInt64 {
				return fmt.Errorf("%w: export size %d", ErrProtocol, size)
			}
			n.ex.size, n.ex.flags = int64(size), Flags(be.Uint16(data[10:]))
			haveExport = true
		case infoBlockSize:
			if len(data) != 14 {
				return fmt.Errorf("%w: block size information of %d bytes", ErrProtocol, len(data))
			}
			return n.blockSize(be.Uint32(data[2:]), be.Uint32(data[6:]), be.Uint32(data[10:]))
		}
		return nil // other information is not needed
	})
	if err != nil {
		return err
	}
	switch {
	case code == repErrUnknown:
		return fmt.Errorf("%w: %s", ErrNoSuchExport, msg)
	case code != repAck:
		return fmt.Errorf("open export: %s", msg)
	case !haveExport:
		return fmt.Errorf("%w: server opened the export without telling its size", ErrProtocol)
	}
	return nil
}

// blockSize takes the server's constraints over, the maximum bounded by what
// one request of ours may be.
func (n *negotiator) blockSize(minimum, preferred, maximum uint32) error {
	powerOfTwo := minimum != 0 && minimum&(minimum-1) == 0
	if !powerOfTwo || minimum > 64<<10 || preferred < minimum || maximum < minimum {
		return fmt.Errorf("%w: block sizes minimum %d, preferred %d, maximum %d", ErrProtocol, minimum, preferred, maximum)
	}
	n.ex.min, n.ex.pref = minimum, preferred
	n.ex.max = min(maximum, maxRequestBytes) / minimum * minimum
	return nil
}
