package agent

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/objstore/httpstore"
)

// lane is one direction of a link: so many bytes a second for all connections
// together, and a delay.
type lane struct {
	rate  float64
	delay time.Duration

	mu   sync.Mutex
	next time.Time // the last byte so far has left then
	n    int64
}

// arrival is when n bytes that are sent now have arrived.
func (l *lane) arrival(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	l.n += int64(n)
	return l.next.Add(l.delay)
}

func (l *lane) bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

type packet struct {
	b  []byte
	at time.Time
}

// carry copies one connection's direction until it ends.
func (l *lane) carry(dst, src net.Conn, wg *sync.WaitGroup) {
	queue := make(chan packet, 64)
	wg.Go(func() {
		defer close(queue)
		for {
			b := make([]byte, 16<<10)
			n, err := src.Read(b)
			if n > 0 {
				queue <- packet{b[:n], l.arrival(n)}
			}
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		defer dst.Close()
		for p := range queue {
			time.Sleep(time.Until(p.at))
			if _, err := dst.Write(p.b); err != nil {
				src.Close()
				for range queue {
				}
			}
		}
	})
}

// link puts a shaped link before a server and returns its address.
func link(t *testing.T, target string, bitsPerSecond float64, rtt time.Duration) (addr string, up *lane) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up = &lane{rate: bitsPerSecond / 8, delay: rtt / 2}
	down := &lane{rate: bitsPerSecond / 8, delay: rtt / 2}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := []io.Closer{l}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", target)
			if err != nil {
				c.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, c, s)
			mu.Unlock()
			up.carry(s, c, &wg)
			down.carry(c, s, &wg)
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String(), up
}

// Over 100 Mbit/s and 20 ms an initial replication fills the line, and what the
// vault asks meanwhile is still answered at once.
func TestShapedLink(t *testing.T) {
	if testing.Short() {
		t.Skip("sends for some seconds")
	}
	const size, rate = 24 << 20, 100e6
	v := newVault(t)
	direct := strings.TrimPrefix(v.srv.URL, "https://")
	addr, up := link(t, direct, rate, 20*time.Millisecond)
	v.srv.URL = "https://" + addr // for the registration key and the read tickets
	var err error
	if v.signer, err = httpstore.NewSigner(httpstore.SignerConfig{BaseURL: v.srv.URL, Key: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	r := rigOf(t, v)
	h := newHistory(r, machineA, "db", size)
	h.noise("vda", 0, size-1<<20)
	h.open("agent-1", cut.Ref{})
	a, stop := r.start()
	h.assign()
	began := time.Now()
	eventually(t, "it sends", func() bool { return up.bytes() > 2<<20 })
	var slowest time.Duration
	for range 5 {
		asked := time.Now()
		h.n++
		id := "inventory" + string(rune('0'+h.n))
		r.vault.command(id, agentapi.CmdRefreshInventory, struct{}{})
		if f := r.vault.final(id); f.State != stateDone {
			t.Errorf("report %+v", f)
		}
		slowest = max(slowest, time.Since(asked))
	}
	h.command(agentapi.CmdAwaitInitial)
	took := time.Since(began)
	ideal := time.Duration(float64(up.bytes()) * 8 / rate * float64(time.Second))
	t.Logf("%d bytes in %v, the line needs %v; slowest command %v", up.bytes(), took, ideal, slowest)
	if took > 3*ideal+2*time.Second {
		t.Errorf("%d bytes took %v, the line needs %v", up.bytes(), took, ideal)
	}
	if took < ideal*9/10 {
		t.Errorf("%v for what takes %v: the link is not shaped", took, ideal)
	}
	if slowest > 3*time.Second {
		t.Errorf("a command took %v while the line was busy", slowest)
	}
	h.noise("vda", 0, 64<<10)
	h.drain()
	h.check()
	if s := a.Status()[0]; s.Error != nil || s.Phase != "delta" {
		t.Errorf("status %+v", s)
	}
	stop()
	if strings.Contains(r.logs.String(), "can't be asked for work") {
		t.Error("the channel broke")
	}
}
