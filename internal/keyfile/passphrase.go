package keyfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"holdfast/internal/dr"
)

// Passphrase finds a passphrase when one is needed. question says what for, in
// words for people. The caller of the function wipes the Secret.
type Passphrase func(ctx context.Context, question string) (Secret, error)

// Prompt asks a person. read shows the question, does not echo the answer, and
// gives up its result.
func Prompt(read func(ctx context.Context, question string) ([]byte, error)) Passphrase {
	return func(ctx context.Context, question string) (Secret, error) {
		b, err := read(ctx, question)
		if err != nil {
			wipe(b)
			return Secret{}, dr.Errorf(dr.KindOf(err), "keyfile.Prompt", "ask for the passphrase: %w", err)
		}
		return usable("keyfile.Prompt", "the answer", b)
	}
}

// PassphraseFile reads a file that only its owner can read. One line end at its
// end is not part of the passphrase; more than one line is an error.
func PassphraseFile(path string) Passphrase {
	return func(context.Context, string) (Secret, error) {
		const op = "keyfile.PassphraseFile"
		b, err := readPrivate(op, "passphrase file", path, maxPassphrase+2, true)
		if err != nil {
			return Secret{}, err
		}
		return usable(op, "the passphrase file "+path, b)
	}
}

// PassphraseEnv reads the environment variable of that name. It stays in the
// environment, where Go can't wipe it and child processes see it.
func PassphraseEnv(name string) Passphrase {
	return func(context.Context, string) (Secret, error) {
		const op = "keyfile.PassphraseEnv"
		v, ok := os.LookupEnv(name)
		if !ok {
			return Secret{}, dr.New(dr.KindInvalid, dr.CodeKeySealed, op, "the environment variable %s, which should hold the passphrase, is not set", name)
		}
		return usable(op, "the environment variable "+name, []byte(v))
	}
}

// PassphraseCredential reads a credential that systemd gave to the service
// (LoadCredential= or LoadCredentialEncrypted=) from $CREDENTIALS_DIRECTORY.
// The service manager guards that directory, so modes are not looked at.
func PassphraseCredential(name string) Passphrase {
	return func(context.Context, string) (Secret, error) {
		const op = "keyfile.PassphraseCredential"
		b, err := readCredential(op, name, maxPassphrase+2)
		if err != nil {
			return Secret{}, err
		}
		return usable(op, "the credential "+name, b)
	}
}

var (
	envName        = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	credentialName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}$`)
)

// ParsePassphrase reads the value of a flag that says where the passphrase is:
// "prompt" (or nothing), "file:PATH", "env:NAME" or "credential:NAME". prompt may be
// nil where nobody can be asked. A passphrase itself is refused, and not
// repeated in the error.
func ParsePassphrase(text string, prompt Passphrase) (Passphrase, error) {
	const op = "keyfile.ParsePassphrase"
	scheme, rest, _ := strings.Cut(text, ":")
	switch {
	case text == "" || text == "prompt":
		if prompt == nil {
			prompt = nobodyToAsk
		}
		return prompt, nil
	case scheme == "file" && rest != "":
		return PassphraseFile(rest), nil
	case scheme == "env" && envName.MatchString(rest):
		return PassphraseEnv(rest), nil
	case scheme == "credential" && credentialName.MatchString(rest):
		return PassphraseCredential(rest), nil
	}
	return nil, invalid(op, "the place of the passphrase is not \"prompt\", \"file:PATH\", \"env:NAME\" or \"credential:NAME\"").
		WithHint("The passphrase itself is never given on the command line, where every user of the machine can read it. If it was, choose a new one.")
}

func nobodyToAsk(_ context.Context, question string) (Secret, error) {
	return Secret{}, needPassphrase("keyfile.Prompt", question)
}

func needPassphrase(op, what string) error {
	return dr.New(dr.KindUnauthenticated, dr.CodeKeySealed, op, "%s: a passphrase is needed and there is nobody to ask", strings.TrimRight(what, ":? ")).
		WithHint("Say where the passphrase is: a file that only the service can read, an environment variable, or a systemd credential.")
}

// usable makes a passphrase of what was read.
func usable(op, where string, b []byte) (Secret, error) {
	p := trimLine(b)
	if len(p) == 0 || len(p) > maxPassphrase || strings.ContainsAny(string(p), "\n\r\x00") {
		wipe(b)
		return Secret{}, invalid(op, "%s holds no passphrase of one line and 1 to %d bytes", where, maxPassphrase)
	}
	return NewSecret(p), nil
}

// readCredential reads a systemd credential of at most limit bytes.
func readCredential(op, name string, limit int64) ([]byte, error) {
	if !credentialName.MatchString(name) {
		return nil, invalid(op, "%q is not the name of a credential", name)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		return nil, dr.Errorf(dr.KindPrecondition, op, "credential %q: the service manager has given no credentials to this process", name).
			WithHint("Add LoadCredential=%s:/path/of/the/file to the unit. It works in a systemd service only.", name)
	}
	b, err := readPrivate(op, "credential", filepath.Join(dir, name), limit, false)
	if dr.KindOf(err) == dr.KindNotFound {
		var e *dr.Error
		if errors.As(err, &e) {
			return nil, e.WithHint("Add LoadCredential=%s:/path/of/the/file to the unit.", name)
		}
	}
	return b, err
}
