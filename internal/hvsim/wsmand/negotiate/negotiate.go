// Package negotiate owns the sign-in by Negotiate as one HTTP connection of a
// server sees it, and the sealed messages that follow: NTLM as such or inside
// SPNEGO, and the multipart bodies of [MS-WSMV] 2.2.9.1.
//
// It promises: whoever fails a step or sends a message that can't be opened is
// signed in no longer; hostile tokens and bodies end in errors. It has no
// Kerberos, and no mechListMIC of SPNEGO: a client that insists on one, because
// it began with another mechanism, can't sign in that way.
package negotiate

import "holdfast/internal/cim/ntlm"

// Conn is the sign-in of one connection. It is not safe for concurrent use.
type Conn struct {
	server  *ntlm.Server // between challenge and answer
	session *ntlm.Session
	user    string
}

// User returns who is signed in, domain\user or the name alone; empty = nobody.
func (c *Conn) User() string { return c.user }

// Forget ends the sign-in.
func (c *Conn) Forget() { c.server, c.session, c.user = nil, nil, "" }

// Step takes one token of the client; cfg is needed for the first. done tells
// that the user is signed in; token is what the client gets, perhaps nil. After
// an error nobody is signed in.
func (c *Conn) Step(cfg ntlm.ServerConfig, data []byte) (token []byte, done bool, err error) {
	defer func() {
		if err != nil {
			c.Forget()
		}
	}()
	wrapped, first := !isNTLM(data), len(data) > 8 && data[8] == 1
	msg := data
	if wrapped {
		if first = len(data) > 0 && data[0] == tagInit; first {
			msg, err = parseInit(data)
		} else {
			msg, err = parseResp(data)
		}
		if err != nil {
			return nil, false, err
		}
		if first && msg == nil {
			c.Forget()
			token, err = encodeResp(stateIncomplete, nil) // "begin with NTLM"
			return token, false, err
		}
	}
	if first || c.server == nil {
		c.Forget() // a new sign-in, perhaps on a connection that had one
		c.server = ntlm.NewServer(cfg)
		token, err = c.server.Challenge(msg)
		if err == nil && wrapped {
			token, err = encodeResp(stateIncomplete, token)
		}
		return token, false, err
	}
	server := c.server
	c.server = nil
	user, err := server.Authenticate(msg)
	if err != nil {
		return nil, false, err
	}
	c.user, c.session = user, server.Session()
	if wrapped {
		token, err = encodeResp(stateCompleted, nil)
	}
	return token, true, err
}
