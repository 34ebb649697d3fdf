package ledger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Kind is the first word of a console line of the guest program.
type Kind string

// The lines, one form each. Durations are Go durations.
//
//	LEDGER-BOOT A valid=6277 last=6277 boot=2 tail=0 garbage=false   one per file, A then B; boot is that of the last record
//	LEDGER-CHAIN ok=true
//	LEDGER-ORDER delta=1 ok=true                                     the last of the boot lines
//	ACK 6300 rate=20.0 p50=1.100ms max=7.930ms                       every 20 records
//	FILL-DONE blocks=4096 took=812ms
//	LEDGER-FREEZE phase=freeze                                       the guest agent's hook: freeze or thaw
//	LEDGER-STOP reason=…                                             a clean stop, or why nothing is written any more
const (
	KindBoot   Kind = "LEDGER-BOOT"
	KindChain  Kind = "LEDGER-CHAIN"
	KindOrder  Kind = "LEDGER-ORDER"
	KindAck    Kind = "ACK"
	KindFill   Kind = "FILL-DONE"
	KindFreeze Kind = "LEDGER-FREEZE"
	KindStop   Kind = "LEDGER-STOP"
)

// AckEvery is the number of records between two ACK lines.
const AckEvery = 20

var lineRE = regexp.MustCompile(`^(LEDGER-BOOT [AB]|LEDGER-CHAIN|LEDGER-ORDER|ACK [0-9]{1,19}|FILL-DONE|LEDGER-FREEZE|LEDGER-STOP)((?: [a-z0-9]+=[!-<>-~]+)+)$`)

// required names the fields without which a line was not written whole.
var required = map[Kind][]string{
	KindBoot:   {"valid", "last", "boot", "tail", "garbage"},
	KindChain:  {"ok"},
	KindOrder:  {"delta", "ok"},
	KindAck:    {"rate", "p50", "max"},
	KindFill:   {"blocks", "took"},
	KindFreeze: {"phase"},
	KindStop:   {"reason"},
}

// Line is one line of the guest program on the console.
type Line struct {
	Kind   Kind
	Name   string            // LEDGER-BOOT: A or B
	Seq    uint64            // ACK: every record up to it is durable in both files
	Fields map[string]string // the name=value words
}

// ParseLine reads one console line without its line end. It says false for
// anything that is not a whole line of the guest program, e.g. one that a kernel message tore.
func ParseLine(s string) (Line, bool) {
	m := lineRE.FindStringSubmatch(strings.TrimRight(s, "\r"))
	if m == nil {
		return Line{}, false
	}
	kind, arg, _ := strings.Cut(m[1], " ")
	l := Line{Kind: Kind(kind), Fields: map[string]string{}}
	switch l.Kind {
	case KindBoot:
		l.Name = arg
	case KindAck:
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return Line{}, false
		}
		l.Seq = n
	}
	for w := range strings.FieldsSeq(m[2]) {
		k, v, _ := strings.Cut(w, "=")
		l.Fields[k] = v
	}
	for _, f := range required[l.Kind] {
		if _, ok := l.Fields[f]; !ok {
			return Line{}, false
		}
	}
	return l, true
}

// BootLine renders what the scan of file "A" or "B" found.
func BootLine(name string, s Scan) string {
	return fmt.Sprintf("%s %s valid=%d last=%d boot=%d tail=%d garbage=%t", KindBoot, name, s.Records, s.Last, s.Boot, s.Tail, s.Garbage)
}

// AckLine renders that all records up to seq are durable; rate is records per
// second, p50 and longest are how long appending one took since the last such line.
func AckLine(seq uint64, rate float64, p50, longest time.Duration) string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 } // Duration's own text may hold a µ
	return fmt.Sprintf("%s %d rate=%.1f p50=%.3fms max=%.3fms", KindAck, seq, rate, ms(p50), ms(longest))
}

// StopLine renders why nothing is written any more; the reason's blanks and foreign characters are replaced.
func StopLine(reason string) string {
	return fmt.Sprintf("%s reason=%s", KindStop, strings.Map(func(r rune) rune {
		switch {
		case r == '=':
			return ':'
		case r > ' ' && r <= '~':
			return r
		}
		return '_'
	}, reason))
}

// Console is what a guest's console file tells, over all of its boots.
type Console struct {
	Boots     int    // number of LEDGER-ORDER lines
	Acked     uint64 // last ACK, 0 if none
	Fills     int    // number of FILL-DONE lines
	Freezes   int    // number of LEDGER-FREEZE phase=freeze lines
	Order     bool   // the last LEDGER-ORDER said ok
	Chain     bool   // the last LEDGER-CHAIN said ok
	FoundA    uint64 // last record found at the last boot in A
	FoundB    uint64 // and in B
	Stopped   string // reason of a LEDGER-STOP after the last boot, else empty
	BootAcked uint64 // last ACK since the last boot, 0 if none yet
}

// ReadConsole reads a console file. A last line without its end is ignored, since it may be half written.
func ReadConsole(r io.Reader) (Console, error) {
	var c Console
	br := bufio.NewReader(r)
	for {
		s, err := br.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("read console: %w", err)
		}
		if l, ok := ParseLine(strings.TrimSuffix(s, "\n")); ok {
			c.add(l)
		}
	}
}

func (c *Console) add(l Line) {
	switch l.Kind {
	case KindBoot:
		last, err := strconv.ParseUint(l.Fields["last"], 10, 64)
		if err != nil {
			return
		}
		if l.Name == "A" {
			c.FoundA = last
		} else {
			c.FoundB = last
		}
	case KindChain:
		c.Chain = l.Fields["ok"] == "true"
	case KindOrder:
		c.Order = l.Fields["ok"] == "true"
		c.Boots++
		c.BootAcked, c.Stopped = 0, ""
	case KindAck:
		c.Acked, c.BootAcked = l.Seq, l.Seq
	case KindFill:
		c.Fills++
	case KindFreeze:
		if l.Fields["phase"] == "freeze" {
			c.Freezes++
		}
	case KindStop:
		c.Stopped = l.Fields["reason"]
	}
}

// ControlPort is the name of the virtio-serial port on which the guest
// program takes requests; the guest program's comment lists them.
const ControlPort = "org.holdfast.ledger.0"
