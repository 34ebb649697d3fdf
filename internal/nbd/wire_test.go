package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// Golden bytes: a whole session of a server, as the protocol document has it.
func TestServerGoldenBytes(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(64 << 10)
	dev.WriteAt(context.Background(), []byte("holdfast"), 0)
	nc := rawConn(t, serveDevices(t, ExportMap{"vda": readOnly{dev}}))
	exchange := func(name, send, want string) {
		t.Helper()
		if _, err := nc.Write(unhex(t, send)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w := unhex(t, want)
		got := make([]byte, len(w))
		n, err := io.ReadFull(nc, got)
		if err != nil || !bytes.Equal(got, w) {
			t.Fatalf("%s: %v\n got %x\nwant %x", name, err, got[:n], w)
		}
	}
	const (
		opt = "49484156454f5054" // IHAVEOPT
		rep = "0003e889045565a9"
	)
	exchange("greeting", "", "4e42444d41474943"+opt+"0003")
	exchange("client flags, unknown option", "00000003"+opt+"000000ff 00000002 aabb",
		rep+"000000ff 80000001 0000000e"+hex.EncodeToString([]byte("unknown option")))
	exchange("list", opt+"00000003 00000000",
		rep+"00000003 00000002 00000007 00000003 766461"+rep+"00000003 00000001 00000000")
	exchange("structured replies", opt+"00000008 00000000", rep+"00000008 00000001 00000000")
	exchange("list contexts", opt+"00000009 0000000b 00000003 766461 00000000",
		rep+"00000009 00000004 00000013 00000000"+hex.EncodeToString([]byte(ContextAllocation))+rep+"00000009 00000001 00000000")
	exchange("list namespace", opt+"00000009 00000014 00000003 766461 00000001 00000005 626173653a",
		rep+"00000009 00000004 00000013 00000000"+hex.EncodeToString([]byte(ContextAllocation))+rep+"00000009 00000001 00000000")
	exchange("set contexts", opt+"0000000a 0000001e 00000003 766461 00000001 0000000f"+hex.EncodeToString([]byte(ContextAllocation)),
		rep+"0000000a 00000004 00000013 00000001"+hex.EncodeToString([]byte(ContextAllocation))+rep+"0000000a 00000001 00000000")
	exchange("info with name", opt+"00000006 0000000b 00000003 766461 0001 0001",
		rep+"00000006 00000003 0000000c 0000 0000000000010000 0583"+
			rep+"00000006 00000003 00000005 0001 766461"+
			rep+"00000006 00000003 0000000e 0003 00000001 00001000 02000000"+
			rep+"00000006 00000001 00000000")
	exchange("go", opt+"00000007 00000009 00000003 766461 0000",
		rep+"00000007 00000003 0000000c 0000 0000000000010000 0583"+
			rep+"00000007 00000003 0000000e 0003 00000001 00001000 02000000"+
			rep+"00000007 00000001 00000000")
	exchange("read", "25609513 0000 0000 1122334455667788 0000000000000000 00000009",
		"668e33ef 0001 0001 1122334455667788 00000011 0000000000000000 686f6c6466617374 00")
	exchange("read, data and hole", "25609513 0000 0000 0000000000000002 0000000000000ffe 00009002",
		"668e33ef 0000 0001 0000000000000002 0000000a 0000000000000ffe 0000"+
			"668e33ef 0001 0002 0000000000000002 0000000c 0000000000001000 00009000")
	exchange("block status", "25609513 0000 0007 0000000000000003 0000000000000000 00010000",
		"668e33ef 0001 0005 0000000000000003 00000014 00000001 00001000 00000000 0000f000 00000003")
	exchange("block status of one", "25609513 0008 0007 0000000000000003 0000000000000000 00010000",
		"668e33ef 0001 0005 0000000000000003 0000000c 00000001 00001000 00000000")
	exchange("read outside", "25609513 0000 0000 0000000000000004 000000000000ffff 00000002",
		"668e33ef 0001 8001 0000000000000004 00000006 00000016 0000")
	exchange("write", "25609513 0001 0001 0000000000000005 0000000000000000 00000002 ffff",
		"67446698 00000001 0000000000000005")
	exchange("disconnect", "25609513 0000 0002 0000000000000006 0000000000000000 00000000", "")
	if n, err := nc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after disconnect: %d bytes, %v", n, err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rawConn(t testing.TB, srv *testServer) net.Conn {
	t.Helper()
	nc, err := net.Dial("unix", srv.sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc
}

// The oldest way in: EXPORT_NAME, simple replies.
func TestServerExportNameAndSimpleReplies(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	dev.scatter(1, 4)
	for _, tc := range []struct {
		name  string
		flags byte
		tail  int
	}{{"with zeroes", 1, 124}, {"without zeroes", 3, 0}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			nc := rawConn(t, serveDevices(t, ExportMap{"vda": dev}))
			msg := append([]byte{0, 0, 0, tc.flags}, appendOption(nil, optExportName, []byte("vda"))...)
			req := make([]byte, requestSize)
			request{cookie: 7, off: 1000, length: 100_000}.put(req)
			if _, err := nc.Write(append(msg, req...)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 18+10+tc.tail+simpleReplySize+100_000)
			if _, err := io.ReadFull(nc, got); err != nil {
				t.Fatal(err)
			}
			if size := binary.BigEndian.Uint64(got[18:]); size != 1<<20 {
				t.Errorf("size %d", size)
			}
			got = got[28+tc.tail:]
			if want := unhex(t, "67446698 00000000 0000000000000007"); !bytes.Equal(got[:simpleReplySize], want) {
				t.Errorf("reply header %x", got[:simpleReplySize])
			}
			if !bytes.Equal(got[simpleReplySize:], dev.data[1000:101_000]) {
				t.Error("content differs")
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		nc := rawConn(t, serveDevices(t, ExportMap{"vda": dev}))
		nc.Write(append([]byte{0, 0, 0, 3}, appendOption(nil, optExportName, []byte("vdb"))...))
		if b, err := io.ReadAll(nc); len(b) != 18 || err != nil {
			t.Errorf("got %d bytes, %v", len(b), err)
		}
	})
}

func TestServerNegotiationRefusals(t *testing.T) {
	t.Parallel()
	meta := appendMetaRequest(nil, "vda", []string{ContextAllocation})
	for _, tc := range []struct {
		name string
		opts [][]byte
		want []optReply // of the last option
	}{
		{"starttls", [][]byte{appendOption(nil, optStartTLS, nil)}, []optReply{repErrPolicy}},
		{"context before structured", [][]byte{appendOption(nil, optSetMetaContext, meta)}, []optReply{repErrInvalid}},
		{"list with data", [][]byte{appendOption(nil, optList, []byte{1})}, []optReply{repErrInvalid}},
		{"structured with data", [][]byte{appendOption(nil, optStructuredReply, []byte{1})}, []optReply{repErrInvalid}},
		{"short go", [][]byte{appendOption(nil, optGo, []byte{0, 0, 0, 9, 'x'})}, []optReply{repErrInvalid}},
		{"go of unknown", [][]byte{appendOption(nil, optGo, appendInfoRequest(nil, "x"))}, []optReply{repErrUnknown}},
		{"many queries claimed", [][]byte{appendOption(nil, optStructuredReply, nil), appendOption(nil, optSetMetaContext, append(appendString(nil, "vda"), 0xff, 0xff, 0xff, 0xff))}, []optReply{repErrInvalid}},
		{"wildcard selects nothing", [][]byte{appendOption(nil, optStructuredReply, nil), appendOption(nil, optSetMetaContext, appendMetaRequest(nil, "vda", []string{"base:"}))}, []optReply{repAck}},
		{"abort", [][]byte{appendOption(nil, optAbort, nil)}, []optReply{repAck}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			nc := rawConn(t, serveDevices(t, ExportMap{"vda": newMemDevice(4096)}))
			nc.Write([]byte{0, 0, 0, 3})
			io.ReadFull(nc, make([]byte, 18))
			var got []optReply
			for _, o := range tc.opts {
				nc.Write(o)
				got = nil
				for len(got) == 0 || got[len(got)-1] != repAck && got[len(got)-1]&repErrBit == 0 {
					var h [optReplyHeaderSize]byte
					if _, err := io.ReadFull(nc, h[:]); err != nil {
						t.Fatal(err)
					}
					io.CopyN(io.Discard, nc, int64(binary.BigEndian.Uint32(h[16:])))
					got = append(got, optReply(binary.BigEndian.Uint32(h[12:])))
				}
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("replies %v, want %v", got, tc.want)
			}
		})
	}
}

// A context chosen for one export does not hold for another.
func TestContextBelongsToItsExport(t *testing.T) {
	t.Parallel()
	srv := serveDevices(t, ExportMap{"a": newMemDevice(4096), "b": newMemDevice(4096)})
	nc := rawConn(t, srv)
	msg := []byte{0, 0, 0, 3}
	msg = appendOption(msg, optStructuredReply, nil)
	msg = appendOption(msg, optSetMetaContext, appendMetaRequest(nil, "a", []string{ContextAllocation}))
	msg = appendOption(msg, optGo, appendInfoRequest(nil, "b"))
	req := make([]byte, requestSize)
	request{cmd: cmdBlockStatus, cookie: 1, length: 4096}.put(req)
	nc.Write(append(msg, req...))
	disc := make([]byte, requestSize)
	request{cmd: cmdDisc}.put(disc)
	nc.Write(disc)
	all, err := io.ReadAll(nc)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "668e33ef 0001 8001 0000000000000001 00000006 00000016 0000")
	if !bytes.HasSuffix(all, want) {
		t.Errorf("ends with %x", all[max(0, len(all)-len(want)):])
	}
}

