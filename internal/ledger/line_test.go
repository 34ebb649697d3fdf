package ledger

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		ok   bool
		kind Kind
		seq  uint64
	}{
		{"LEDGER-BOOT A valid=6277 last=6277 boot=1 tail=0 garbage=false\r", true, KindBoot, 0},
		{"LEDGER-CHAIN ok=true", true, KindChain, 0},
		{"LEDGER-ORDER delta=1 ok=true", true, KindOrder, 0},
		{"ACK 120 rate=20.0 p50=1.1ms max=9ms", true, KindAck, 120},
		{"FILL-DONE blocks=4096 took=812ms", true, KindFill, 0},
		{"LEDGER-STOP reason=terminated", true, KindStop, 0},
		{"LEDGER-FREEZE phase=thaw", true, KindFreeze, 0},
		{"ACK 12", false, "", 0},
		{"ACK 120 rate=20.0", false, "", 0},
		{"ACK 99999999999999999999 rate=20.0 p50=1.1ms max=9ms", false, "", 0},
		{"x ACK 120 rate=20.0 p50=1.1ms max=9ms", false, "", 0},
		{"ACK 12[    3.1] EXT4-fs error", false, "", 0},
		{"LEDGER-BOOT C valid=1 last=1 boot=1 tail=0 garbage=false", false, "", 0},
		{"LEDGER-ORDER delta=1", false, "", 0},
		{"LEDGER-ORDER delta=1 ok=true kernel: hello", false, "", 0},
		{"", false, "", 0},
	} {
		l, ok := ParseLine(c.in)
		if ok != c.ok || l.Kind != c.kind || l.Seq != c.seq {
			t.Errorf("%q: %+v %t", c.in, l, ok)
		}
	}
}

func TestRenderedLinesParse(t *testing.T) {
	t.Parallel()
	l, ok := ParseLine(AckLine(20, 19.96, 850*time.Microsecond, 12*time.Second))
	if !ok || l.Seq != 20 {
		t.Fatalf("%+v %t", l, ok)
	}
	for name, want := range map[string]time.Duration{"p50": 850 * time.Microsecond, "max": 12 * time.Second} {
		if d, err := time.ParseDuration(l.Fields[name]); err != nil || d != want {
			t.Errorf("%s: %v %v", name, d, err)
		}
	}
	l, ok = ParseLine(StopLine("write /disk: a=b\nno space “left”"))
	if !ok || l.Fields["reason"] != "write_/disk:_a:b_no_space__left_" {
		t.Errorf("%+v %t", l, ok)
	}
}

func TestBootLineParses(t *testing.T) {
	t.Parallel()
	l, ok := ParseLine(BootLine("B", Scan{Records: 7, Last: 7, Boot: 2, Tail: 5, Torn: true}))
	want := map[string]string{"valid": "7", "last": "7", "boot": "2", "tail": "5", "garbage": "false"}
	if !ok || l.Name != "B" || !reflect.DeepEqual(l.Fields, want) {
		t.Errorf("%+v %t", l, ok)
	}
}

const twoBoots = "SYSLINUX 6.04\r\n" +
	"LEDGER-BOOT A valid=0 last=0 boot=0 tail=0 garbage=false\r\nLEDGER-BOOT B valid=0 last=0 boot=0 tail=0 garbage=false\r\n" +
	"LEDGER-CHAIN ok=true\r\nLEDGER-ORDER delta=0 ok=true\r\nACK 20 rate=20.0 p50=1ms max=2ms\r\nACK 40 rate=20.0 p50=1ms max=2ms\r\n" +
	"LEDGER-FREEZE phase=freeze\r\nLEDGER-FREEZE phase=thaw\r\nFILL-DONE blocks=1 took=1ms\r\nLEDGER-STOP reason=terminated\r\n" +
	"LEDGER-BOOT A valid=51 last=51 boot=1 tail=0 garbage=false\r\nLEDGER-BOOT B valid=50 last=50 boot=1 tail=0 garbage=false\r\n" +
	"LEDGER-CHAIN ok=true\r\nLEDGER-ORDER delta=1 ok=true\r\n"

func TestReadConsole(t *testing.T) {
	t.Parallel()
	c, err := ReadConsole(strings.NewReader(twoBoots + "ACK 60 rate=20.0 p50=1ms max=2ms\r\nACK 80 rate=20.0 p50=1ms max=2"))
	want := Console{Boots: 2, Acked: 60, BootAcked: 60, Fills: 1, Freezes: 1, Order: true, Chain: true, FoundA: 51, FoundB: 50}
	if err != nil || c != want {
		t.Errorf("%+v %v, want %+v", c, err, want)
	}
	c, _ = ReadConsole(strings.NewReader(twoBoots))
	if c.Acked != 40 || c.BootAcked != 0 || c.Stopped != "" {
		t.Errorf("right after the second boot: %+v", c)
	}
}

func FuzzConsole(f *testing.F) {
	f.Add(twoBoots)
	f.Add("ACK 1 rate= p50= max=\nLEDGER-BOOT A valid=x last=-1 boot= tail= garbage=\n")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ReadConsole(strings.NewReader(s)); err != nil {
			t.Fatal(err)
		}
		if l, ok := ParseLine(s); ok && strings.ContainsAny(s, "\n\x00") {
			t.Fatalf("%q parsed as %+v", s, l)
		}
	})
}
