package com

import (
	"fmt"
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"holdfast/internal/cim"
)

// libraries holds the functions of oleaut32.dll and ole32.dll that the package calls.
type libraries struct {
	sysAlloc, sysFree, variantClear                                      *windows.LazyProc
	arrayCreate, arrayDestroy, arrayAccess, arrayUnaccess                *windows.LazyProc
	arrayType, arrayDim, arrayLow, arrayHigh, errorInfo                  *windows.LazyProc
	initialize, uninitialize, security, create, blanket, enable, cancelC *windows.LazyProc
}

func loadLibraries() *libraries {
	aut, ole := windows.NewLazySystemDLL("oleaut32.dll"), windows.NewLazySystemDLL("ole32.dll")
	return &libraries{
		sysAlloc: aut.NewProc("SysAllocStringLen"), sysFree: aut.NewProc("SysFreeString"), variantClear: aut.NewProc("VariantClear"),
		arrayCreate: aut.NewProc("SafeArrayCreateVector"), arrayDestroy: aut.NewProc("SafeArrayDestroy"),
		arrayAccess: aut.NewProc("SafeArrayAccessData"), arrayUnaccess: aut.NewProc("SafeArrayUnaccessData"),
		arrayType: aut.NewProc("SafeArrayGetVartype"), arrayDim: aut.NewProc("SafeArrayGetDim"),
		arrayLow: aut.NewProc("SafeArrayGetLBound"), arrayHigh: aut.NewProc("SafeArrayGetUBound"), errorInfo: aut.NewProc("GetErrorInfo"),
		initialize: ole.NewProc("CoInitializeEx"), uninitialize: ole.NewProc("CoUninitialize"), security: ole.NewProc("CoInitializeSecurity"),
		create: ole.NewProc("CoCreateInstance"), blanket: ole.NewProc("CoSetProxyBlanket"),
		enable: ole.NewProc("CoEnableCallCancellation"), cancelC: ole.NewProc("CoCancelCall"),
	}
}

// object is a COM interface pointer. It is valid in the apartment of the session's threads.
type object struct {
	vtable *[64]uintptr
}

// call calls a method by its place in the interface's table; the result is an HRESULT.
// The directive keeps what the arguments point to in place during the call.
//
//go:uintptrescapes
func (o *object) call(method int, args ...uintptr) uint32 {
	all := make([]uintptr, 1, 1+len(args))
	all[0] = uintptr(unsafe.Pointer(o))
	r, _, _ := syscall.SyscallN(o.vtable[method], append(all, args...)...)
	return uint32(r)
}

func (o *object) release() {
	if o != nil {
		o.call(unknownRelease)
	}
}

// bstr is a string as COM owns it. The null pointer is the empty string.
type bstr struct{ first uint16 }

func (l *libraries) bstr(s string) (*bstr, error) {
	units, err := windows.UTF16FromString(s)
	if err != nil {
		return nil, fmt.Errorf("text %q has a zero character", s)
	}
	var b *bstr
	r, _, _ := l.sysAlloc.Call(uintptr(unsafe.Pointer(&units[0])), uintptr(len(units)-1))
	if r == 0 {
		return nil, fmt.Errorf("no memory for a text of %d bytes", len(s))
	}
	*(*uintptr)(unsafe.Pointer(&b)) = r
	return b, nil
}

func (l *libraries) free(b *bstr) {
	if b != nil {
		_, _, _ = l.sysFree.Call(uintptr(unsafe.Pointer(b)))
	}
}

// String copies the text. Its length in bytes stands before its first unit.
func (b *bstr) String() string {
	if b == nil {
		return ""
	}
	n := *(*uint32)(unsafe.Add(unsafe.Pointer(b), -4)) / 2
	return windows.UTF16ToString(unsafe.Slice((*uint16)(unsafe.Pointer(b)), n))
}

// variant is VARIANT in the layout of 64 bits.
type variant struct {
	vt  uint16
	_   [3]uint16
	val uint64
	_   uint64
}

func (l *libraries) clear(v *variant) {
	_, _, _ = l.variantClear.Call(uintptr(unsafe.Pointer(v)))
}

// raw reads a VARIANT for coerce. Objects come by way of asInstance.
func (l *libraries) raw(v *variant, asInstance func(*object) (*cim.Instance, error)) (any, error) {
	if v.vt&vtArray != 0 {
		return l.rawArray(v, asInstance)
	}
	return rawOne(v.vt, unsafe.Pointer(&v.val), asInstance)
}

// rawOne reads one place of a VARIANT or SAFEARRAY.
func rawOne(vt uint16, p unsafe.Pointer, asInstance func(*object) (*cim.Instance, error)) (any, error) {
	switch vt {
	case vtEmpty, vtNull:
		return nil, nil
	case vtI1:
		return int64(*(*int8)(p)), nil
	case vtUI1:
		return uint64(*(*uint8)(p)), nil
	case vtI2:
		return int64(*(*int16)(p)), nil
	case vtUI2:
		return uint64(*(*uint16)(p)), nil
	case vtI4, vtInt:
		return int64(*(*int32)(p)), nil
	case vtUI4, vtUint:
		return uint64(*(*uint32)(p)), nil
	case vtI8:
		return *(*int64)(p), nil
	case vtUI8:
		return *(*uint64)(p), nil
	case vtR4:
		return float64(*(*float32)(p)), nil
	case vtR8:
		return *(*float64)(p), nil
	case vtBool:
		return *(*int16)(p) != 0, nil
	case vtBSTR:
		return (*(**bstr)(p)).String(), nil
	case vtUnknown:
		o := *(**object)(p)
		if o == nil {
			return nil, nil
		}
		return asInstance(o)
	}
	return nil, fmt.Errorf("a VARIANT of type %d is not known", vt)
}

