//go:build linux

package main

import (
	"bufio"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/ledger"
)

const (
	blockSize  = 4096
	churnSize  = 16 << 20
	fillMax    = 1 << 30
	socketPath = "/run/ledger.ctl"
)

func newRand() *rand.ChaCha8 {
	var seed [32]byte
	crand.Read(seed[:])
	return rand.NewChaCha8(seed)
}

// churnForever rewrites random blocks of one file at the wanted rate, in ten slices a second.
func (l *load) churnForever() {
	f, err := openFile(filepath.Join(l.dataDir, "churn"))
	if err != nil {
		stop("churn: " + err.Error())
		return
	}
	defer f.Close()
	rng := newRand()
	var buf [blockSize]byte
	var owed float64
	tick := time.NewTicker(100 * time.Millisecond)
	for n := 0; ; n++ {
		<-tick.C
		for owed += float64(l.churn.Load()) / 10; owed >= 1; owed-- {
			rng.Read(buf[:])
			if _, err := f.WriteAt(buf[:], int64(rng.Uint64()%(churnSize/blockSize))*blockSize); err != nil {
				stop("churn: " + err.Error())
				return
			}
		}
		if n%10 == 9 && l.churn.Load() > 0 {
			f.Sync()
		}
	}
}

// fill writes n random blocks at random places of one file that may take up to
// three quarters of the disk, and returns the FILL-DONE line after they are durable.
func (l *load) fill(n int64) (string, error) {
	l.filling.Lock()
	defer l.filling.Unlock()
	start := time.Now()
	f, err := openFile(filepath.Join(l.dataDir, "fill"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := fillSize(f)
	if err != nil {
		return "", err
	}
	rng := newRand()
	var buf [blockSize]byte
	for range n {
		rng.Read(buf[:])
		if _, err := f.WriteAt(buf[:], int64(rng.Uint64()%uint64(size/blockSize))*blockSize); err != nil {
			return "", err
		}
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	syscall.Sync()
	return fmt.Sprintf("%s blocks=%d took=%s", ledger.KindFill, n, time.Since(start).Round(time.Millisecond)), nil
}

// fillSize returns the size of the fill file and sets it on first use.
func fillSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil || st.Size() > 0 {
		return st.Size(), err
	}
	var fs syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &fs); err != nil {
		return 0, err
	}
	size := min(int64(fs.Bavail)*fs.Bsize/4*3, fillMax) &^ (1<<20 - 1)
	if size <= 0 {
		return 0, errors.New("disk is full")
	}
	return size, f.Truncate(size)
}

// answer serves one request line.
func (l *load) answer(req string) string {
	words := strings.Fields(req)
	if len(words) == 1 && words[0] == "status" {
		return fmt.Sprintf("STATUS last=%d boot=%d rate=%d churn=%d", l.last.Load(), l.boot.Load(), l.rate.Load(), l.churn.Load())
	}
	if len(words) != 2 {
		return "ERROR want: fill N | rate N | churn N | status"
	}
	n, err := strconv.ParseInt(words[1], 10, 32)
	if err != nil || n < 0 {
		return "ERROR not a count: " + words[1]
	}
	switch words[0] {
	case "fill":
		line, err := l.fill(n)
		if err != nil {
			return "ERROR fill: " + err.Error()
		}
		say(line)
		return line
	case "rate":
		l.rate.Store(n)
	case "churn":
		l.churn.Store(n)
	default:
		return "ERROR unknown request " + words[0]
	}
	return "OK"
}

// serveSocket answers "ledger ctl" inside the guest.
func (l *load) serveSocket() {
	os.Remove(socketPath)
	ln, err := net.Listen("unix", socketPath)
	if err != nil {
		return // run by hand, outside of a guest
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if req, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				fmt.Fprintln(c, l.answer(req))
			}
		}()
	}
}

// servePort answers on the virtio-serial port. The port reads as ended while
// nobody holds the host's side, so it is polled.
func (l *load) servePort() {
	path := serialPort(ledger.ControlPort)
	if path == "" {
		return
	}
	// Blocking file: the driver's poll says "hung up" while the host is away.
	fd, err := syscall.Open(path, syscall.O_RDWR, 0)
	if err != nil {
		return
	}
	var line []byte
	buf := make([]byte, 512)
	for {
		n, err := syscall.Read(fd, buf)
		if n <= 0 {
			if err != nil && err != syscall.EINTR && err != syscall.EAGAIN {
				return
			}
			line = nil // a host that went away mid-line takes its half line along
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for _, c := range buf[:n] {
			switch {
			case c == '\n':
				writeAll(fd, l.answer(string(line))+"\n")
				line = nil
			case len(line) < 256:
				line = append(line, c)
			}
		}
	}
}

func writeAll(fd int, s string) {
	for len(s) > 0 {
		n, err := syscall.Write(fd, []byte(s))
		if err != nil && err != syscall.EINTR {
			return
		}
		s = s[max(n, 0):]
	}
}

// control is "ledger ctl WORDS…".
func control(req string) error {
	c, err := net.Dial("unix", socketPath)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, req); err != nil {
		return err
	}
	ans, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	fmt.Print(string(ans))
	if strings.HasPrefix(string(ans), "ERROR") {
		return errors.New("request was refused")
	}
	return nil
}
