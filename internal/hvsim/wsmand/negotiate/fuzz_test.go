package negotiate

import "testing"

func FuzzSPNEGO(f *testing.F) {
	for _, state := range []int{stateCompleted, stateIncomplete} {
		b, err := encodeResp(state, []byte("NTLMSSP\x00"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x60\x1c\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x12\x30\x10\xa0\x0e\x30\x0c\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = parseInit(data)
		_, _ = parseResp(data)
	})
}

func FuzzUnseal(f *testing.F) {
	f.Add([]byte("--Encrypted Boundary\r\n\tContent-Type: x\r\n\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=3\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n\x02\x00\x00\x00ssabc--Encrypted Boundary--\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if signature, sealed, contentType, err := openParts(data); err == nil && len(signature)+len(sealed) > len(data) {
			t.Errorf("%d bytes grew; %q", len(data), contentType)
		}
	})
}
