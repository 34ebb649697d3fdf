// Command keystore is a complete program for the external key store protocol:
//
//	exec:/usr/local/bin/keystore /etc/holdfast/vault.key
//
// It keeps the vault's private key in a file, which is the place for the
// call of a hardware module or a key service: have that unwrap the text of the
// private key in line "raw", or open the wrap itself.
package main

import (
	"context"
	"encoding/json"
	"io"
	"os"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

type request struct {
	Version   int          `json:"version"`
	Operation string       `json:"operation"`
	Machine   dr.MachineID `json:"machine"`
	Epoch     uint32       `json:"epoch"`
	KeyID     string       `json:"keyId"`
	Wrap      []byte       `json:"wrap"`
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type answer struct {
	Version   int      `json:"version"`
	KeyID     string   `json:"keyId,omitempty"`
	PublicKey string   `json:"publicKey,omitempty"`
	EpochKey  []byte   `json:"epochKey,omitempty"`
	Error     *failure `json:"error,omitempty"`
}

func main() {
	a := run()
	a.Version = 1
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		os.Exit(1)
	}
}

func run() answer {
	fail := func(code, message string) answer { return answer{Error: &failure{code, message}} }
	var q request
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 1<<20)).Decode(&q); err != nil || q.Version != 1 {
		return fail("invalid", "the request is not one of protocol version 1")
	}
	if len(os.Args) != 2 {
		return fail("invalid", "want one argument: the file of the private key")
	}
	raw, err := os.ReadFile(os.Args[1])
	if err != nil {
		return fail("unavailable", "the private key can't be read")
	}
	key, err := cut.ParseVaultPrivateKey(string(raw))
	if err != nil {
		return fail("unavailable", "the private key can't be understood")
	}
	switch q.Operation {
	case "id":
		return answer{KeyID: key.KeyID().String(), PublicKey: key.Public().Text()}
	case "open":
		if q.KeyID != key.KeyID().String() {
			return fail("wrongKey", "this store has another key")
		}
		opened, err := key.OpenEpochKey(context.Background(), q.Machine, q.Epoch, q.Wrap)
		switch dr.CodeOf(err) {
		case "":
			if err != nil {
				return fail("invalid", "the request can't be served")
			}
			return answer{EpochKey: opened[:]}
		case dr.CodeKeyMismatch:
			return fail("wrongKey", "the data key is sealed to another vault key")
		}
		return fail("damaged", "the sealed data key does not open")
	}
	return fail("invalid", "unknown operation")
}
