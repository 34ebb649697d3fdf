package virt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// script answers with fixed bytes whatever is asked.
type script struct {
	io.Reader
	asked bytes.Buffer
}

func (s *script) Write(p []byte) (int, error) { return s.asked.Write(p) }

func pack(proc, typ, serial, status uint32, payload []byte) []byte {
	var b []byte
	for _, v := range []uint32{uint32(rpcHeader + len(payload)), rpcProgram, rpcVersion, proc, typ, serial, status} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, payload...)
}

func conversation(stream ...[]byte) []byte {
	parts := [][]byte{
		pack(procAuthList, typeReply, 1, statusOK, []byte{0, 0, 0, 1, 0, 0, 0, authPolkit}), pack(procAuthPolkit, typeReply, 2, statusOK, []byte{0, 0, 0, 1}),
		pack(procConnectOpen, typeReply, 3, statusOK, nil), pack(procScreenshot, typeReply, 4, statusOK, []byte{0, 0, 0, 0}),
	}
	return bytes.Join(append(parts, stream...), nil)
}

func data(s string) []byte { return pack(procScreenshot, typeStream, 4, statusContinue, []byte(s)) }

func TestScreenshotProtocol(t *testing.T) {
	t.Parallel()
	end := pack(procScreenshot, typeStream, 4, statusContinue, nil)
	ended := pack(procScreenshot, typeStream, 4, statusOK, nil)
	failed := pack(procScreenshot, typeStream, 4, statusError, append([]byte{0, 0, 0, 55, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 5}, "sorry\x00\x00\x00"...))
	dom := golibvirt.Domain{Name: "web", ID: 3}
	for name, c := range map[string]struct {
		answer []byte
		want   string
		code   uint32
		fails  bool
	}{
		"two packets":   {conversation(data("pic"), data("ture"), end, ended), "picture", 0, false},
		"ended at once": {conversation(data("picture"), ended), "picture", 0, false},
		"reply second":  {bytes.Join([][]byte{conversation()[:len(conversation())-rpcHeader-4], data("pic"), pack(procScreenshot, typeReply, 4, statusOK, []byte{0, 0, 0, 0}), data("ture"), end}, nil), "picture", 0, false},
		"error":         {conversation(data("pic"), failed), "", 55, true},
		"cut off":       {conversation(data("pic")), "", 0, true},
		"too large":     {conversation(data("0123456789abcdef!")), "", 0, true},
		"wrong serial":  {conversation(pack(procScreenshot, typeStream, 9, statusContinue, []byte("x")), end), "", 0, true},
		"short packet":  {conversation([]byte{0, 0, 0, 5}), "", 0, true},
	} {
		s := &script{Reader: bytes.NewReader(c.answer)}
		got, err := screenshot(s, URISession, dom, 16)
		if string(got) != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		var e golibvirt.Error
		if errors.As(err, &e) && (e.Code != c.code || e.Message != "sorry") {
			t.Errorf("%s: %+v", name, e)
		}
		if n := s.asked.Len(); n%4 != 0 || n < 4*rpcHeader {
			t.Errorf("%s: asked with %d bytes", name, n)
		}
	}
}

func FuzzScreenshot(f *testing.F) {
	f.Add(conversation(data("pic"), data("")))
	f.Add(conversation(pack(procScreenshot, typeStream, 4, statusError, make([]byte, 16))))
	f.Add(pack(procAuthList, typeReply, 1, statusOK, []byte{0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := screenshot(&script{Reader: bytes.NewReader(b)}, URISystem, golibvirt.Domain{Name: "n"}, 64)
		if err == nil && len(got) > 64 {
			t.Fatalf("%d bytes", len(got))
		}
	})
}
