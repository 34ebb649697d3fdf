package keyfile

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
)

// A block is the text form that sealed keys and shares have in common:
//
//	# comment lines and blank lines mean nothing and may be anywhere
//	holdfast-WHAT-VERSION
//	name: value
//	name: GROU PSOF BASE 32 -CHEK
//	checksum: 16 hexadecimal digits
//
// The fields of a kind come in a fixed order. A field whose value is long goes on
// in further lines of the same name. Bytes are base32 (RFC 4648, A-Z and 2-7,
// no padding) in lines of at most 20 bytes, each ending in a check of its own
// (20 bits), so that a typing error is found in its line. The checksum is
// the first 8 bytes of the SHA-256 of the lines before it, as block.text renders them:
// single spaces, "\n" behind each, no comments. No line has more than 64 characters.
type block struct {
	what  string // header line
	lines []line
}

type line struct{ name, value string }

const (
	maxBlock    = 16 << 10 // bytes of text, comments included
	lineWidth   = 64
	lineBytes   = 20
	checkChars  = 4
	checksumLen = 8
	checksum    = "checksum"
)

// isBytes reports whether a field, of whatever kind of block, holds bytes.
func isBytes(name string) bool { return name == "salt" || name == "sealed" || name == "value" }

var b32 = base32.StdEncoding.WithPadding(base32.NoPadding)

func (b *block) add(name, value string) { b.lines = append(b.lines, line{name, value}) }

// addLong adds a value without spaces over as many lines as it needs.
func (b *block) addLong(name, value string) {
	for width := lineWidth - len(name) - 2; len(value) > width; value = value[width:] {
		b.add(name, value[:width])
	}
	b.add(name, value)
}

// addBytes adds bytes in groups of base32 with a check in every line.
func (b *block) addBytes(name string, raw []byte) {
	for i := 1; len(raw) > 0; i++ {
		n := min(len(raw), lineBytes)
		b.add(name, renderBytes(name, i, raw[:n]))
		raw = raw[n:]
	}
}

func renderBytes(name string, i int, raw []byte) string {
	var b strings.Builder
	s := b32.EncodeToString(raw)
	for at := 0; at < len(s); at += 4 {
		if at > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s[at:min(at+4, len(s))])
	}
	return b.String() + " -" + lineCheck(name, i, raw)
}

// lineCheck is a checksum of a line of bytes at its place. It is made of what the
// line shows, so it tells nothing more.
func lineCheck(name string, i int, raw []byte) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "holdfast v1 line %s %d %x", name, i, raw))
	return b32.EncodeToString(sum[:])[:checkChars]
}

// text renders the header line and the fields; the checksum and, for sealed keys,
// the cipher cover exactly these bytes.
func (b *block) text() []byte {
	out := append([]byte(b.what), '\n')
	for _, l := range b.lines {
		out = fmt.Appendf(out, "%s: %s\n", l.name, l.value)
	}
	return out
}

// seal renders the whole block behind comment lines.
func (b *block) seal(comments ...string) []byte {
	var out []byte
	for _, c := range comments {
		out = append(append(append(out, "# "...), c...), '\n')
	}
	body := b.text()
	sum := sha256.Sum256(body)
	return fmt.Appendf(append(out, body...), "%s: %s\n", checksum, hex.EncodeToString(sum[:checksumLen]))
}

// problem is what is wrong with a block: damaged ones were once right.
type problem struct {
	damaged     bool
	unsupported bool
	text        string
}

func (p *problem) Error() string { return p.text }

func damaged(format string, args ...any) error {
	return &problem{damaged: true, text: fmt.Sprintf(format, args...)}
}

// parseBlock parses a block whose header line is what. Problems never show
// values, which may be secret.
func parseBlock(what string, text []byte) (*block, error) {
	if len(text) > maxBlock {
		return nil, &problem{text: fmt.Sprintf("%d bytes are too many for a key", len(text))}
	}
	b := &block{}
	number, sum := 0, ""
	for raw := range strings.Lines(string(text)) {
		number++
		l := strings.Join(strings.Fields(raw), " ")
		switch {
		case l == "" || l[0] == '#':
			continue
		case b.what == "":
			if l != what {
				return nil, foreign(what, l)
			}
			b.what = l
			continue
		case sum != "":
			return nil, damaged("line %d stands behind the checksum, which is the last line", number)
		}
		name, value, ok := strings.Cut(l, ": ")
		switch {
		case !ok || name == "" || strings.ContainsRune(name, ' '):
			return nil, damaged("line %d is not of the form \"name: value\"", number)
		case strings.ContainsFunc(l, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }):
			return nil, damaged("line %d has characters that do not belong there", number)
		case name == checksum:
			sum = strings.ToLower(value)
			continue
		case name == "key" || name == "set":
			value = strings.ToLower(value)
		case isBytes(name):
			raw, ok := parseBytes(name, b.count(name)+1, value)
			if !ok {
				return nil, damaged("line %d, which begins with %q, has a typing error", number, name)
			}
			value = renderBytes(name, b.count(name)+1, raw)
			wipe(raw)
		}
		b.add(name, value)
	}
	switch {
	case b.what == "":
		return nil, &problem{text: fmt.Sprintf("it has no line %q", what)}
	case sum == "":
		return nil, damaged("its end is missing: there is no line %q", checksum)
	}
	if want := sha256.Sum256(b.text()); sum != hex.EncodeToString(want[:checksumLen]) {
		return nil, damaged("its checksum does not match: it was altered, or has a typing error")
	}
	return b, nil
}

func foreign(what, have string) error {
	stem := what[:strings.LastIndexByte(what, '-')+1]
	if v, ok := strings.CutPrefix(have, stem); ok && v != "" && len(v) < 6 && strings.Trim(v, "0123456789") == "" {
		return &problem{unsupported: true, text: fmt.Sprintf("it is of version %s; this program knows version %s", v, strings.TrimPrefix(what, stem))}
	}
	return &problem{text: fmt.Sprintf("it does not begin with %q", what)}
}

// count returns how many lines at the end have the name.
func (b *block) count(name string) (n int) {
	for i := len(b.lines); i > 0 && b.lines[i-1].name == name; i-- {
		n++
	}
	return n
}

// take removes the lines of a field from the front and joins their values.
func (b *block) take(name string) string {
	var parts []string
	for len(b.lines) > 0 && b.lines[0].name == name {
		parts = append(parts, b.lines[0].value)
		b.lines = b.lines[1:]
	}
	return strings.Join(parts, "")
}

// takeBytes removes the lines of a field of bytes from the front and decodes them.
func (b *block) takeBytes(name string) (out []byte) {
	for i := 1; len(b.lines) > 0 && b.lines[0].name == name; i++ {
		raw, _ := parseBytes(name, i, b.lines[0].value) // parseBlock has seen that it is right
		out = append(out, raw...)
		wipe(raw)
		b.lines = b.lines[1:]
	}
	return out
}

// likely takes what a reader may see for a letter that the alphabet has.
var likely = strings.NewReplacer(" ", "", "0", "O", "1", "I", "8", "B")

// parseBytes decodes one line of bytes, whatever its case and its spaces.
func parseBytes(name string, i int, value string) ([]byte, bool) {
	text, check, ok := strings.Cut(strings.ToUpper(likely.Replace(value)), "-")
	raw, err := b32.DecodeString(text)
	if !ok || err != nil || len(raw) == 0 || len(raw) > lineBytes || lineCheck(name, i, raw) != check || b32.EncodeToString(raw) != text {
		return nil, false
	}
	return raw, true
}