// Garbage costs the sender its connection and nobody else's.
func TestServerSurvivesGarbage(t *testing.T) {
	t.Parallel()
	srv := startServer(t, ServerConfig{Exports: ExportMap{"": newMemDevice(1 << 20)}, HandshakeTimeout: 100 * time.Millisecond})
	good := srv.dial(t, "")
	ready := append([]byte{0, 0, 0, 3}, appendOption(nil, optGo, appendInfoRequest(nil, ""))...)
	huge := make([]byte, requestSize)
	request{cmd: cmdWrite, length: 1<<32 - 1}.put(huge)
	bigOption := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 3}, magicOption)
	bigOption = append(bigOption, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff)
	for name, b := range map[string][]byte{
		"noise":              bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100),
		"unknown flags":      {0xff, 0xff, 0xff, 0xff},
		"huge option":        bigOption,
		"bad option magic":   append([]byte{0, 0, 0, 3}, make([]byte, 16)...),
		"silence":            nil,
		"half an option":     ready[:len(ready)-3],
		"bad request magic":  append(bytes.Clone(ready), make([]byte, requestSize)...),
		"huge refused write": append(bytes.Clone(ready), huge...),
		"endless options":    append([]byte{0, 0, 0, 3}, bytes.Repeat(appendOption(nil, optList, []byte{1}), maxOptions+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := rawConn(t, srv)
			go nc.Write(b)
			var nerr net.Error
			if _, err := io.Copy(io.Discard, nc); errors.As(err, &nerr) && nerr.Timeout() {
				t.Error("the server kept the connection")
			}
		})
	}
	t.Cleanup(func() {
		if err := good.ReadAt(testContext(t), make([]byte, 4096), 0); err != nil {
			t.Errorf("another connection suffered: %v", err)
		}
	})
}

