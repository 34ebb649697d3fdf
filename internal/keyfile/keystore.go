package keyfile

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// Version of the protocol with the program of an external key store.
const storeProtocol = 1

const (
	storeTimeout = 30 * time.Second
	maxAnswer    = 64 << 10 // bytes
	maxWrap      = 16 << 10 // bytes of a sealed key that are handed over
	maxStoreText = 200      // characters of the program's message that are repeated
)

// Store is a vault key that is kept by another program: the way to hardware
// modules and key services. Holdfast never sees the private key, only the epoch
// keys that the program opens with it. It is safe for concurrent use; every call
// runs the program once.
//
// The protocol, version 1. The program is started without a shell, in a process
// group of its own, with this process's environment. It reads one JSON object
// from standard input up to its end, writes one JSON object to standard output and
// exits with 0, all within the time limit (30 s); then the group is killed.
// Standard output is bounded to 64 KiB, standard error is thrown away, and
// neither is logged. Unknown members are ignored on both sides.
//
//	request  {"version":1,"operation":"id"}
//	answer   {"version":1,"keyId":"32 hexadecimal digits","publicKey":"holdfast-vault-public-key-1:..."}
//
//	request  {"version":1,"operation":"open","machine":"UUID","epoch":N,"keyId":"...","wrap":"base64"}
//	answer   {"version":1,"epochKey":"base64 of 32 bytes"}
//
//	failure  {"version":1,"error":{"code":"...","message":"..."}}
//
// publicKey may be missing. wrap is the sealed epoch key as it is in the store;
// docs/store-format.md has its bytes, and testdata/keystore is a complete program.
// The codes: "unavailable" (ask again later), "denied" (not for this caller),
// "wrongKey" (sealed to another key), "damaged" (the wrap does not open); any other
// is a failure of the program. The message is shown to people and holds no secret.
type Store struct {
	path    string
	args    []string
	timeout time.Duration
	id      cut.KeyID
	public  cut.VaultPublicKey
}

type storeRequest struct {
	Version   int          `json:"version"`
	Operation string       `json:"operation"`
	Machine   dr.MachineID `json:"machine,omitempty"`
	Epoch     *uint32      `json:"epoch,omitempty"`
	KeyID     string       `json:"keyId,omitempty"`
	Wrap      []byte       `json:"wrap,omitempty"`
}

type storeAnswer struct {
	Version   int           `json:"version"`
	KeyID     string        `json:"keyId"`
	PublicKey string        `json:"publicKey"`
	EpochKey  base64Secret  `json:"epochKey"`
	Error     *storeFailure `json:"error"`
}

// storeFailure is what the program says of itself.
type storeFailure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// base64Secret decodes base64 into memory that is wiped, and never shows it:
// json's own errors would quote what they do not understand.
type base64Secret struct{ Secret }

func (s *base64Secret) UnmarshalJSON(b []byte) error {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return errors.New("not a string")
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)-2))
	n, err := base64.StdEncoding.Strict().Decode(out, b[1:len(b)-1])
	if err != nil {
		wipe(out)
		return errors.New("not base64")
	}
	s.Secret = NewSecret(out[:n])
	return nil
}

