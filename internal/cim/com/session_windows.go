package com

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"holdfast/internal/cim"
)

var (
	classLocator = windows.GUID{Data1: 0x4590f811, Data2: 0x1d3a, Data3: 0x11d0, Data4: [8]byte{0x89, 0x1f, 0x00, 0xaa, 0x00, 0x4b, 0x2e, 0x24}}
	iidLocator   = windows.GUID{Data1: 0xdc12a687, Data2: 0x737f, Data3: 0x11cf, Data4: [8]byte{0x88, 0x4d, 0x00, 0xaa, 0x00, 0x4b, 0x2e, 0x24}}
	iidClass     = windows.GUID{Data1: 0xdc12a681, Data2: 0x737f, Data3: 0x11cf, Data4: [8]byte{0x88, 0x4d, 0x00, 0xaa, 0x00, 0x4b, 0x2e, 0x24}}
)

// Session is a cim.Session on WMI by COM.
type Session struct {
	cfg     Config
	lib     *libraries
	threads *threads

	mu       sync.Mutex
	locator  *object
	services map[string]*object // by lower-case namespace; each holder has a reference of its own
}

var _ cim.Session = (*Session)(nil)

// Open enters COM and finds WMI. Namespaces are connected when they are first used.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	cfg = cfg.withDefaults()
	lib := loadLibraries()
	s := &Session{cfg: cfg, lib: lib, threads: newThreads(lib, cfg.Threads), services: map[string]*object{}}
	const op = "connect to WMI by COM"
	err := s.threads.run(ctx, op, func() error {
		r, _, _ := lib.security.Call(0, ^uintptr(0), 0, 0, authnDefault, impersonate, 0, 0, 0)
		if failed(uint32(r)) && uint32(r) != rpcTooLate { // too late = the process has set it already
			return lib.fail(op, uint32(r))
		}
		var locator *object
		r, _, _ = lib.create.Call(uintptr(unsafe.Pointer(&classLocator)), 0, contextInproc, uintptr(unsafe.Pointer(&iidLocator)),
			uintptr(unsafe.Pointer(&locator)))
		if failed(uint32(r)) {
			return lib.fail(op, uint32(r))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.locator = locator
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close waits for the calls that run, at most Config.CloseTimeout, and leaves COM. Idempotent.
func (s *Session) Close() error {
	return s.threads.end(s.cfg.CloseTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, o := range s.services {
			o.release()
		}
		clear(s.services)
		s.locator.release()
		s.locator = nil
	})
}

// with runs fn on a thread with a connection to a namespace.
func (s *Session) with(ctx context.Context, op, namespace string, fn func(services *object) error) error {
	return s.threads.run(ctx, op, func() error {
		services, err := s.connect(op, namespace)
		if err != nil {
			return err
		}
		defer services.release()
		if err = fn(services); broken(err) {
			s.forget(namespace, services)
		}
		return err
	})
}

// connect returns a reference to a namespace's services.
func (s *Session) connect(op, namespace string) (*object, error) {
	key := strings.ToLower(namespace)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.services[key]; o != nil {
		o.call(unknownAddRef)
		return o, nil
	}
	locator := s.locator
	s.mu.Unlock() // connecting can take minutes
	o, err := s.connectAnew(op, locator, namespace)
	s.mu.Lock()
	if err != nil {
		return nil, err
	}
	if other := s.services[key]; other != nil { // two came at once
		o.release()
		o = other
	}
	s.services[key] = o
	o.call(unknownAddRef)
	return o, nil
}

func (s *Session) connectAnew(op string, locator *object, namespace string) (*object, error) {
	resource := strings.ReplaceAll(namespace, "/", `\`)
	if s.cfg.Host != "" {
		resource = `\\` + s.cfg.Host + `\` + resource
	}
	name, err := s.lib.bstr(resource)
	if err != nil {
		return nil, invalid(op, err)
	}
	defer s.lib.free(name)
	var o *object
	if r := locator.call(locatorConnect, uintptr(unsafe.Pointer(name)), 0, 0, 0, flagConnectMaxWait, 0, 0, uintptr(unsafe.Pointer(&o))); failed(r) {
		return nil, s.lib.fail(op+": connect to "+resource, r)
	}
	if err := s.secure(op, o); err != nil {
		o.release()
		return nil, err
	}
	return o, nil
}

// forget drops a connection that broke.
func (s *Session) forget(namespace string, o *object) {
	key := strings.ToLower(namespace)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.services[key] == o {
		delete(s.services, key)
		o.release()
	}
}

// secure has an interface's calls encrypted and made as the process's user. Interfaces within the process have no proxy and need none.
func (s *Session) secure(op string, o *object) error {
	r, _, _ := s.lib.blanket.Call(uintptr(unsafe.Pointer(o)), authnDefaultService, authnDefaultService, 0, authnPacketPrivacy, impersonate, 0, 0)
	if status := uint32(r); failed(status) && status != eNoInterface {
		return s.lib.fail(op+": set the proxy's security", status)
	}
	return nil
}

// Query runs a query and reads all of its answer.
func (s *Session) Query(ctx context.Context, namespace, wql string) ([]*cim.Instance, error) {
	op := "query " + namespace + ": " + wql
	var out []*cim.Instance
	err := s.with(ctx, op, namespace, func(services *object) error {
		list, err := s.query(ctx, services, op, wql)
		if err == nil {
			out = list
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// batch is how many objects are fetched at once, and step how many milliseconds an
// answer is waited for before the context is looked at again.
const (
	batch = 64
	step  = 250
)

func (s *Session) query(ctx context.Context, services *object, op, wql string) ([]*cim.Instance, error) {
	language, err := s.lib.bstr("WQL")
	if err != nil {
		return nil, invalid(op, err)
	}
	defer s.lib.free(language)
	text, err := s.lib.bstr(wql)
	if err != nil {
		return nil, invalid(op, err)
	}
	defer s.lib.free(text)
	var enum *object
	if r := services.call(servicesExecQuery, uintptr(unsafe.Pointer(language)), uintptr(unsafe.Pointer(text)), flagForwardOnly|flagReturnImmediately,
		0, uintptr(unsafe.Pointer(&enum))); failed(r) {
		return nil, s.lib.fail(op, r)
	}
	defer enum.release()
	if err := s.secure(op, enum); err != nil {
		return nil, err
	}
	list := []*cim.Instance{}
	for {
		if ctx.Err() != nil {
			return nil, &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "the answer was not complete in time", Err: context.Cause(ctx)}
		}
		objects := make([]*object, batch)
		var n uint32
		r := enum.call(enumNext, step, batch, uintptr(unsafe.Pointer(&objects[0])), uintptr(unsafe.Pointer(&n)))
		if failed(r) {
			return nil, s.lib.fail(op, r)
		}
		for i, o := range objects[:n] {
			in, err := s.instance(o)
			if err != nil {
				for _, rest := range objects[i:n] {
					rest.release()
				}
				return nil, &cim.Error{Code: cim.CodeProtocol, Op: op, Err: err}
			}
			o.release()
			list = append(list, in)
		}
		switch {
		case r == statusFalse || r == statusNoMore:
			return list, nil
		case r == 0 && n == 0: // neither an object nor the end nor a time-out
			return nil, &cim.Error{Code: cim.CodeProtocol, Op: op, Message: "the answer has no end"}
		}
	}
}

// Get reads an instance.
func (s *Session) Get(ctx context.Context, path cim.Path) (*cim.Instance, error) {
	op := "get " + path.String()
	var out *cim.Instance
	err := s.with(ctx, op, path.Namespace, func(services *object) error {
		read := s.getObject
		if len(path.Keys) == 0 && !path.Singleton {
			read = s.getClass
		}
		o, err := read(services, op, path.Relative())
		if err != nil {
			return err
		}
		defer o.release()
		in, err := s.instance(o)
		if err != nil {
			return &cim.Error{Code: cim.CodeProtocol, Op: op, Err: err}
		}
		out = in
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Session) getObject(services *object, op, path string) (*object, error) {
	name, err := s.lib.bstr(path)
	if err != nil {
		return nil, invalid(op, err)
	}
	defer s.lib.free(name)
	var o *object
	if r := services.call(servicesGetObject, uintptr(unsafe.Pointer(name)), 0, 0, uintptr(unsafe.Pointer(&o)), 0); failed(r) {
		return nil, s.lib.fail(op, r)
	}
	return o, nil
}

// getClass reads a class. That there is none is told as "not found" too, which cim tells apart.
func (s *Session) getClass(services *object, op, class string) (*object, error) {
	o, err := s.getObject(services, op, class)
	var e *cim.Error
	if errors.As(err, &e) && e.Code == cim.CodeNotFound {
		e.Code = cim.CodeInvalidClass
	}
	return o, err
}

// Invoke calls a method with the types that its class declares.
func (s *Session) Invoke(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	op := method + " of " + path.String()
	var out cim.Out
	args := slices.Clone(in)
	err := s.with(ctx, op, path.Namespace, func(services *object) error {
		got, err := s.invoke(services, op, path, method, args)
		if err == nil {
			out = got
		}
		return err
	})
	if err != nil {
		return cim.Out{}, err
	}
	return out, nil
}

func (s *Session) invoke(services *object, op string, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	var out cim.Out
	params, err := s.parameters(services, op, path, method, in)
	if err != nil {
		return out, err
	}
	defer params.release()
	name, err := s.lib.bstr(path.Relative())
	if err != nil {
		return out, invalid(op, err)
	}
	defer s.lib.free(name)
	verb, err := s.lib.bstr(method)
	if err != nil {
		return out, invalid(op, err)
	}
	defer s.lib.free(verb)
	var result *object
	if r := services.call(servicesExecMethod, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(verb)), 0, 0, uintptr(unsafe.Pointer(params)),
		uintptr(unsafe.Pointer(&result)), 0); failed(r) {
		return out, s.lib.fail(op, r)
	}
	if result == nil { // no out parameters and no return value
		return out, nil
	}
	defer result.release()
	answer, err := s.properties(result)
	if err != nil {
		return out, &cim.Error{Code: cim.CodeProtocol, Op: op, Err: err}
	}
	if v, ok := answer.Uint("ReturnValue"); ok {
		out.Return = uint32(v)
	}
	for _, p := range answer {
		if !strings.EqualFold(p.Name, "ReturnValue") {
			out.Args = append(out.Args, p)
		}
	}
	return out, nil
}

// parameters makes the object of a method's in-parameters; nil if the method has none.
func (s *Session) parameters(services *object, op string, path cim.Path, method string, in cim.Args) (*object, error) {
	class, err := s.getClass(services, op, path.Class)
	if err != nil {
		return nil, err
	}
	defer class.release()
	name, err := windows.UTF16PtrFromString(method)
	if err != nil {
		return nil, invalid(op, err)
	}
	var signature, outSignature *object
	if r := class.call(classGetMethod, uintptr(unsafe.Pointer(name)), 0, uintptr(unsafe.Pointer(&signature)), uintptr(unsafe.Pointer(&outSignature))); failed(r) {
		err := s.lib.fail(op, r)
		if r == wbemNotFound { // of the method, not of the object
			err = &cim.Error{Code: cim.CodeNoMethod, Op: op, Status: r, Message: "the class has no such method"}
		}
		return nil, err
	}
	defer outSignature.release()
	defer signature.release()
	if signature == nil {
		for _, p := range in {
			if p.Value != nil {
				return nil, &cim.Error{Code: cim.CodeNoMethod, Op: op, Message: "the method takes no parameters, but " + p.Name + " is given"}
			}
		}
		return nil, nil
	}
	var params *object
	if r := signature.call(classSpawn, 0, uintptr(unsafe.Pointer(&params))); failed(r) {
		return nil, s.lib.fail(op, r)
	}
	if err := s.fill(services, signature, params, in, path.Namespace); err != nil {
		params.release()
		return nil, &cim.Error{Code: cim.CodeNoMethod, Op: op, Err: err}
	}
	return params, nil
}

// fill puts values into an object with the types that its class declares. Nulls are left out.
func (s *Session) fill(services, class, target *object, values cim.Args, namespace string) error {
	for _, p := range values {
		if p.Value == nil {
			continue
		}
		name, err := windows.UTF16PtrFromString(p.Name)
		if err != nil {
			return err
		}
		var typ int32
		var old variant
		if r := class.call(classGet, uintptr(unsafe.Pointer(name)), 0, uintptr(unsafe.Pointer(&old)), uintptr(unsafe.Pointer(&typ)), 0); failed(r) {
			return fmt.Errorf("no parameter or property %s (0x%08x)", p.Name, r)
		}
		s.lib.clear(&old)
		vt, list, err := prepare(typ, p.Value, namespace)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		v, err := s.lib.build(vt, list, func(in *cim.Instance) (*object, error) { return s.spawn(services, in, namespace) })
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		r := target.call(classPut, uintptr(unsafe.Pointer(name)), 0, uintptr(unsafe.Pointer(&v)), 0)
		s.lib.clear(&v)
		if failed(r) {
			return fmt.Errorf("put %s: 0x%08x", p.Name, r)
		}
	}
	return nil
}

// spawn makes a COM object of an embedded instance.
func (s *Session) spawn(services *object, in *cim.Instance, namespace string) (*object, error) {
	class, err := s.getClass(services, "embedded "+in.Class, in.Class)
	if err != nil {
		return nil, err
	}
	defer class.release()
	var o *object
	if r := class.call(classSpawn, 0, uintptr(unsafe.Pointer(&o))); failed(r) {
		return nil, fmt.Errorf("make an instance of %s: 0x%08x", in.Class, r)
	}
	if err := s.fill(services, class, o, in.Args, namespace); err != nil {
		o.release()
		return nil, fmt.Errorf("embedded %s: %w", in.Class, err)
	}
	return o, nil
}

// instance reads an object: class, path and all properties.
func (s *Session) instance(o *object) (*cim.Instance, error) {
	class, err := s.system(o, "__CLASS")
	if err != nil {
		return nil, err
	}
	in := &cim.Instance{Class: class}
	text, err := s.system(o, "__PATH")
	if err != nil {
		return nil, err
	}
	if text != "" {
		if in.Path, err = cim.ParsePath(text); err != nil {
			return nil, err
		}
	}
	in.Args, err = s.properties(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", class, err)
	}
	return in, nil
}

// properties reads all properties of an object, with the types that its class declares.
func (s *Session) properties(o *object) (cim.Args, error) {
	var args cim.Args
	if r := o.call(classBegin, flagNonSystemOnly); failed(r) {
		return nil, fmt.Errorf("BeginEnumeration: 0x%08x", r)
	}
	defer o.call(classEnd)
	for {
		var name *bstr
		var v variant
		var typ int32
		r := o.call(classNext, 0, uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&typ)), 0)
		if failed(r) {
			return nil, fmt.Errorf("next property: 0x%08x", r)
		}
		if r != 0 { // WBEM_S_NO_MORE_DATA
			return args, nil
		}
		label := name.String()
		s.lib.free(name)
		raw, err := s.lib.raw(&v, s.embedded)
		s.lib.clear(&v)
		var value cim.Value
		if err == nil {
			value, err = coerce(typ, raw)
		}
		if err != nil {
			return nil, fmt.Errorf("property %s: %w", label, err)
		}
		args.Set(label, value)
	}
}

// embedded reads an object that is a property's value.
func (s *Session) embedded(o *object) (*cim.Instance, error) {
	var inner *object
	if r := o.call(unknownQuery, uintptr(unsafe.Pointer(&iidClass)), uintptr(unsafe.Pointer(&inner))); failed(r) {
		return nil, fmt.Errorf("an embedded object is none of WMI: 0x%08x", r)
	}
	defer inner.release()
	return s.instance(inner)
}

// system reads a system property, "" if it is null or not there.
func (s *Session) system(o *object, property string) (string, error) {
	name, err := windows.UTF16PtrFromString(property)
	if err != nil {
		return "", err
	}
	var v variant
	if r := o.call(classGet, uintptr(unsafe.Pointer(name)), 0, uintptr(unsafe.Pointer(&v)), 0, 0); failed(r) {
		if r == wbemNotFound {
			return "", nil
		}
		return "", fmt.Errorf("%s: 0x%08x", property, r)
	}
	defer s.lib.clear(&v)
	raw, err := s.lib.raw(&v, s.embedded)
	text, _ := raw.(string)
	return text, err
}

// invalid is a request that can't be put into COM's words.
func invalid(op string, err error) error {
	return &cim.Error{Code: cim.CodeInvalidQuery, Op: op, Err: err}
}