// scripted is a server made of bytes: it sends head at once, and replies[i]
// when it has got i+1 transmission requests; then it hangs up, if there are any.
func scripted(t testing.TB, head []byte, replies ...[]byte) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	requests := make(chan struct{}, 100)
	wg.Go(func() { // swallow what the client sends
		defer close(requests)
		var seen []byte
		b := make([]byte, 4096)
		for n := 0; ; {
			k, err := theirs.Read(b)
			if err != nil {
				return
			}
			seen = append(seen, b[:k]...)
			for ; n < bytes.Count(seen, []byte{0x25, 0x60, 0x95, 0x13}); n++ {
				requests <- struct{}{}
			}
		}
	})
	wg.Go(func() {
		if _, err := theirs.Write(head); err != nil {
			return
		}
		for _, b := range replies {
			if _, ok := <-requests; !ok {
				return
			}
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
		if len(replies) > 0 {
			theirs.Close()
		}
	})
	t.Cleanup(func() { ours.Close(); theirs.Close(); wg.Wait() })
	return ours
}

// handshakeBytes is what a good server says until transmission.
func handshakeBytes(size uint64, contexts ...string) []byte {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicGreeting)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, 3)
	b = appendOptReply(b, optStructuredReply, repAck, nil)
	if len(contexts) > 0 {
		for i, name := range contexts {
			b = appendOptReply(b, optSetMetaContext, repMetaContext, append(be.AppendUint32(nil, uint32(i+1)), name...))
		}
		b = appendOptReply(b, optSetMetaContext, repAck, nil)
	}
	e := be.AppendUint64(be.AppendUint16(nil, infoExport), size)
	b = appendOptReply(b, optGo, repInfo, be.AppendUint16(e, uint16(FlagHasFlags|FlagSendFlush)))
	return appendOptReply(b, optGo, repAck, nil)
}

