package negotiate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Sealed messages of Negotiate ([MS-WSMV] 2.2.9.1.1): a multipart body of two
// parts, the first tells the type and length of the original, the second holds
// four bytes with the signature's length, the signature and the sealed bytes.
const (
	sealBoundary = "--Encrypted Boundary"
	// Protocol is the parameter of the content type.
	Protocol = "application/HTTP-SPNEGO-session-encrypted"
	// SealedType is the content type of a sealed message.
	SealedType = `multipart/encrypted;protocol="` + Protocol + `";boundary="Encrypted Boundary"`
)

// ErrSealed tells that a message can't be opened or closed; a wrong signature is ntlm.ErrSignature.
var ErrSealed = errors.New("the sealed message is malformed")

// Unseal opens a sealed body; contentType is that of the original.
// After an error the connection is no longer signed in.
func (c *Conn) Unseal(body []byte) (plain []byte, contentType string, err error) {
	if c.session == nil {
		return nil, "", fmt.Errorf("%w: nobody is signed in who could have sealed it", ErrSealed)
	}
	defer func() {
		if err != nil {
			c.Forget()
		}
	}()
	signature, sealed, contentType, err := openParts(body)
	if err != nil {
		return nil, "", err
	}
	plain, err = c.session.Unseal(sealed, signature)
	return plain, contentType, err
}

// openParts takes a sealed body apart.
func openParts(body []byte) (signature, sealed []byte, contentType string, err error) {
	head, rest, ok := bytes.Cut(body, []byte("Content-Type: application/octet-stream\r\n"))
	if !ok || len(head) > 4096 {
		return nil, nil, "", fmt.Errorf("%w: it has no second part", ErrSealed)
	}
	length := -1
	for line := range strings.SplitSeq(string(head), "\r\n") {
		name, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !strings.EqualFold(name, "OriginalContent") {
			continue
		}
		for field := range strings.SplitSeq(v, ";") {
			key, val, _ := strings.Cut(strings.TrimSpace(field), "=")
			switch strings.ToLower(key) {
			case "type":
				contentType = val + contentType
			case "charset":
				contentType += ";charset=" + val
			case "length":
				if length, err = strconv.Atoi(val); err != nil || length < 0 {
					return nil, nil, "", fmt.Errorf("%w: the length of the original is %q", ErrSealed, val)
				}
			}
		}
	}
	if !strings.HasPrefix(string(head), sealBoundary) || length < 0 {
		return nil, nil, "", fmt.Errorf("%w: its first part does not tell the original's length", ErrSealed)
	}
	rest = bytes.TrimPrefix(rest, []byte("\r\n")) // some clients end the part's header with an empty line
	rest, ok = bytes.CutSuffix(bytes.TrimSuffix(rest, []byte("\r\n")), []byte(sealBoundary+"--"))
	if !ok || len(rest) < 4 {
		return nil, nil, "", fmt.Errorf("%w: its end is missing", ErrSealed)
	}
	n := binary.LittleEndian.Uint32(rest)
	if uint64(n)+4 > uint64(len(rest)) {
		return nil, nil, "", fmt.Errorf("%w: the signature has %d bytes", ErrSealed, n)
	}
	signature, sealed = rest[4:4+n], rest[4+n:]
	if len(sealed) != length {
		return nil, nil, "", fmt.Errorf("%w: the original has %d bytes, %d are there", ErrSealed, length, len(sealed))
	}
	return signature, sealed, contentType, nil
}

// Seal closes a body.
func (c *Conn) Seal(plain []byte, contentType string) ([]byte, error) {
	if c.session == nil {
		return nil, fmt.Errorf("%w: nobody is signed in to open it", ErrSealed)
	}
	sealed, signature, err := c.session.Seal(plain)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\r\n\tContent-Type: %s\r\n\tOriginalContent: type=%s;Length=%d\r\n", sealBoundary, Protocol, contentType, len(plain))
	fmt.Fprintf(&b, "%s\r\n\tContent-Type: application/octet-stream\r\n", sealBoundary)
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(signature))))
	b.Write(signature)
	b.Write(sealed)
	b.WriteString(sealBoundary + "--\r\n")
	return b.Bytes(), nil
}
