package hosttool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/agent"
	"holdfast/internal/agent/channel"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/reach"
)

// Limits of looking at the network.
const (
	atOnce       = 4 // endpoints
	signedFor    = 30 * time.Minute
	removeWithin = time.Minute
)

// networkFlags are the doctor's own about the network.
type networkFlags struct {
	way        wayFlags
	idle       console.Duration
	throughput bool
	rate       console.Size
	object     int64 // bytes of an object of throughput; 0 = the usual
}

func (n *networkFlags) add(c *cobra.Command) {
	n.way.add(c)
	c.Flags().Var(&n.idle, "idle", "leave connections quiet for so long and see whether they stay, such as 2m (default: not tried)")
	c.Flags().BoolVar(&n.throughput, "throughput", false, "write 4 objects of 64 MiB to the first --store with this machine's credentials, read them back, and remove them")
	c.Flags().Var(&n.rate, "change-rate", "bytes that the VMs change in a second, such as 20M, to compare the throughput with")
}

// network looks at the way to the vault, and to what the flags name.
func (d *doctor) network(ctx context.Context, reg agent.Registration, rerr error) {
	d.net.way.azure = d.flags.Azure
	cfg, roots, err := d.net.way.config()
	if err != nil {
		d.fail("network", err)
		return
	}
	cfg.Roles = []dr.AgentRole{dr.RoleSource, dr.RoleRecovery} // whatever is named is tried
	switch {
	case rerr == nil:
		id, err := channel.Load(d.state)
		if err != nil {
			d.fail(reach.VaultName, err)
			return
		}
		cfg.VaultURL, cfg.VaultTrust = reg.VaultURL, pinned(id.CA)
	case dr.KindOf(rerr) == dr.KindPrecondition:
		d.add(reach.VaultName, skipped, "this host is not registered (no registration in "+d.state+")", "Register it with 'holdfast agent register', or name its --state.")
	default:
		d.fail(reach.VaultName, rerr)
	}
	list, err := reach.Endpoints(cfg)
	if err != nil {
		d.fail("network", err)
		return
	}
	proxy, good := d.way(reg.VaultURL)
	if !good {
		return
	}
	opts := reach.Options{Proxy: proxy, Roots: roots, Idle: time.Duration(d.net.idle), Now: d.app.Now}
	results := make([]reach.Result, len(list))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, e := range list {
		if e.Name == reach.VaultName && cfg.VaultURL == "" || e.Protocol == reach.UDP {
			continue
		}
		g.Go(func() error { results[i] = reach.Test(ctx, e, opts); return nil })
	}
	_ = g.Wait() // results tell
	for _, r := range results {
		d.hops(r)
	}
	if rerr == nil {
		d.certificate(reg)
	}
	d.throughput(ctx)
}

// way finds out how proxies are chosen.
func (d *doctor) way(vault string) (reach.ProxyFunc, bool) {
	lost, err := d.proxy.Apply(vault)
	if err != nil {
		d.fail("proxy", err)
		return nil, false
	}
	if len(lost) > 0 {
		d.add("proxy", warning, "exceptions of the machine's proxy are not understood: "+strings.Join(lost, " "), "Name them with --no-proxy.")
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy"} { // Go's client leaves out what it can't read
		if text := os.Getenv(name); text != "" {
			if !strings.Contains(text, "://") {
				text = "http://" + text
			}
			if strings.HasPrefix(text, "socks5") {
				continue
			}
			if _, err := (reach.ProxyRules{URL: text}).Func(); err != nil {
				d.add("proxy", failed, name+" of the environment is no address like http://host:port, and is not used", "Correct it, or name the proxy with --proxy.")
				return nil, false
			}
		}
	}
	return reach.FromEnvironment(), true
}

// hops adds one check for each hop. Those of the vault have had short names for long.
func (d *doctor) hops(r reach.Result) {
	for _, h := range r.Hops {
		name := r.Endpoint.Name + " " + h.Name
		if r.Endpoint.Name == reach.VaultName {
			switch h.Name {
			case reach.HopAnswer:
				name = reach.VaultName
			case reach.HopProxy, reach.HopClock:
				name = h.Name
			}
		} else if h.Status == reach.Skipped {
			name = r.Endpoint.Name
			h.Detail = r.Endpoint.Host + ": " + h.Detail
		}
		detail := h.Detail
		if ms := h.Took.Round(time.Millisecond); ms > 0 && !strings.Contains(detail, " answers in ") {
			detail += fmt.Sprintf(" (%s)", ms)
		}
		d.add(name, h.Status, detail, h.Remedy)
	}
}

// certificate looks at the agent's own.
func (d *doctor) certificate(reg agent.Registration) {
	if left := reg.NotAfter.Sub(d.app.Now()); left < 7*24*time.Hour {
		d.add("certificate", warning, fmt.Sprintf("the agent's certificate is good for %s", console.Short(max(left, 0))), "The agent renews it when it reaches the vault; one that has ended needs a new registration.")
	} else {
		d.add("certificate", ok, "good until "+reg.NotAfter.Format(time.DateOnly), "")
	}
}

// throughput measures the store.
func (d *doctor) throughput(ctx context.Context) {
	const name = "throughput"
	if !d.net.throughput {
		return
	}
	if len(d.net.way.stores) == 0 {
		s := reach.Throughput(ctx, reach.Load{})
		d.add(name, s.Status, s.Detail, "Name the store with --store, on a machine that has credentials for it.")
		return
	}
	a, err := storage.Parse(d.net.way.stores[0], ".")
	if err != nil {
		d.fail(name, err)
		return
	}
	b, err := a.Open(ctx, storage.Write)
	if err != nil {
		d.fail(name, err)
		return
	}
	defer b.Close() // what was written is verified below
	signer, can := b.(objstore.Signer)
	if !can {
		s := reach.Throughput(ctx, reach.Load{Why: "the store " + a.String() + " signs no addresses: hosts reach it through the vault"})
		d.add(name, s.Status, s.Detail, s.Remedy)
		return
	}
	var token [8]byte
	_, _ = rand.Read(token[:]) // never fails
	key := func(n int) string { return fmt.Sprintf("doctor/%s/%d", hex.EncodeToString(token[:]), n) }
	tr := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 2 * time.Minute}
	defer tr.CloseIdleConnections()
	s := reach.Throughput(ctx, reach.Load{Transport: tr, Size: d.net.object, Need: int64(d.net.rate),
		Sign: func(ctx context.Context, n int, size int64, sum [32]byte) (objstore.SignedURL, error) {
			return signer.SignPut(ctx, key(n), size, sum, d.app.Now().Add(signedFor))
		},
		Fetch: func(ctx context.Context, n int) (io.ReadCloser, error) { return b.Get(ctx, key(n), 0, -1) }})
	d.add(name, s.Status, s.Detail, s.Remedy)
	// Also what an interrupted run wrote is removed.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
	defer cancel()
	var left error
	for n := range s.Sent {
		left = errors.Join(left, b.Delete(rctx, key(n)))
	}
	if left != nil {
		d.add(name, warning, fmt.Sprintf("objects under doctor/%s could not be removed: %v", hex.EncodeToString(token[:]), left), "Remove them by hand, once their retention is over.")
	}
}
