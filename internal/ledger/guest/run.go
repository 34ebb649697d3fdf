//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/ledger"
)

// load holds what a test may change at run time.
type load struct {
	rate, churn atomic.Int64 // per second
	last, boot  atomic.Uint64
	dataDir     string
	filling     sync.Mutex
}

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
}

// bootLines renders what was found, LEDGER-ORDER last.
func bootLines(o ledger.Opening) []string {
	return []string{
		ledger.BootLine("A", o.A),
		ledger.BootLine("B", o.B),
		fmt.Sprintf("%s ok=%t", ledger.KindChain, o.Verdict.ChainOK),
		fmt.Sprintf("%s delta=%d ok=%t", ledger.KindOrder, int64(o.A.Last-o.B.Last), o.Verdict.OrderOK),
	}
}

// stop prints why nothing is written any more.
func stop(reason string) { say(ledger.StopLine(reason)) }

// runLedger is "ledger run A B [rate]". It returns after SIGTERM or if the
// files are unsound or cannot be written.
func runLedger(args []string) error {
	words := kernelWords()
	l := &load{dataDir: "/disk/data"}
	l.rate.Store(words.number("rate", 20))
	l.churn.Store(words.number("churn", 0))
	if len(args) > 2 {
		n, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("rate %q is not a number", args[2])
		}
		l.rate.Store(n)
	}
	a, err := openFile(args[0])
	if err != nil {
		stop(err.Error())
		return err
	}
	defer a.Close()
	b, err := openFile(args[1])
	if err != nil {
		stop(err.Error())
		return err
	}
	defer b.Close()
	if words.has("verify") {
		return verifyAndPowerOff(args[0], args[1])
	}
	syncDirs(args[:2])
	pair, o, err := ledger.OpenPair(a, b)
	if err != nil && !errors.Is(err, ledger.ErrUnsound) {
		stop(err.Error())
		return err
	}
	say(bootLines(o)...)
	if err != nil {
		stop(err.Error())
		return err
	}
	l.boot.Store(pair.Boot())
	l.last.Store(pair.Last())

	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	// These end with the process; the console shows what they achieved.
	go l.churnForever()
	go l.serveSocket()
	go l.servePort()
	if n := words.number("fill", 0); n > 0 {
		go func() {
			if line, err := l.fill(n); err != nil {
				stop("fill: " + err.Error())
			} else {
				say(line)
			}
		}()
	}
	return l.write(pair, term)
}

// write appends records at the wanted rate and acknowledges every 20th.
func (l *load) write(pair *ledger.Pair, term <-chan os.Signal) error {
	var lat []time.Duration
	since := time.Now()
	next := since
	for {
		rate := l.rate.Load()
		step := 100 * time.Millisecond
		if rate > 0 {
			step = time.Second / time.Duration(rate)
		}
		next = next.Add(step)
		if late := time.Since(next); late > time.Second {
			next = next.Add(late) // after a pause go on at the rate, don't hurry
		}
		select {
		case <-term:
			stop("terminated")
			return nil
		case <-time.After(time.Until(next)):
		}
		if rate <= 0 {
			continue
		}
		t := time.Now()
		n, err := pair.Append(t)
		if err != nil {
			stop(err.Error())
			return err
		}
		l.last.Store(n)
		lat = append(lat, time.Since(t))
		if n%ledger.AckEvery == 0 {
			slices.Sort(lat)
			say(ledger.AckLine(n, float64(len(lat))/time.Since(since).Seconds(), lat[len(lat)/2], lat[len(lat)-1]))
			lat, since = lat[:0], time.Now()
		}
	}
}

// syncDirs makes freshly created ledger files findable after a crash.
func syncDirs(files []string) {
	for _, f := range files {
		if d, err := os.Open(f[:strings.LastIndexByte(f, '/')+1]); err == nil {
			d.Sync()
			d.Close()
		}
	}
}

func verifyAndPowerOff(a, b string) error {
	err := verify(a, b)
	if err != nil {
		stop("verify:" + err.Error())
	} else {
		stop("verified")
	}
	return errors.Join(err, syscall.Kill(1, syscall.SIGUSR2))
}

// verify is "ledger verify A B".
func verify(pathA, pathB string) error {
	a, err := os.Open(pathA)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(pathB)
	if err != nil {
		return err
	}
	defer b.Close()
	var o ledger.Opening
	if o.A, err = ledger.ScanFile(a); err != nil {
		return err
	}
	if o.B, err = ledger.ScanFile(b); err != nil {
		return err
	}
	a.Seek(0, 0)
	b.Seek(0, 0)
	if o.Verdict, err = ledger.Verify(a, b); err != nil {
		return err
	}
	lines := bootLines(o)
	if syscall.Getppid() == 1 {
		say(lines...)
	} else {
		fmt.Println(strings.Join(lines, "\n"))
	}
	if !o.Verdict.OK() {
		return ledger.ErrUnsound
	}
	return nil
}
