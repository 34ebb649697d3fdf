package wsman

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// Sealed messages travel as multipart/encrypted ([MS-WSMV] 2.2.9.1): a part that describes the original and
// a part of a 4-byte length, the signature of that length, and the sealed bytes. There is no
// empty line after a part's header, so this is no MIME that a library would read.
const (
	sealedType   = `multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";boundary="Encrypted Boundary"`
	plainType    = `application/soap+xml;charset=UTF-8`
	maxSignature = 4096
)

var errSealed = errors.New("the sealed answer is malformed")

// sealBody renders a sealed message.
func sealBody(m Mechanism, plain []byte) ([]byte, error) {
	sealed, signature, err := m.Seal(plain)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n"+
		"\tOriginalContent: type=%s;Length=%d\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n", plainType, len(plain))
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(signature))))
	b.Write(signature)
	b.Write(sealed)
	b.WriteString("--Encrypted Boundary--\r\n")
	return b.Bytes(), nil
}

// unsealBody opens a sealed message.
func unsealBody(m Mechanism, body []byte) ([]byte, error) {
	head, data, ok := bytes.Cut(body, []byte("application/octet-stream"))
	if !ok {
		return nil, fmt.Errorf("%w: no sealed part", errSealed)
	}
	i := bytes.Index(data, []byte("\r\n"))
	if i < 0 {
		return nil, fmt.Errorf("%w: no sealed part", errSealed)
	}
	data = data[i+2:]
	length, err := originalLength(head)
	if err != nil {
		return nil, err
	}
	if data, ok = cutTerminator(data); !ok {
		return nil, fmt.Errorf("%w: it is cut off", errSealed)
	}
	if len(data) < 4 {
		return nil, fmt.Errorf("%w: no signature", errSealed)
	}
	n := binary.LittleEndian.Uint32(data)
	data = data[4:]
	if n > maxSignature || int(n) > len(data) {
		return nil, fmt.Errorf("%w: signature of %d bytes", errSealed, n)
	}
	plain, err := m.Unseal(data[n:], data[:n])
	if err != nil {
		return nil, err
	}
	if len(plain) != length {
		return nil, fmt.Errorf("%w: %d bytes where %d were announced", errSealed, len(plain), length)
	}
	return plain, nil
}

// originalLength reads Length=… of the describing part.
func originalLength(head []byte) (int, error) {
	_, tail, ok := bytes.Cut(bytes.ToLower(head), []byte("length="))
	if !ok {
		return 0, fmt.Errorf("%w: no length", errSealed)
	}
	end := 0
	for end < len(tail) && tail[end] >= '0' && tail[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(string(tail[:end]), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: length %.20q", errSealed, tail)
	}
	return int(n), nil
}

// cutTerminator removes the closing boundary; the published examples write it with and without spaces.
func cutTerminator(data []byte) ([]byte, bool) {
	data = bytes.TrimSuffix(data, []byte("\r\n"))
	for _, end := range []string{"--Encrypted Boundary--", "-- Encrypted Boundary--", "--Encrypted Boundary --", "-- Encrypted Boundary --"} {
		if rest, ok := bytes.CutSuffix(data, []byte(end)); ok {
			return rest, true
		}
	}
	return nil, false
}
