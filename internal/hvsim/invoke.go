package hvsim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/jobs"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hvsim/schema"
)

// call is one call of a method.
type call struct {
	*Host
	ctx    context.Context
	path   cim.Path
	method *schema.Method
	in     cim.Args
	fault  *Fault
	family family
}

// family is one of the two sets of return values that Hyper-V's methods have.
type family struct{ unsupported, failed, timeout, invalid, state, inUse, missing uint32 }

var (
	cimFamily  = family{1, 2, 3, 4, 5, 5, 4}
	msvmFamily = family{32770, 32768, 32772, 32773, 32775, 32774, 32779}
)

// Methods that answer with the values of the DMTF profiles; all others answer with Hyper-V's own.
var cimMethods = map[string]bool{"createsnapshot": true, "applysnapshot": true, "destroysnapshot": true, "converttoreferencepoint": true, "createreferencepoint": true,
	"definesystem": true, "destroysystem": true, "addresourcesettings": true, "modifyresourcesettings": true, "removeresourcesettings": true}

// Invoke implements cim.Session.
func (h *Host) Invoke(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	op := method + " of " + path.Class
	if err := h.answering(ctx, op); err != nil {
		return cim.Out{}, err
	}
	if path.Namespace == "" {
		path.Namespace = virt
	}
	class, ok := h.site.schema.Class(path.Namespace, path.Class)
	if !ok {
		return cim.Out{}, &cim.Error{Code: cim.CodeInvalidClass, Op: op, Message: "Invalid class", Status: 0x80041010}
	}
	m, ok := class.Method(method)
	if !ok {
		return cim.Out{}, &cim.Error{Code: cim.CodeNoMethod, Op: op, Message: "Invalid method", Status: 0x80041055}
	}
	for _, a := range in {
		if p, ok := m.Parameter(a.Name); !ok || !p.In {
			return cim.Out{}, &cim.Error{Code: cim.CodeNoMethod, Op: op, Message: "Invalid method parameter " + a.Name, Status: 0x8004102f}
		}
	}
	target, err := (*repo)(h).Get(ctx, path)
	if err != nil {
		return cim.Out{}, err
	}
	c := &call{Host: h, ctx: ctx, path: target.Path, method: m, in: in, family: msvmFamily}
	if cimMethods[strings.ToLower(m.Name)] {
		c.family = cimFamily
	}
	c.fault = h.site.faults.match(h.Conf.Name, m.Name, c.names())
	return c.run(op)
}

// names is what a fault's Object is looked for in.
func (c *call) names() string {
	var b strings.Builder
	b.WriteString(c.path.String())
	for _, a := range c.in {
		list, _ := cim.Elements(a.Value)
		for _, v := range list {
			if p, ok := v.(cim.Path); ok {
				v = p.String()
			}
			fmt.Fprintf(&b, " %v", v)
		}
	}
	text := b.String()
	for _, id := range guids.FindAllString(text, 16) {
		if vm := c.owner(id); vm != nil {
			b.WriteString(" " + vm.ID() + " " + vm.State().Name)
		}
	}
	return b.String()
}

// run calls the handler as the plan of faults allows.
func (c *call) run(op string) (cim.Out, error) {
	f := c.fault
	if err := f.before(c.ctx, op); err != nil {
		return cim.Out{}, err
	}
	if f != nil && !f.After {
		if f.Return != 0 {
			return cim.Out{Return: f.Return}, nil
		}
		if f.JobState != 0 {
			return c.failing(f.failure(), f.Delay), nil
		}
	}
	handler := methods[strings.ToLower(c.path.Class+"."+c.method.Name)]
	if handler == nil {
		handler = methods[strings.ToLower("."+c.method.Name)]
	}
	if handler == nil {
		return cim.Out{Return: c.family.unsupported}, nil
	}
	out := handler(c)
	if f != nil && f.After {
		if f.Return != 0 {
			out.Return = f.Return
		}
		if err := f.fail(op); err != nil {
			return cim.Out{}, err
		}
	}
	if err := conform(c, out); err != nil {
		return cim.Out{}, err
	}
	return out, nil
}

// conform checks what a handler answers against the schema: a mistake of the simulator itself.
func conform(c *call, out cim.Out) error {
	if err := c.site.schema.ConformOut(c.method, out.Args); err != nil {
		return &cim.Error{Code: cim.CodeFailed, Op: c.method.Name, Message: "the simulator's answer is not of the schema", Err: err}
	}
	return nil
}

func (f *Fault) failure() *jobs.Failure {
	code, text := f.JobError, f.JobText
	if code == 0 && f.JobState != jobs.Warnings {
		code = 32768
	}
	if text == "" {
		text = "fault injected by the simulator's plan"
	}
	return &jobs.Failure{State: f.JobState, Code: code, Text: text}
}

// failing answers with a job that fails.
func (c *call) failing(f *jobs.Failure, d time.Duration) cim.Out {
	return c.begin(jobs.Spec{Time: d, Work: func(context.Context) ([]any, error) {
		if f.State == jobs.Completed {
			return nil, nil
		}
		return nil, f
	}}, cim.Path{})
}

// begin starts a job.
func (c *call) begin(spec jobs.Spec, target cim.Path, extra ...any) cim.Out {
	if spec.Class == "" {
		spec.Class = "Msvm_ConcreteJob"
		if strings.EqualFold(c.path.Class, "Msvm_ImageManagementService") {
			spec.Class = "Msvm_StorageJob"
		}
	}
	spec.Caption = c.method.Name
	spec.Data = &jobData{target: target, extra: extra}
	id, _ := c.jobs.Start(spec)
	return cim.Out{Return: cim.ReturnJobStarted, Args: cim.Args{{Name: "Job", Value: c.byID(spec.Class, id)}}}
}

