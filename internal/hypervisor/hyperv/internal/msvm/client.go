// Package msvm has every call of Hyper-V's management classes (namespace
// root/virtualization/v2) that the adapter makes, once: queries, methods with
// their jobs, enumerations normalised, errors in the product's words. Source of
// names and values: the public Hyper-V WMI provider (v2) reference of Microsoft.
//
// Nothing here decides about replication. Every call returns by its context's
// deadline and after Config.CallTimeout at the latest, jobs after Config.JobTimeout,
// also when the session itself hangs. A call that timed out may still take effect.
package msvm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/internal/cim"
)

// Namespace of all Msvm_ classes.
const Namespace = "root/virtualization/v2"

// Config of a Client. Zero durations are the defaults.
type Config struct {
	CallTimeout time.Duration // of one round trip; 60 s
	JobTimeout  time.Duration // of a method with its job; 10 min
	Poll        time.Duration // first interval of asking for a job's state; 100 ms
}

// Client speaks to one host. Methods are safe for concurrent use.
type Client struct {
	cfg Config
	s   *guarded

	mu       sync.Mutex
	services map[string]cim.Path // their keys hold the host's name
}

// New makes a client on a session, which Close closes.
func New(s cim.Session, cfg Config) *Client {
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = time.Minute
	}
	if cfg.JobTimeout <= 0 {
		cfg.JobTimeout = 10 * time.Minute
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 100 * time.Millisecond
	}
	return &Client{cfg: cfg, s: &guarded{s: s, timeout: cfg.CallTimeout}, services: map[string]cim.Path{}}
}

// Close closes the session and waits for calls under way, for as long as one may take. Idempotent.
func (c *Client) Close() error { return c.s.Close() }

// closeGrace is how long calls may go on after the session was closed, and how
// much later than its deadline a session's answer is still taken.
const closeGrace = 500 * time.Millisecond

// guarded is a session whose calls return by their deadline, whatever the session does.
type guarded struct {
	s       cim.Session
	timeout time.Duration
	wg      sync.WaitGroup
	once    sync.Once
	err     error
}

type answer[T any] struct {
	v   T
	err error
}

func guard[T any](g *guarded, ctx context.Context, op string, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "not begun", Err: ctx.Err()}
	}
	limit, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	done := make(chan answer[T], 1)
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		v, err := fn(limit)
		done <- answer[T]{v, err}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-limit.Done():
	}
	// The session promises to be back about now; its own words are the better ones.
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case a := <-done:
		return a.v, a.err
	case <-t.C:
		return zero, &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "no answer", Err: limit.Err()}
	}
}

func (g *guarded) Query(ctx context.Context, namespace, wql string) ([]*cim.Instance, error) {
	return guard(g, ctx, wql, func(ctx context.Context) ([]*cim.Instance, error) { return g.s.Query(ctx, namespace, wql) })
}

func (g *guarded) Get(ctx context.Context, path cim.Path) (*cim.Instance, error) {
	return guard(g, ctx, path.Relative(), func(ctx context.Context) (*cim.Instance, error) { return g.s.Get(ctx, path) })
}

func (g *guarded) Invoke(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	return guard(g, ctx, method, func(ctx context.Context) (cim.Out, error) { return g.s.Invoke(ctx, path, method, in) })
}

func (g *guarded) Close() error {
	g.once.Do(func() {
		g.err = g.s.Close()
		done := make(chan struct{})
		go func() { g.wg.Wait(); close(done) }()
		t := time.NewTimer(closeGrace)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			g.err = errors.Join(g.err, errors.New("hyperv: a call of the management service hangs after its session was closed"))
		}
	})
	return g.err
}

func (c *Client) query(ctx context.Context, wql string) ([]*cim.Instance, error) {
	list, err := c.s.Query(ctx, Namespace, wql)
	for _, in := range list {
		if in.Path.Namespace == "" && !in.Path.IsZero() {
			in.Path.Namespace = Namespace
		}
	}
	return list, err
}

// pathOf returns an instance's path; drivers that don't say it leave its key.
func pathOf(in *cim.Instance, class, key string) cim.Path {
	if !in.Path.IsZero() {
		return in.Path
	}
	return cim.Path{Namespace: Namespace, Class: class, Keys: []cim.Key{{Name: key, Value: in.String(key)}}}
}

// systemPath is the path of a VM.
func systemPath(id string) cim.Path {
	return cim.Path{Namespace: Namespace, Class: "Msvm_ComputerSystem",
		Keys: []cim.Key{{Name: "CreationClassName", Value: "Msvm_ComputerSystem"}, {Name: "Name", Value: hostGUID(id)}}}
}

func instancePath(class, id string) cim.Path {
	return cim.Path{Namespace: Namespace, Class: class, Keys: []cim.Key{{Name: "InstanceID", Value: id}}}
}