// hostile bytes after the handshake; the client's first request has cookie 1.
func TestClientAgainstBrokenReplies(t *testing.T) {
	t.Parallel()
	const head, end = "668e33ef", "0000000000000001" // structured magic, cookie
	data := func(flags, off, n string) string {
		return head + flags + "0001" + end + n + off
	}
	for _, tc := range []struct {
		name, reply string
		status      bool // ask for block status instead of a read of 16 bytes at 0
		want        error
	}{
		{"bad magic", "00000000 00000000 0000000000000001", false, ErrProtocol},
		{"unknown cookie", "668e33ef 0001 0000 0000000000000002 00000000", false, ErrProtocol},
		{"unknown cookie, simple", "67446698 00000000 0000000000000002", false, ErrProtocol},
		{"simple reply to a read", "67446698 00000000 0000000000000001" + strings.Repeat("41", 16), false, ErrProtocol},
		{"nothing told", head + "0001 0000" + end + "00000000", false, ErrProtocol},
		{"none without done", head + "0000 0000" + end + "00000000", false, ErrProtocol},
		{"none with payload", head + "0001 0000" + end + "00000004 00000000", false, ErrProtocol},
		{"half of it", data("0001", "0000000000000000", "00000010") + strings.Repeat("41", 8), false, ErrProtocol},
		{"same half twice", data("0000", "0000000000000000", "00000010") + strings.Repeat("41", 8) + data("0001", "0000000000000000", "00000010") + strings.Repeat("41", 8), false, ErrProtocol},
		{"data before the request", data("0001", "ffffffffffffffff", "00000018") + strings.Repeat("41", 16), false, ErrProtocol},
		{"data behind the request", data("0001", "0000000000000001", "00000018") + strings.Repeat("41", 16), false, ErrProtocol},
		{"data much too long", data("0001", "0000000000000000", "fffffff0") + strings.Repeat("41", 16), false, ErrProtocol},
		{"data without offset", head + "0001 0001" + end + "00000007 00000000000000", false, ErrProtocol},
		{"hole too long", head + "0001 0002" + end + "0000000c 0000000000000000 00000011", false, ErrProtocol},
		{"hole over all", head + "0001 0002" + end + "0000000c 0000000000000000 ffffffff", false, ErrProtocol},
		{"hole of nothing", head + "0001 0002" + end + "0000000c 0000000000000000 00000000", false, ErrProtocol},
		{"hole of odd size", head + "0001 0002" + end + "0000000d 0000000000000000 00000001 00", false, ErrProtocol},
		{"unknown chunk", head + "0001 0007" + end + "00000000", false, ErrProtocol},
		{"status for a read", head + "0001 0005" + end + "0000000c 00000001 00000010 00000000", false, ErrProtocol},
		{"error without error", head + "0001 8001" + end + "00000006 00000000 0000", false, ErrProtocol},
		{"error too short", head + "0001 8001" + end + "00000004 00000005", false, ErrProtocol},
		{"error message too long", head + "0001 8001" + end + "00000006 00000005 0001", false, ErrProtocol},
		{"error of a gigabyte", head + "0001 8001" + end + "40000000 00000005 0001", false, ErrProtocol},
		{"error without its offset", head + "0001 8002" + end + "00000006 00000005 0000", false, ErrProtocol},
		{"error", head + "0001 8001" + end + "00000009 00000005 0003 626164", false, EIO},
		{"error of an unknown kind", head + "0001 9999" + end + "00000008 0000000c 0000 ffff", false, ENOMEM},
		{"error, then done", head + "0000 8002" + end + "0000000e 0000001c 0000 0000000000000004" + head + "0001 0000" + end + "00000000", false, ENOSPC},
		{"hang up", "", false, ErrConnectionLost},
		{"hang up in a header", "668e", false, ErrConnectionLost},
		{"hang up in the data", data("0001", "0000000000000000", "00000018") + "4141", false, ErrConnectionLost},

		{"status: simple success", "67446698 00000000 0000000000000001", true, ErrProtocol},
		{"status: simple error", "67446698 00000005 0000000000000001", true, EIO},
		{"status: data", data("0001", "0000000000000000", "00000018") + strings.Repeat("41", 16), true, ErrProtocol},
		{"status: one context missing", head + "0001 0005" + end + "0000000c 00000001 00001000 00000000", true, ErrProtocol},
		{"status: none told", head + "0001 0000" + end + "00000000", true, ErrProtocol},
		{"status: unknown context", head + "0001 0005" + end + "0000000c 00000003 00001000 00000000", true, ErrProtocol},
		{"status: context twice", head + "0000 0005" + end + "0000000c 00000001 00001000 00000000" + head + "0001 0005" + end + "0000000c 00000001 00001000 00000000", true, ErrProtocol},
		{"status: zero length", head + "0001 0005" + end + "0000000c 00000001 00000000 00000000", true, ErrProtocol},
		{"status: no extents", head + "0001 0005" + end + "00000004 00000001", true, ErrProtocol},
		{"status: odd size", head + "0001 0005" + end + "0000000d 00000001 00001000 00000000 00", true, ErrProtocol},
		{"status: a gigabyte", head + "0001 0005" + end + "40000004 00000001 00001000 00000000", true, ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			contexts := []string{ContextAllocation, ContextDirtyPrefix + "b0"}
			nc := scripted(t, handshakeBytes(1<<20, contexts...), unhex(t, tc.reply))
			ctx := testContext(t)
			c, err := newClient(ctx, nc, ClientConfig{Contexts: contexts, MaxInFlight: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if tc.status {
				err = c.Extents(ctx, 0, 1<<20, func(string, int64, int64, uint32) error {
					t.Error("something was told")
					return nil
				})
			} else {
				err = c.ReadAt(ctx, make([]byte, 16), 0)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

// Two contexts that a server tells in steps of different lengths.
func TestExtentsOfUnevenContexts(t *testing.T) {
	t.Parallel()
	chunk := func(flags, cookie, id string, rest string) string {
		n := 4 + len(strings.ReplaceAll(rest, " ", ""))/2
		return "668e33ef" + flags + "0005" + "00000000000000" + cookie + hex.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(n))) + id + rest
	}
	contexts := []string{ContextAllocation, ContextDirtyPrefix + "b0"}
	nc := scripted(t, handshakeBytes(0x3000, contexts...),
		unhex(t, chunk("0000", "01", "00000001", "00001000 00000003")+chunk("0001", "01", "00000002", "00001800 00000001 00000100 00000000")),
		unhex(t, chunk("0000", "02", "00000002", "00000900 00000000 10000000 00000001")+chunk("0001", "02", "00000001", "ffffffff 00000000")))
	c, err := newClient(testContext(t), nc, ClientConfig{Contexts: contexts, MaxInFlight: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := extentsOf(t, c, 0, 0x3000)
	want := map[string][]told{
		contexts[0]: {{0, 0x1000, 3}, {0x1000, 0x2000, 0}},
		contexts[1]: {{0, 0x1800, 1}, {0x1800, 0x100, 0}, {0x1900, 0x1700, 1}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

func TestClientAgainstBrokenNegotiation(t *testing.T) {
	t.Parallel()
	be := binary.BigEndian
	greet := handshakeBytes(4096)[:18]
	sr := appendOptReply(bytes.Clone(greet), optStructuredReply, repAck, nil)
	meta := func(id uint32, name string) []byte {
		return appendOptReply(nil, optSetMetaContext, repMetaContext, append(be.AppendUint32(nil, id), name...))
	}
	ack := appendOptReply(nil, optSetMetaContext, repAck, nil)
	join := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	withMeta := join(sr, meta(1, "a:b"), ack)
	block := func(lo, pref, hi uint32) []byte {
		b := be.AppendUint16(nil, infoBlockSize)
		return appendOptReply(nil, optGo, repInfo, be.AppendUint32(be.AppendUint32(be.AppendUint32(b, lo), pref), hi))
	}
	goAck := appendOptReply(nil, optGo, repAck, nil)
	hugeReply := appendOptReply(nil, optGo, repInfo, nil)
	be.PutUint32(hugeReply[16:], 1<<31)
	for name, tc := range map[string]struct {
		bytes []byte
		want  error
	}{
		"not nbd":                {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), ErrProtocol},
		"oldstyle":               {unhex(t, "4e42444d41474943 00420281861253 000000"), ErrProtocol},
		"not fixed":              {append(bytes.Clone(greet[:16]), 0, 0), ErrProtocol},
		"no structured replies":  {appendOptReply(bytes.Clone(greet), optStructuredReply, repErrUnsup, nil), ErrContextNotGranted},
		"reply to another":       {appendOptReply(bytes.Clone(greet), optGo, repAck, nil), ErrProtocol},
		"bad reply magic":        {append(bytes.Clone(greet), make([]byte, 20)...), ErrProtocol},
		"contexts unsupported":   {join(sr, appendOptReply(nil, optSetMetaContext, repErrUnsup, nil)), ErrContextNotGranted},
		"contexts: no export":    {join(sr, appendOptReply(nil, optSetMetaContext, repErrUnknown, nil)), ErrNoSuchExport},
		"context not granted":    {join(sr, ack), ErrContextNotGranted},
		"context not asked for":  {join(sr, meta(1, "c:d"), ack), ErrProtocol},
		"context twice":          {join(sr, meta(1, "a:b"), meta(2, "a:b"), ack), ErrProtocol},
		"context reply too long": {join(sr, meta(1, strings.Repeat("x", maxOptionData)), ack), ErrProtocol},
		"endless replies":        {join(withMeta, bytes.Repeat(appendOptReply(nil, optGo, repInfo, []byte{0, 9}), maxOptReplies+1)), ErrProtocol},
		"huge reply":             {join(withMeta, hugeReply), ErrProtocol},
		"go without size":        {join(withMeta, goAck), ErrProtocol},
		"negative size":          {join(withMeta, handshakeBytes(1 << 63)[18+20:]), ErrProtocol},
		"short info":             {join(withMeta, appendOptReply(nil, optGo, repInfo, []byte{0})), ErrProtocol},
		"block size zero":        {join(withMeta, block(0, 4096, 4096), goAck), ErrProtocol},
		"block size odd":         {join(withMeta, block(513, 4096, 4096), goAck), ErrProtocol},
		"block size vast":        {join(withMeta, block(1<<20, 1<<20, 1<<30), goAck), ErrProtocol},
		"block size upside down": {join(withMeta, block(512, 4096, 256), goAck), ErrProtocol},
		"go: no export":          {join(withMeta, appendOptReply(nil, optGo, repErrUnknown, []byte("gone"))), ErrNoSuchExport},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := scripted(t, tc.bytes)
			c, err := newClient(testContext(t), nc, ClientConfig{Contexts: []string{"a:b"}, MaxInFlight: 4})
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

// A server that stalls in the middle of a chunk loses the connection, so that
// a cancelled read returns and its buffer is the caller's again.
func TestCancelWhileDataArrives(t *testing.T) {
	t.Parallel()
	partial := unhex(t, "668e33ef 0001 0001 0000000000000001 00000018 0000000000000000 4141")
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go io.Copy(io.Discard, theirs)
	go theirs.Write(handshakeBytes(1 << 20))
	c, err := newClient(testContext(t), ours, ClientConfig{MaxInFlight: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	p := make([]byte, 16)
	go func() { got <- c.ReadAt(ctx, p, 0) }()
	waitFor(t, c, func() bool { return c.pending[1] != nil })
	if _, err := theirs.Write(partial); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, func() bool { return c.pending[1] != nil && c.pending[1].filling })
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p[15] = 1 // the race detector watches
	<-c.Done()
	if !errors.Is(c.Err(), ErrConnectionLost) {
		t.Error(c.Err())
	}
}

// A write that the server does not take must not outlive its context.
func TestCancelStuckWrite(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	shook := make(chan struct{})
	go func() {
		go theirs.Write(handshakeBytes(1 << 20))
		io.ReadFull(theirs, make([]byte, 4+16+16+4+2+2)) // what the client says; then nobody reads
		close(shook)
	}()
	c, err := newClient(testContext(t), ours, ClientConfig{MaxInFlight: 4})
	if err != nil {
		t.Fatal(err)
	}
	<-shook
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := c.WriteAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestCoverage(t *testing.T) {
	t.Parallel()
	var v coverage
	v.reset(100)
	for _, s := range []struct {
		off, n int
		ok     bool
	}{
		{50, 10, true}, {0, 10, true}, {20, 10, true}, {55, 1, false}, {49, 2, false}, {0, 100, false}, {59, 5, false},
		{10, 10, true}, {30, 20, true}, {90, 11, false}, {-1, 1, false}, {60, 0, false}, {60, 39, true}, {100, 1, false},
	} {
		if got := v.add(s.off, s.n); got != s.ok {
			t.Errorf("add(%d, %d) = %v with %v", s.off, s.n, got, v.spans)
		}
	}
	if v.complete() {
		t.Error("complete without the last byte")
	}
	if !v.add(99, 1) || !v.complete() || len(v.spans) != 1 {
		t.Errorf("%v", v.spans)
	}
	v.reset(1 << 20)
	n := 0
	for ; v.add(2*n, 1); n++ {
	}
	if n != maxSpans {
		t.Errorf("%d pieces accepted, want %d", n, maxSpans)
	}
}
