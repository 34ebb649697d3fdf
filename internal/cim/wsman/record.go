package wsman

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"

	"holdfast/internal/cim"
)

// Exchange is one recorded request and its answer: SOAP envelopes, opened. HTTP
// headers are not part of it, so it holds no credentials, but names of hosts, machines and files do occur.
type Exchange struct {
	Op       string `json:"op"` // what was tried
	Request  string `json:"request"`
	Status   int    `json:"status"` // of HTTP
	Response string `json:"response"`
}

// Recorder takes what a session exchanged. Record may be called by several goroutines at once.
type Recorder interface{ Record(Exchange) }

// JSONRecorder writes exchanges as lines of JSON. It is safe for concurrent use.
type JSONRecorder struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// NewJSONRecorder records to w, which stays the caller's to close.
func NewJSONRecorder(w io.Writer) *JSONRecorder { return &JSONRecorder{w: w} }

// Record writes one line; after a failure nothing more is written.
func (r *JSONRecorder) Record(x Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	line, err := json.Marshal(x)
	if err == nil {
		_, err = r.w.Write(append(line, '\n'))
	}
	r.err = err
}

// Err returns why recording stopped, nil if it did not.
func (r *JSONRecorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// ReadExchanges reads what a JSONRecorder wrote.
func ReadExchanges(r io.Reader) ([]Exchange, error) {
	var list []Exchange
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var x Exchange
		switch err := dec.Decode(&x); err {
		case nil:
			list = append(list, x)
		case io.EOF:
			return list, nil
		default:
			return nil, fmt.Errorf("wsman: recording, exchange %d: %w", len(list)+1, err)
		}
	}
}

// Replay returns a session that answers from a recording instead of a server. A request
// finds its answers by action, resource, keys and body; the same request made again gets the
// following answer, and the last one for ever. One that was not recorded fails with cim.CodeUnavailable.
func Replay(list []Exchange) (*Session, error) {
	p := &player{answers: map[string][]Exchange{}}
	for i, x := range list {
		key, _, err := replayKey(x.Request)
		if err != nil {
			return nil, fmt.Errorf("wsman: recorded request %d: %w", i+1, err)
		}
		p.answers[key] = append(p.answers[key], x)
	}
	cfg := Config{URL: "http://replay.invalid/wsman"}
	defaults(&cfg)
	return newSession(cfg, p), nil
}

type player struct {
	mu      sync.Mutex
	answers map[string][]Exchange
}

func (p *player) close() error { return nil }

func (p *player) exchange(_ context.Context, _ *request, envelope string) ([]byte, int, error) {
	key, id, err := replayKey(envelope)
	if err != nil {
		return nil, 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.answers[key]
	if len(list) == 0 {
		return nil, 0, &cim.Error{Code: cim.CodeUnavailable, Message: "the recording holds no such request"}
	}
	x := list[0]
	if len(list) > 1 {
		p.answers[key] = list[1:]
	}
	// The answer relates to the message of its time.
	if _, old, err := replayKey(x.Request); err == nil && old != "" && id != "" {
		x.Response = strings.ReplaceAll(x.Response, old, id)
	}
	return []byte(x.Response), x.Status, nil
}

// replayKey names what a request asks for, without what differs each time: message id, address, timeouts and limits.
func replayKey(envelope string) (key, id string, err error) {
	root, err := parseXML([]byte(envelope))
	if err != nil {
		return "", "", err
	}
	head := root.child(nsSOAP, "Header")
	var b strings.Builder
	b.WriteString(head.child("", "Action").trimmed() + "\n" + strings.ToLower(head.child("", "ResourceURI").trimmed()) + "\n")
	if set := head.child("", "SelectorSet"); set != nil {
		var keys []string
		for _, s := range set.kids {
			var k strings.Builder
			canonical(&k, s)
			keys = append(keys, k.String())
		}
		sort.Strings(keys)
		b.WriteString(strings.Join(keys, ""))
	}
	if body := root.child(nsSOAP, "Body"); body != nil {
		canonical(&b, body)
	}
	return b.String(), head.child("", "MessageID").trimmed(), nil
}

// canonical renders an element without prefixes, and without the limits of an enumeration.
func canonical(b *strings.Builder, n *node) {
	switch n.name.Local {
	case "MaxElements", "OptimizeEnumeration":
		return
	}
	b.WriteString("<" + n.name.Local)
	for _, a := range n.attr {
		if a.Name.Local == "Name" || a.Name.Local == "nil" {
			fmt.Fprintf(b, " %s=%q", a.Name.Local, a.Value)
		}
	}
	b.WriteString(">")
	if len(n.kids) == 0 {
		b.WriteString(n.text)
	}
	for _, k := range n.kids {
		canonical(b, k)
	}
	b.WriteString("</>")
}