// SettingsPath is the path of a VM's settings or a checkpoint.
func SettingsPath(instanceID string) cim.Path {
	return instancePath("Msvm_VirtualSystemSettingData", instanceID)
}

// ReferencePointPath is the path of a reference point.
func ReferencePointPath(instanceID string) cim.Path {
	return instancePath("Msvm_VirtualSystemReferencePoint", instanceID)
}

// The services; each host has one of each.
const (
	managementService     = "Msvm_VirtualSystemManagementService"
	snapshotService       = "Msvm_VirtualSystemSnapshotService"
	referencePointService = "Msvm_VirtualSystemReferencePointService"
	imageService          = "Msvm_ImageManagementService"
)

// service finds the only instance of a service class.
func (c *Client) service(ctx context.Context, class string) (cim.Path, error) {
	c.mu.Lock()
	path, ok := c.services[class]
	c.mu.Unlock()
	if ok {
		return path, nil
	}
	list, err := c.query(ctx, "SELECT * FROM "+class)
	if err != nil {
		return cim.Path{}, err
	}
	if len(list) != 1 {
		return cim.Path{}, &cim.Error{Code: cim.CodeProtocol, Op: class, Message: fmt.Sprintf("the host has %d instances of the service, want 1", len(list))}
	}
	path = pathOf(list[0], class, "Name")
	c.mu.Lock()
	c.services[class] = path
	c.mu.Unlock()
	return path, nil
}

// forget makes the next call look for the services again.
func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.services)
}

// call invokes a method of a service and waits for its job.
func (c *Client) call(ctx context.Context, service, method string, in cim.Args) (cim.Out, *cim.Job, error) {
	path, err := c.service(ctx, service)
	if err != nil {
		return cim.Out{}, nil, err
	}
	out, job, err := c.callOn(ctx, path, method, in)
	if Missing(err) {
		c.forget() // perhaps it was the service: the host was renamed, or it is another one
	}
	return out, job, err
}

func (c *Client) callOn(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, *cim.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.JobTimeout)
	defer cancel()
	out, err := c.s.Invoke(ctx, path, method, in)
	if err != nil {
		return out, nil, err
	}
	switch out.Return {
	case cim.ReturnOK:
		return out, nil, nil
	case cim.ReturnJobStarted:
	default:
		return out, nil, &cim.ReturnError{Method: method, Value: out.Return}
	}
	ref, ok := out.Ref("Job")
	if !ok {
		return out, nil, &cim.Error{Code: cim.CodeProtocol, Op: method, Message: "a job was started but not named"}
	}
	if ref.Namespace == "" {
		ref.Namespace = Namespace
	}
	j, err := cim.Wait(ctx, c.s, method, ref, c.cfg.Poll, nil)
	var failed *cim.JobError
	if errors.As(err, &failed) {
		failed.Job.Description = c.jobErrors(ctx, failed.Job)
	}
	return out, &j, err
}

// jobErrors joins what a failed job says of its error: the summary of
// Msvm_ConcreteJob and the messages of GetErrorEx (embedded Msvm_Error).
func (c *Client) jobErrors(ctx context.Context, j cim.Job) string {
	text := j.Description
	if j.Instance != nil {
		if s := j.Instance.String("ErrorSummaryDescription"); s != "" && s != text {
			text = joinText(text, s)
		}
		if n, ok := j.Instance.Uint("JobCompletionStatusCode"); ok && n != 0 { // Msvm_StorageJob
			text = joinText(text, fmt.Sprintf("0x%08X", uint32(n)))
		}
	}
	out, err := c.s.Invoke(ctx, j.Path, "GetErrorEx", nil)
	if err != nil || out.Return != 0 {
		return text // what the job itself says is enough
	}
	for _, s := range out.Strings("Errors") {
		in, err := cim.DecodeEmbedded(s)
		if err != nil {
			continue
		}
		if m := in.String("Message"); m != "" && m != j.Description {
			text = joinText(text, m)
		}
	}
	return text
}

func joinText(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// affected takes a method's result: the out-parameter, or where that is null
// what the job's Msvm_AffectedJobElement association names.
func (c *Client) affected(ctx context.Context, out cim.Out, j *cim.Job, param, class string) (cim.Path, error) {
	if ref, ok := out.Ref(param); ok {
		if ref.Namespace == "" {
			ref.Namespace = Namespace
		}
		return ref, nil
	}
	if j == nil {
		return cim.Path{}, nil
	}
	list, err := c.query(ctx, cim.Associators(j.Path, "Msvm_AffectedJobElement", class))
	if err != nil || len(list) == 0 {
		return cim.Path{}, err
	}
	key := "InstanceID"
	if class == "Msvm_ComputerSystem" {
		return systemPath(list[0].String("Name")), nil
	}
	return pathOf(list[0], class, key), nil
}