// OpenStore starts to use the external key store whose command is given: the
// absolute path of a program and its arguments, separated by spaces; double
// quotes keep spaces together and there is no other quoting. The program is
// asked for the id of its key. It must not be writable by others.
func OpenStore(ctx context.Context, command string, opt Options) (*Store, error) {
	const op = "keyfile.OpenStore"
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	argv, err := splitCommand(command)
	if err != nil || len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return nil, invalid(op, "the command of the key store is not the absolute path of a program and its arguments").
			WithHint("Write exec:/path/of/the/program and its arguments, with spaces between them and double quotes around what has spaces. Secrets do not belong there.")
	}
	s := &Store{path: argv[0], args: argv[1:], timeout: opt.Timeout}
	if s.timeout == 0 {
		s.timeout = storeTimeout
	}
	f, info, err := openRegular(op, "program", s.path)
	if err != nil && dr.KindOf(err) != dr.KindForbidden { // it may be executable and not readable
		return nil, err
	}
	if err == nil {
		f.Close()
		if !executable(info) {
			return nil, dr.Errorf(dr.KindPrecondition, op, "the program %s can't be executed (mode %04o)", s.path, info.Mode().Perm()).WithHint("Run: chmod 755 %s", s.path)
		}
		if writableByOthers(info) {
			return nil, dr.New(dr.KindForbidden, dr.CodeKeyFileExposed, op, "others can change the program %s (mode %04o)", s.path, info.Mode().Perm()).
				WithHint("Run: chmod 755 %s. Look at what is in it first: it sees every data key.", s.path)
		}
	}
	a, err := s.call(ctx, op, storeRequest{Operation: "id"})
	if err != nil {
		return nil, err
	}
	if err := s.id.UnmarshalText([]byte(a.KeyID)); err != nil {
		return nil, s.failed(op, "it names no key")
	}
	if a.PublicKey != "" {
		if s.public, err = cut.ParseVaultPublicKey(a.PublicKey); err != nil || s.public.KeyID() != s.id {
			return nil, s.failed(op, "its public key is not that of the key it names")
		}
	}
	return s, nil
}

// ID returns the id of the key.
func (s *Store) ID() cut.KeyID { return s.id }

// Public returns the public key, or the zero key if the program does not tell it.
func (s *Store) Public() cut.VaultPublicKey { return s.public }

// String names the program, without its arguments.
func (s Store) String() string { return fmt.Sprintf("key store %s with key %s", s.path, s.id) }

// Format hides the arguments under every verb.
func (s Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue hides the arguments from slog.
func (s Store) LogValue() slog.Value { return slog.StringValue(s.String()) }

// OpenEpochKey has the program open a sealed epoch key. Whether the answer is
// the right key shows when a segment is opened with it: dr.CodeKeyMismatch then.
//
// Errors: a program that can't be started, that fails, is too slow or talks
// nonsense is dr.CodeKeyStoreFailed with dr.KindUnavailable; what it says itself:
// "wrongKey" is dr.CodeKeyMismatch, "damaged" dr.CodeObjectCorrupt, "denied"
// dr.KindForbidden.
func (s *Store) OpenEpochKey(ctx context.Context, machine dr.MachineID, epoch uint32, wrap []byte) (cut.EpochKey, error) {
	const op = "keyfile.OpenEpochKey"
	if len(wrap) == 0 || len(wrap) > maxWrap {
		return cut.EpochKey{}, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, op, "the sealed key of epoch %d of machine %s has %d bytes", epoch, machine, len(wrap))
	}
	a, err := s.call(ctx, op, storeRequest{Operation: "open", Machine: machine, Epoch: &epoch, KeyID: s.id.String(), Wrap: wrap})
	if err != nil {
		return cut.EpochKey{}, err
	}
	defer a.EpochKey.Wipe()
	var key cut.EpochKey
	if a.EpochKey.Len() != len(key) {
		return cut.EpochKey{}, s.failed(op, "its answer is not a key of %d bytes", len(key))
	}
	copy(key[:], a.EpochKey.Bytes())
	if key == (cut.EpochKey{}) {
		return cut.EpochKey{}, s.failed(op, "its answer is a key of zeros")
	}
	return key, nil
}

func (s *Store) failed(op, format string, args ...any) *dr.Error {
	return dr.New(dr.KindUnavailable, dr.CodeKeyStoreFailed, op, "the key store %s failed: %s", s.path, fmt.Sprintf(format, args...)).
		WithHint("Run the program by hand as the same user, with a request on its standard input; docs/keys.md shows one.")
}

var errAnswerTooLong = errors.New("the answer is too long")

// boundedBuffer ends the program when it writes more than allowed. Its memory is of
// full size from the start, so that no copies of secrets are left behind.
type boundedBuffer struct {
	b    []byte
	full context.CancelCauseFunc
}

