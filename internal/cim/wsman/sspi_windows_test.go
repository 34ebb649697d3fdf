package wsman

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func TestWindowsChannelBindings(t *testing.T) {
	t.Parallel()
	if channelBindings(nil) != nil {
		t.Error("no binding is none")
	}
	b := channelBindings([]byte("tls-server-end-point:x"))
	// SEC_CHANNEL_BINDINGS has eight numbers; the last two are length and offset of the data.
	if n, off := binary.LittleEndian.Uint32(b[24:]), binary.LittleEndian.Uint32(b[28:]); int(off) != 32 || !bytes.Equal(b[off:off+n], []byte("tls-server-end-point:x")) || len(b) != int(off+n) {
		t.Errorf("%x", b)
	}
}

// TestOwnIdentity goes as far as a machine without a server allows.
func TestWindowsOwnIdentity(t *testing.T) {
	t.Parallel()
	m, err := ownIdentity("localhost", nil)
	if err != nil {
		// Wine without winbind has no credentials: then the error path is what is tested.
		if !strings.Contains(err.Error(), "this process") {
			t.Error(err)
		}
		return
	}
	defer m.Close()
	token, done, err := m.Step(nil)
	if err != nil || len(token) == 0 || done {
		t.Errorf("first token of %d bytes, done %v: %v", len(token), done, err)
	}
}
