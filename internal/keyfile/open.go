package keyfile

import (
	"bytes"
	"context"
	"strings"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// maxKeyFile bounds the file of a key, of whatever kind, in bytes.
const maxKeyFile = maxBlock

// Options say how a key is opened.
type Options struct {
	// Passphrase is asked if the key is sealed; nil means that nobody can be asked.
	Passphrase Passphrase
	// Timeout bounds one call of an external key store; 0 = 30 s, at most 5 min.
	Timeout time.Duration
}

// Validate checks the ranges.
func (o Options) Validate() error {
	if o.Timeout < 0 || o.Timeout > 5*time.Minute {
		return invalid("keyfile.Options", "the time limit %v of the key store is not within 0 and 5 minutes", o.Timeout)
	}
	return nil
}

const (
	credentialScheme = "credential:"
	execScheme       = "exec:"
)

// Open opens a private key, wherever it is kept:
//
//	/path/of/a/file             a plain or sealed key file
//	credential:NAME             the same text as a credential of the service (systemd)
//	exec:/path/of/program args  an external key store; see Store
//
// A program and a credential are never taken for a file: write ./exec:x for a
// file of such a name. Errors: no such file is dr.KindNotFound; a plain key that others
// can read is dr.CodeKeyFileExposed; a sealed key without a passphrase
// dr.CodeKeySealed, with a wrong one dr.CodePassphraseWrong; damage dr.CodeKeyFileDamaged.
func Open(ctx context.Context, source string, opt Options) (cut.KeyOpener, error) {
	if cmd, ok := strings.CutPrefix(source, execScheme); ok {
		return OpenStore(ctx, cmd, opt)
	}
	key, err := Load(ctx, source, opt)
	if err != nil {
		return nil, err
	}
	return key, nil
}

// Load is Open for what gives the key itself: everything but an external key
// store, which is dr.KindUnsupported.
func Load(ctx context.Context, source string, opt Options) (cut.VaultPrivateKey, error) {
	const op = "keyfile.Load"
	fail := func(err error) (cut.VaultPrivateKey, error) { return cut.VaultPrivateKey{}, err }
	if err := opt.Validate(); err != nil {
		return fail(err)
	}
	if strings.HasPrefix(source, execScheme) {
		return fail(dr.Errorf(dr.KindUnsupported, op, "an external key store does not give its key away").
			WithHint("Use the key file, or the shares, for what needs the private key itself."))
	}
	text, err := readKey(op, source)
	if err != nil {
		return fail(err)
	}
	defer wipe(text)
	key, err := Decode(ctx, text, opt.Passphrase)
	if err != nil {
		return fail(inFile(source, err))
	}
	return key, nil
}

// readKey reads the text of a key. Only a sealed one may be readable by others.
func readKey(op, source string) ([]byte, error) {
	const what = "key file"
	if name, ok := strings.CutPrefix(source, credentialScheme); ok {
		return readCredential(op, name, maxKeyFile)
	}
	f, info, err := openRegular(op, what, source)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readLimited(op, what, f, source, maxKeyFile)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(op, what, source, info); err != nil && !isSealed(text) {
		wipe(text)
		return nil, err
	}
	return text, nil
}

// isSealed reports whether the text is that of a sealed key, whole or not.
func isSealed(text []byte) bool {
	for l := range bytes.Lines(text) {
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' {
			return bytes.HasPrefix(l, []byte(strings.TrimSuffix(sealedWhat, "1")))
		}
	}
	return false
}

// Decode opens the text of a plain or sealed key file. pass is asked once and
// only for a sealed key that is whole; nil means that nobody can be asked.
func Decode(ctx context.Context, text []byte, pass Passphrase) (cut.VaultPrivateKey, error) {
	const op = "keyfile.Decode"
	fail := func(err error) (cut.VaultPrivateKey, error) { return cut.VaultPrivateKey{}, err }
	if len(text) > maxKeyFile {
		return fail(invalid(op, "%d bytes are too many for a key", len(text)))
	}
	if !isSealed(text) {
		key, err := cut.ParseVaultPrivateKey(string(text))
		if err != nil && strings.Contains(string(text), privateLabel) {
			return fail(dr.New(dr.KindCorrupt, dr.CodeKeyFileDamaged, op, "the key is damaged: %w", err).
				WithHint("Use another copy of the key, or its shares."))
		}
		return key, err
	}
	k, err := parseSealed(op, text)
	if err != nil {
		return fail(err)
	}
	question := "Passphrase of vault key " + k.info.KeyID.String()
	if k.info.Vault != "" {
		question += " (" + k.info.Vault + ")"
	}
	if pass == nil {
		return fail(needPassphrase(op, question))
	}
	secret, err := pass(ctx, question+": ")
	if err != nil {
		return fail(err)
	}
	defer secret.Wipe()
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	return k.open(op, secret)
}

// inFile says in which file.
func inFile(source string, err error) error {
	return dr.New(dr.KindOf(err), dr.CodeOf(err), "keyfile.Load", "key %s: %w", source, err).WithHint("%s", dr.HintOf(err))
}
