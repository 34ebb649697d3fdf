package wsman

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/alexbrainman/sspi"
	"github.com/alexbrainman/sspi/negotiate"
)

// sspiMechanism signs in as the process's own identity by the security support provider interface:
// Kerberos in a domain, NTLM otherwise.
type sspiMechanism struct {
	cred    *sspi.Credentials
	ctx     *sspi.Context
	target  *uint16
	binding []byte
	token   int // bytes of the longest token
	out, in uint32
	done    bool
	closed  bool
}

func ownIdentity(host string, binding []byte) (Mechanism, error) {
	info, err := negotiate.GetPackageInfo()
	if err != nil {
		return nil, fmt.Errorf("wsman: security package Negotiate: %w", err)
	}
	target, err := syscall.UTF16PtrFromString("HTTP/" + host)
	if err != nil {
		return nil, err
	}
	cred, err := negotiate.AcquireCurrentUserCredentials()
	if err != nil {
		return nil, fmt.Errorf("wsman: credentials of this process: %w", err)
	}
	const flags = sspi.ISC_REQ_CONNECTION | sspi.ISC_REQ_CONFIDENTIALITY | sspi.ISC_REQ_INTEGRITY |
		sspi.ISC_REQ_REPLAY_DETECT | sspi.ISC_REQ_SEQUENCE_DETECT | sspi.ISC_REQ_MUTUAL_AUTH
	return &sspiMechanism{cred: cred, ctx: sspi.NewClientContext(cred, flags), target: target, binding: channelBindings(binding), token: int(info.MaxToken)}, nil
}

// channelBindings renders SEC_CHANNEL_BINDINGS: eight numbers, then the data.
func channelBindings(data []byte) []byte {
	if len(data) == 0 {
		return nil
	}
	b := make([]byte, 32, 32+len(data))
	binary.LittleEndian.PutUint32(b[24:], uint32(len(data)))
	binary.LittleEndian.PutUint32(b[28:], 32)
	return append(b, data...)
}

func (m *sspiMechanism) Step(in []byte) ([]byte, bool, error) {
	var inBuf [2]sspi.SecBuffer
	inBuf[0].Set(sspi.SECBUFFER_TOKEN, in)
	ins := &sspi.SecBufferDesc{Version: sspi.SECBUFFER_VERSION, BuffersCount: 1, Buffers: &inBuf[0]}
	if m.binding != nil {
		inBuf[1].Set(sspi.SECBUFFER_CHANNEL_BINDINGS, m.binding)
		ins.BuffersCount = 2
	}
	out := make([]byte, m.token)
	var outBuf [1]sspi.SecBuffer
	outBuf[0].Set(sspi.SECBUFFER_TOKEN, out)
	outs := &sspi.SecBufferDesc{Version: sspi.SECBUFFER_VERSION, BuffersCount: 1, Buffers: &outBuf[0]}
	switch ret := m.ctx.Update(m.target, outs, ins); ret {
	case sspi.SEC_E_OK:
		m.done = true
	case sspi.SEC_I_CONTINUE_NEEDED:
	case sspi.SEC_I_COMPLETE_NEEDED, sspi.SEC_I_COMPLETE_AND_CONTINUE:
		if r := sspi.CompleteAuthToken(m.ctx.Handle, outs); r != sspi.SEC_E_OK {
			return nil, false, fmt.Errorf("wsman: sign in as this process: %w", r)
		}
		m.done = ret == sspi.SEC_I_COMPLETE_NEEDED
	default:
		return nil, false, fmt.Errorf("wsman: sign in as this process: %w", ret)
	}
	return out[:min(int(outBuf[0].BufferSize), len(out))], m.done, nil
}

func (m *sspiMechanism) CanSeal() bool {
	const need = sspi.ISC_REQ_CONFIDENTIALITY | sspi.ISC_REQ_INTEGRITY
	return m.done && m.ctx.VerifySelectiveFlags(need) == nil
}

func (m *sspiMechanism) Seal(plain []byte) (sealed, signature []byte, err error) {
	_, _, block, trailer, err := m.ctx.Sizes()
	if err != nil {
		return nil, nil, err
	}
	data := append([]byte(nil), plain...)
	var b [3]sspi.SecBuffer
	b[0].Set(sspi.SECBUFFER_TOKEN, make([]byte, trailer))
	b[1].Set(sspi.SECBUFFER_DATA, data)
	b[2].Set(sspi.SECBUFFER_PADDING, make([]byte, block))
	if ret := sspi.EncryptMessage(m.ctx.Handle, 0, sspi.NewSecBufferDesc(b[:]), m.out); ret != sspi.SEC_E_OK {
		return nil, nil, fmt.Errorf("wsman: seal: %w", ret)
	}
	m.out++
	signature = append(signature, b[0].Bytes()...)
	sealed = append(append(sealed, b[1].Bytes()...), b[2].Bytes()...)
	return sealed, signature, nil
}

func (m *sspiMechanism) Unseal(sealed, signature []byte) ([]byte, error) {
	stream := append(append([]byte(nil), signature...), sealed...)
	var b [2]sspi.SecBuffer
	b[0].Set(sspi.SECBUFFER_STREAM, stream)
	b[1].Set(sspi.SECBUFFER_DATA, []byte{})
	var qop uint32
	if ret := sspi.DecryptMessage(m.ctx.Handle, sspi.NewSecBufferDesc(b[:]), m.in, &qop); ret != sspi.SEC_E_OK {
		return nil, fmt.Errorf("wsman: unseal: %w", ret)
	}
	m.in++
	const unencrypted = 0x80000001 // SECQOP_WRAP_NO_ENCRYPT
	if qop == unencrypted {
		return nil, errors.New("wsman: the server signed its answer but did not seal it")
	}
	return append([]byte(nil), b[1].Bytes()...), nil
}

func (m *sspiMechanism) Close() error {
	if m.closed {
		return nil
	}
	m.closed = true
	return errors.Join(m.ctx.Release(), m.cred.Release())
}