func (w *boundedBuffer) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxAnswer {
		w.full(errAnswerTooLong)
		return 0, errAnswerTooLong
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

// call runs the program once.
func (s *Store) call(ctx context.Context, op string, req storeRequest) (a storeAnswer, err error) {
	req.Version = storeProtocol
	in, err := json.Marshal(req)
	if err != nil {
		return a, dr.Errorf(dr.KindInternal, op, "encode request: %w", err)
	}
	callCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	callCtx, full := context.WithCancelCause(callCtx)
	defer full(nil)
	out := &boundedBuffer{b: make([]byte, 0, maxAnswer), full: full}
	defer func() { wipe(out.b[:cap(out.b)]) }()

	cmd := exec.CommandContext(callCtx, s.path, s.args...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(append(in, '\n')), out
	cmd.WaitDelay = time.Second // for children that keep the pipes open
	killAll(cmd)
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return a, ctx.Err()
	case errors.Is(context.Cause(callCtx), errAnswerTooLong):
		return a, s.failed(op, "its answer has more than %d bytes", maxAnswer)
	case callCtx.Err() != nil:
		return a, s.failed(op, "no answer within %v", s.timeout)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return a, s.failed(op, "%v", err) // could not be started, or left children behind
	}
	// A program that fails properly says why, whatever its exit code.
	if perr := decodeAnswer(out.b, &a); perr != nil {
		if exit != nil {
			return a, s.failed(op, "it ended with %v and no answer", exit.ProcessState)
		}
		return a, s.failed(op, "%s", perr)
	}
	if a.Error != nil {
		a.EpochKey.Wipe()
		return a, s.refusal(op, *a.Error)
	}
	if exit != nil {
		a.EpochKey.Wipe()
		return a, s.failed(op, "it ended with %v", exit.ProcessState)
	}
	return a, nil
}

// decodeAnswer parses what a program wrote. Errors show nothing of it.
func decodeAnswer(b []byte, a *storeAnswer) error {
	*a = storeAnswer{}
	if err := json.Unmarshal(b, a); err != nil {
		a.EpochKey.Wipe()
		return errors.New("its answer is not a JSON object of the protocol")
	}
	if a.Version != storeProtocol {
		a.EpochKey.Wipe()
		return fmt.Errorf("it answers in version %d of the protocol, want %d", a.Version, storeProtocol)
	}
	return nil
}

func (s *Store) refusal(op string, f storeFailure) error {
	said := "the key store " + s.path + " says: " + printable(f.Message)
	switch f.Code {
	case "denied":
		return dr.New(dr.KindForbidden, dr.CodeKeyStoreFailed, op, "%s", said).WithHint("Give this host or user the right to use the key, in the key store.")
	case "wrongKey":
		return dr.New(dr.KindForbidden, dr.CodeKeyMismatch, op, "%s", said)
	case "damaged":
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, op, "%s", said)
	}
	return dr.New(dr.KindUnavailable, dr.CodeKeyStoreFailed, op, "%s", said).WithHint("See the key store's own log.")
}

// printable makes a foreign message fit for a log line.
func printable(s string) string {
	r := []rune(strings.ToValidUTF8(s, "?"))
	if len(r) > maxStoreText {
		r = append(r[:maxStoreText], '…')
	}
	for i, c := range r {
		if !unicode.IsPrint(c) {
			r[i] = ' '
		}
	}
	return strings.TrimSpace(string(r))
}

// splitCommand splits at spaces; double quotes keep spaces together.
func splitCommand(s string) ([]string, error) {
	var argv []string
	var arg strings.Builder
	begun, quoted := false, false
	for _, c := range s {
		switch {
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				argv = append(argv, arg.String())
			}
			arg.Reset()
			begun = false
		case c == 0:
			return nil, errors.New("zero byte")
		default:
			arg.WriteRune(c)
			begun = true
		}
	}
	if quoted {
		return nil, errors.New("a quote is open")
	}
	if begun {
		argv = append(argv, arg.String())
	}
	return argv, nil
}