// result is what the work of a method yields: the out parameter with the new object.
type result struct {
	name string // of the out parameter
	refs []cim.Path
	list bool // the out parameter is an array
}

func (r result) value() cim.Value {
	if r.list {
		return r.refs
	}
	return r.refs[0]
}

// work does what a method asks for, at once or in a job. vm may be nil.
func (c *call) work(jobType uint16, vm *VM, target cim.Path, do func(ctx context.Context) (result, error)) cim.Out {
	cfg := c.site.Settings()
	f := c.fault
	if cfg.Inline && (f == nil || f.JobState == 0) {
		r, err := do(c.ctx)
		if err != nil {
			return cim.Out{Return: c.code(err)}
		}
		out := cim.Out{}
		if len(r.refs) > 0 {
			out.Set(r.name, r.value())
		}
		return out
	}
	spec := jobs.Spec{Type: jobType, Time: cfg.JobTime, Work: func(ctx context.Context) ([]any, error) {
		r, err := do(ctx)
		if err != nil {
			return nil, failure(err)
		}
		var affected []any
		for _, p := range r.refs {
			affected = append(affected, p)
		}
		if f != nil && f.JobState != 0 && f.JobState != jobs.Completed {
			return affected, f.failure()
		}
		return affected, nil
	}}
	if f != nil && f.JobState != 0 {
		spec.Time += f.Delay
	}
	if vm != nil {
		spec.Owner = vm.ID()
	}
	return c.begin(spec, target)
}

// code is the return value for an error.
func (c *call) code(err error) uint32 {
	switch {
	case errors.Is(err, model.ErrInvalid):
		return c.family.invalid
	case errors.Is(err, model.ErrInUse):
		return c.family.inUse
	case errors.Is(err, model.ErrState):
		return c.family.state
	case errors.Is(err, model.ErrMissing):
		return c.family.unsupported
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, model.ErrNotFound):
		return c.family.missing
	}
	return c.family.failed
}

// failure is how a job fails for an error.
func failure(err error) *jobs.Failure {
	var f *jobs.Failure
	if errors.As(err, &f) {
		return f
	}
	f = &jobs.Failure{State: jobs.Exception, Code: 32768, Text: err.Error()}
	switch {
	case errors.Is(err, model.ErrInvalid):
		f.Code = 32773
	case errors.Is(err, model.ErrInUse):
		f.Code, f.Status = 32774, 0x80070020
	case errors.Is(err, model.ErrState):
		f.Code = 32775
	case errors.Is(err, fs.ErrNotExist):
		f.Code, f.Status = 32779, 0x80070002
	case errors.Is(err, model.ErrRCT):
		f.Status = 0xC03A0029
		f.Text = "The change tracking identifier is not valid for the virtual disk. (0xC03A0029): " + err.Error()
	}
	return f
}

// Parameters

// vm returns the VM that a reference parameter names, nil if it names none of this host.
func (c *call) vm(name string) *VM {
	ref, ok := c.in.Ref(name)
	if !ok || !strings.EqualFold(ref.Class, "Msvm_ComputerSystem") && !strings.EqualFold(ref.Class, "Msvm_PlannedComputerSystem") && !strings.EqualFold(ref.Class, "CIM_ComputerSystem") {
		return nil
	}
	return c.VM(ref.Key("Name"))
}

// checkpoint returns the VM and id of the checkpoint that a reference parameter names.
func (c *call) checkpoint(name string) (*VM, string) {
	ref, ok := c.in.Ref(name)
	if !ok {
		return nil, ""
	}
	id := strings.ToUpper(strings.TrimPrefix(ref.Key("InstanceID"), "Microsoft:"))
	vm := c.owner(id)
	if vm == nil {
		return nil, ""
	}
	st := vm.State()
	if _, ok := st.Checkpoint(id); !ok {
		return nil, ""
	}
	return vm, id
}

// point is checkpoint for a reference point.
func (c *call) refPoint(name string) (*VM, model.Point) {
	ref, ok := c.in.Ref(name)
	if !ok || !strings.EqualFold(ref.Class, "Msvm_VirtualSystemReferencePoint") {
		return nil, model.Point{}
	}
	return c.pointByID(ref.Key("InstanceID"))
}

func (c *call) pointByID(instanceID string) (*VM, model.Point) {
	id := strings.ToUpper(strings.TrimPrefix(instanceID, "Microsoft:"))
	vm := c.owner(id)
	if vm == nil {
		return nil, model.Point{}
	}
	st := vm.State()
	p, ok := st.Point(id)
	if !ok {
		return nil, p
	}
	return vm, p
}

// embedded returns an embedded instance; ok is false if the parameter is there but none.
func (c *call) embedded(name string) (in *cim.Instance, ok bool) {
	if c.in.Null(name) {
		return nil, true
	}
	return decode(c.in.String(name))
}

func decode(text string) (*cim.Instance, bool) {
	if strings.TrimSpace(text) == "" {
		return nil, true
	}
	in, err := cim.DecodeEmbedded(text)
	return in, err == nil
}

// embeddeds returns an array of embedded instances.
func (c *call) embeddeds(name string) (list []*cim.Instance, ok bool) {
	for _, s := range c.in.Strings(name) {
		in, ok := decode(s)
		if !ok || in == nil {
			return nil, false
		}
		list = append(list, in)
	}
	return list, true
}

func (c *call) invalid() cim.Out { return cim.Out{Return: c.family.invalid} }
