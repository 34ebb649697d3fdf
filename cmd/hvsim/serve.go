package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
)

// fleet is the WS-Man servers of all hosts.
type fleet struct {
	idle   []net.Listener // that nobody serves yet
	list   []*wsmand.Server
	failed chan error
}

// close ends all servers. Idempotent.
func (f *fleet) close() error {
	var errs []error
	for _, l := range f.idle {
		errs = append(errs, l.Close())
	}
	f.idle = nil
	for _, s := range f.list {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// listen takes the ports of all hosts. What connects before serve waits. The fleet is to be closed also if there is an error.
func listen(o options) (*fleet, error) {
	f := &fleet{failed: make(chan error, o.hosts)}
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return f, fmt.Errorf("--listen %s: it must be an address and a port: %w", o.listen, err)
	}
	first, err := strconv.Atoi(port)
	if err != nil || first < 0 || first > 65535 || first > 0 && first+o.hosts-1 > 65535 {
		return f, fmt.Errorf("--listen %s: %d hosts can't have ports from %q on", o.listen, o.hosts, port)
	}
	for i := range o.hosts {
		at := first
		if first != 0 {
			at += i
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(at)))
		if err != nil {
			return f, fmt.Errorf("host %s can't be served; --listen takes another address, port 0 any free port: %w", hostName(i), err)
		}
		f.idle = append(f.idle, ln)
	}
	return f, nil
}

func hostName(i int) string { return fmt.Sprintf("HV%d", i+1) }

// serve starts one server per host.
func (f *fleet) serve(o options, site *hvsim.Site, e entry, log *slog.Logger) []served {
	tables := wsmand.Tables(schema.Load())
	listeners := f.idle
	f.idle = nil
	var list []served
	for i, h := range site.Hosts() {
		ln := listeners[i]
		s := served{Host: h.Conf.Name, URL: "http://" + ln.Addr().String() + "/wsman", Files: h.Dir(), Pin: e.pin, VMs: len(h.VMs())}
		if e.tls != nil {
			s.URL = "https://" + ln.Addr().String() + "/wsman"
		}
		server := wsmand.New(wsmand.Config{Session: func(string) (cim.Session, error) { return h, nil }, Schema: tables, Computer: h.Conf.Name,
			Basic: o.basic, AllowUnencrypted: o.basic, TLS: e.tls, Log: log,
			Password: func(user, _ string) (string, bool) { return e.password, strings.EqualFold(user, o.user) }})
		f.list = append(f.list, server)
		list = append(list, s)
		go func() { // ends with server.Close
			if err := server.Serve(ln); err != nil {
				f.failed <- fmt.Errorf("serve host %s: %w", h.Conf.Name, err)
			}
		}()
	}
	return list
}