// width is the size of a SAFEARRAY's place.
func width(vt uint16) uintptr {
	switch vt {
	case vtI1, vtUI1:
		return 1
	case vtI2, vtUI2, vtBool:
		return 2
	case vtI4, vtUI4, vtInt, vtUint, vtR4:
		return 4
	}
	return 8
}

func (l *libraries) rawArray(v *variant, asInstance func(*object) (*cim.Instance, error)) (any, error) {
	sa := *(*unsafe.Pointer)(unsafe.Pointer(&v.val))
	if sa == nil {
		return nil, nil
	}
	if dim, _, _ := l.arrayDim.Call(uintptr(sa)); dim != 1 {
		return nil, fmt.Errorf("an array of %d dimensions", dim)
	}
	var vt uint16
	var low, high int32
	var data unsafe.Pointer
	if r, _, _ := l.arrayType.Call(uintptr(sa), uintptr(unsafe.Pointer(&vt))); failed(uint32(r)) {
		return nil, fmt.Errorf("SafeArrayGetVartype: 0x%08x", uint32(r))
	}
	if r, _, _ := l.arrayLow.Call(uintptr(sa), 1, uintptr(unsafe.Pointer(&low))); failed(uint32(r)) {
		return nil, fmt.Errorf("SafeArrayGetLBound: 0x%08x", uint32(r))
	}
	if r, _, _ := l.arrayHigh.Call(uintptr(sa), 1, uintptr(unsafe.Pointer(&high))); failed(uint32(r)) {
		return nil, fmt.Errorf("SafeArrayGetUBound: 0x%08x", uint32(r))
	}
	if r, _, _ := l.arrayAccess.Call(uintptr(sa), uintptr(unsafe.Pointer(&data))); failed(uint32(r)) {
		return nil, fmt.Errorf("SafeArrayAccessData: 0x%08x", uint32(r))
	}
	defer func() { _, _, _ = l.arrayUnaccess.Call(uintptr(sa)) }()
	list := make([]any, 0, max(0, int(high)-int(low)+1))
	for i := range uintptr(cap(list)) {
		one, err := rawOne(vt, unsafe.Add(data, i*width(vt)), asInstance)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

// build fills a VARIANT that clear frees. spawn makes COM objects of embedded instances.
func (l *libraries) build(vt uint16, list []element, spawn func(*cim.Instance) (*object, error)) (variant, error) {
	v := variant{vt: vt}
	if vt&vtArray == 0 {
		return v, l.put(vt, list[0], unsafe.Pointer(&v.val), spawn)
	}
	elem := vt &^ vtArray
	sa, _, _ := l.arrayCreate.Call(uintptr(elem), 0, uintptr(len(list)))
	if sa == 0 {
		return variant{}, fmt.Errorf("no memory for an array of %d", len(list))
	}
	v.val = uint64(sa)
	if len(list) == 0 {
		return v, nil
	}
	var data unsafe.Pointer
	if r, _, _ := l.arrayAccess.Call(sa, uintptr(unsafe.Pointer(&data))); failed(uint32(r)) {
		l.clear(&v)
		return variant{}, fmt.Errorf("SafeArrayAccessData: 0x%08x", uint32(r))
	}
	var err error
	for i, e := range list {
		if err = l.put(elem, e, unsafe.Add(data, uintptr(i)*width(elem)), spawn); err != nil {
			break
		}
	}
	_, _, _ = l.arrayUnaccess.Call(sa)
	if err != nil {
		l.clear(&v)
		return variant{}, err
	}
	return v, nil
}

// put writes one place of a VARIANT or SAFEARRAY.
func (l *libraries) put(vt uint16, e element, p unsafe.Pointer, spawn func(*cim.Instance) (*object, error)) error {
	switch vt {
	case vtBSTR:
		b, err := l.bstr(e.text)
		if err != nil {
			return err
		}
		*(**bstr)(p) = b
	case vtUnknown:
		o, err := spawn(e.obj)
		if err != nil {
			return err
		}
		*(**object)(p) = o
	case vtUI1:
		*(*uint8)(p) = uint8(e.bits)
	case vtI2, vtBool:
		*(*uint16)(p) = uint16(e.bits)
	case vtI4:
		*(*uint32)(p) = uint32(e.bits)
	case vtR4:
		*(*float32)(p) = math.Float32frombits(uint32(e.bits))
	case vtR8:
		*(*uint64)(p) = e.bits
	default:
		return fmt.Errorf("a VARIANT of type %d is not written", vt)
	}
	return nil
}
