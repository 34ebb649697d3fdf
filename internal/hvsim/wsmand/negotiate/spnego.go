package negotiate

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
)

// SPNEGO ([RFC4178]) as far as NTLM inside it needs it. Windows takes NTLM's
// own messages under Negotiate, too, and so does this server.

var (
	oidSPNEGO = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2}
	oidNTLM   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10}

	errSPNEGO = errors.New("malformed SPNEGO token")
)

const (
	stateCompleted  = 0
	stateIncomplete = 1

	tagInit = 0x60 // first byte of a client's first token
)

type negInit struct {
	MechTypes   []asn1.ObjectIdentifier `asn1:"explicit,tag:0"`
	ReqFlags    asn1.BitString          `asn1:"explicit,optional,tag:1"`
	MechToken   []byte                  `asn1:"explicit,optional,tag:2"`
	MechListMIC []byte                  `asn1:"explicit,optional,tag:3"`
}

type negResp struct {
	State         asn1.Enumerated       `asn1:"explicit,optional,tag:0,default:-1"`
	SupportedMech asn1.ObjectIdentifier `asn1:"explicit,optional,tag:1"`
	ResponseToken []byte                `asn1:"explicit,optional,tag:2"`
	MechListMIC   []byte                `asn1:"explicit,optional,tag:3"`
}

func isNTLM(token []byte) bool { return bytes.HasPrefix(token, []byte("NTLMSSP\x00")) }

// parseInit reads a client's first token and returns NTLM's first message, or nil
// if the client began with another mechanism that it likes better.
func parseInit(data []byte) (token []byte, err error) {
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(data, &outer); err != nil || outer.Class != asn1.ClassApplication || outer.Tag != 0 {
		return nil, errSPNEGO
	}
	var oid asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(outer.Bytes, &oid)
	if err != nil || !oid.Equal(oidSPNEGO) {
		return nil, errSPNEGO
	}
	var choice asn1.RawValue
	if _, err := asn1.Unmarshal(rest, &choice); err != nil || choice.Class != asn1.ClassContextSpecific || choice.Tag != 0 {
		return nil, errSPNEGO
	}
	var init negInit
	if _, err := asn1.Unmarshal(choice.Bytes, &init); err != nil {
		return nil, fmt.Errorf("%w: %w", errSPNEGO, err)
	}
	for i, m := range init.MechTypes {
		if !m.Equal(oidNTLM) {
			continue
		}
		if i == 0 {
			token = init.MechToken
		}
		return token, nil
	}
	return nil, fmt.Errorf("%w: the client does not offer NTLM", errSPNEGO)
}

// parseResp reads a client's later token.
func parseResp(data []byte) (token []byte, err error) {
	var choice asn1.RawValue
	if _, err := asn1.Unmarshal(data, &choice); err != nil || choice.Class != asn1.ClassContextSpecific || choice.Tag != 1 {
		return nil, errSPNEGO
	}
	var resp negResp
	if _, err := asn1.Unmarshal(choice.Bytes, &resp); err != nil {
		return nil, fmt.Errorf("%w: %w", errSPNEGO, err)
	}
	return resp.ResponseToken, nil
}

// encodeResp renders the server's token.
func encodeResp(state int, token []byte) ([]byte, error) {
	resp := negResp{State: asn1.Enumerated(state), ResponseToken: token}
	if state == stateIncomplete {
		resp.SupportedMech = oidNTLM
	}
	inner, err := asn1.Marshal(resp)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: inner})
}
