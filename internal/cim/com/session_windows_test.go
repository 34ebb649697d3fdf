package com

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"holdfast/internal/cim"
)

func open(t *testing.T, cfg Config) *Session {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return s
}

const cimv2 = "root/cimv2"

func TestWindowsQuery(t *testing.T) {
	s := open(t, Config{})
	list, err := s.Query(t.Context(), cimv2, "SELECT * FROM Win32_OperatingSystem")
	if err != nil || len(list) != 1 {
		t.Fatalf("%d operating systems, %v", len(list), err)
	}
	in := list[0]
	if in.Class != "Win32_OperatingSystem" || in.Path.Class != in.Class || in.Path.Namespace == "" || in.Path.Host == "" {
		t.Errorf("class %s, path %v", in.Class, in.Path)
	}
	if !strings.Contains(in.String("Caption"), "Windows") {
		t.Errorf("Caption %q", in.String("Caption"))
	}
	for name, v := range map[string]cim.Value{"Primary": true, "LastBootUpTime": cim.DateTime(""), "FreePhysicalMemory": uint64(0), "ProductType": uint32(0),
		"OSLanguage": uint32(0), "ServicePackMajorVersion": uint16(0), "Caption": ""} {
		got, ok := in.Lookup(name)
		if !ok || typeOf(got) != typeOf(v) {
			t.Errorf("%s is %T, want %T", name, got, v)
		}
	}
	if when, ok := in.Time("LastBootUpTime"); !ok || when.After(time.Now().Add(24*time.Hour)) {
		t.Errorf("boot time %v, %v", when, ok)
	}
	// No match is empty and no error.
	if list, err = s.Query(t.Context(), cimv2, "SELECT * FROM Win32_Process WHERE Caption='no such program'"); err != nil || len(list) != 0 || list == nil {
		t.Errorf("no match: %v, %v", list, err)
	}
	// More objects than one step of the enumeration fetches.
	if list, err = s.Query(t.Context(), cimv2, "SELECT * FROM Win32_Service"); err != nil || len(list) == 0 {
		t.Errorf("services: %d, %v", len(list), err)
	}
	t.Logf("%d services", len(list))
	// An array.
	list, err = s.Query(t.Context(), cimv2, "SELECT * FROM Win32_NetworkAdapterConfiguration")
	if err != nil {
		t.Error(err)
	}
	for _, in := range list {
		if v, ok := in.Lookup("IPAddress"); ok && v != nil {
			if _, ok := v.([]string); !ok {
				t.Errorf("IPAddress is %T", v)
			}
		}
	}
}

func typeOf(v cim.Value) string {
	switch v.(type) {
	case bool:
		return "bool"
	case string:
		return "string"
	case cim.DateTime:
		return "datetime"
	case uint16:
		return "uint16"
	case uint32:
		return "uint32"
	case uint64:
		return "uint64"
	}
	return "other"
}

func TestWindowsGet(t *testing.T) {
	s := open(t, Config{})
	list, err := s.Query(t.Context(), cimv2, "SELECT * FROM Win32_Process")
	if err != nil || len(list) == 0 {
		t.Fatalf("processes: %d, %v", len(list), err)
	}
	in, err := s.Get(t.Context(), list[0].Path)
	if err != nil || in.String("Handle") != list[0].String("Handle") {
		t.Errorf("Get %v: %v, %v", list[0].Path, in, err)
	}
	if _, err := s.Get(t.Context(), cim.Path{Namespace: cimv2, Class: "Win32_Process", Keys: []cim.Key{{Name: "Handle", Value: "99999999"}}}); cim.CodeOf(err) != cim.CodeNotFound {
		t.Errorf("a process that does not exist: %v", err)
	}
}

// TestWindowsInvoke reads the registry by StdRegProv, which has in- and out-parameters, arrays and return values.
func TestWindowsInvoke(t *testing.T) {
	s := open(t, Config{})
	reg := cim.Path{Namespace: "root/default", Class: "StdRegProv"}
	const key = `Software\Microsoft\Windows NT\CurrentVersion`
	const machine = int32(-0x7ffffffe) // HKEY_LOCAL_MACHINE; Wine declares the key as sint32, Windows as uint32
	in := cim.Pairs("hDefKey", machine, "sSubKeyName", key, "sValueName", "CurrentVersion")
	out, err := s.Invoke(t.Context(), reg, "GetStringValue", in)
	if err != nil || out.Return != 0 || out.String("sValue") == "" {
		t.Errorf("GetStringValue: %+v, %v", out, err)
	}
	if !out.Null("ReturnValue") {
		t.Error("the return value is among the out parameters")
	}
	in.Set("sValueName", "no such value")
	if out, err = s.Invoke(t.Context(), reg, "GetStringValue", in); err != nil || out.Return == 0 || out.String("sValue") != "" {
		t.Errorf("a value that does not exist: %+v, %v", out, err)
	}
	out, err = s.Invoke(t.Context(), reg, "EnumKey", cim.Pairs("hDefKey", machine, "sSubKeyName", `Software\Microsoft`))
	if names := out.Strings("sNames"); err != nil || out.Return != 0 || len(names) < 2 {
		t.Errorf("EnumKey: %v, %v", names, err)
	} else if v, _ := out.Lookup("sNames"); v != nil {
		if _, ok := v.([]string); !ok {
			t.Errorf("sNames is %T", v)
		}
	}
	for name, c := range map[string]struct {
		method string
		in     cim.Args
	}{"method": {"NoSuchMethod", nil}, "parameter": {"GetStringValue", cim.Pairs("noSuch", "x")}, "type": {"GetStringValue", cim.Pairs("hDefKey", "x")}} {
		if _, err := s.Invoke(t.Context(), reg, c.method, c.in); cim.CodeOf(err) != cim.CodeNoMethod {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
}

func TestWindowsErrors(t *testing.T) {
	s := open(t, Config{})
	// An unknown class can't be tried: Wine answers it with nothing.
	for name, c := range map[string]struct {
		namespace, wql string
		want           cim.Code
	}{
		"namespace": {"root/no/such", "SELECT * FROM X", cim.CodeInvalidClass},
		"query":     {cimv2, "SELEKT this", cim.CodeInvalidQuery},
		"zero":      {cimv2, "SELECT * FROM A\x00B", cim.CodeInvalidQuery},
	} {
		_, err := s.Query(t.Context(), c.namespace, c.wql)
		var e *cim.Error
		if !errors.As(err, &e) || e.Code != c.want {
			t.Errorf("%s: %v (%s), want %s", name, err, cim.CodeOf(err), c.want)
		}
	}
	if _, err := s.Invoke(t.Context(), cim.Path{Namespace: cimv2, Class: "Win32_NoSuchClass"}, "M", nil); cim.CodeOf(err) != cim.CodeInvalidClass {
		t.Errorf("method of a class that does not exist: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Query(ctx, cimv2, "SELECT * FROM Win32_Process"); cim.CodeOf(err) != cim.CodeTimeout || !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
}

// TestWindowsQueued: many callers share one thread. Queries in parallel can't be tried: Wine 8's wbemprox.dll
// frees a class's rows under another thread's feet (a C program that does nothing else crashes too).
func TestWindowsQueued(t *testing.T) {
	s := open(t, Config{Threads: 1})
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for range 5 {
				if list, err := s.Query(t.Context(), cimv2, "SELECT Caption FROM Win32_OperatingSystem"); err != nil || len(list) != 1 {
					t.Errorf("%d, %v", len(list), err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(s.threads.all); n != 1 {
		t.Errorf("%d threads", n)
	}
}

// TestWindowsThreads: jobs run at the same time, each on a thread of its own, and threads are used again.
func TestWindowsThreads(t *testing.T) {
	s := open(t, Config{Threads: 3})
	for range 2 {
		var wg, together sync.WaitGroup
		together.Add(3)
		var mu sync.Mutex
		ids := map[uint32]bool{}
		for range 3 {
			wg.Go(func() {
				if err := s.threads.run(t.Context(), "x", func() error {
					together.Done()
					together.Wait()
					mu.Lock()
					defer mu.Unlock()
					ids[windows.GetCurrentThreadId()] = true
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(ids) != 3 || len(s.threads.all) != 3 {
			t.Errorf("%d jobs ran on %d threads, the pool has %d", 3, len(ids), len(s.threads.all))
		}
	}
}

// TestWindowsHang: calls that hang hold their callers no longer than their contexts, and a bounded number of threads.
func TestWindowsHang(t *testing.T) {
	s, err := Open(t.Context(), Config{Threads: 2, CloseTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			err := s.threads.run(ctx, "hang", func() error { <-release; return nil })
			if cim.CodeOf(err) != cim.CodeTimeout || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	}
	wg.Wait()
	if n := len(s.threads.all); n > 2 {
		t.Errorf("%d threads", n)
	}
	if err := s.Close(); cim.CodeOf(err) != cim.CodeTimeout {
		t.Errorf("Close with calls that hang: %v", err)
	}
	close(release)
	if _, err := s.Query(t.Context(), cimv2, "SELECT * FROM Win32_Process"); cim.CodeOf(err) == "" {
		t.Errorf("a query after Close: %v", err)
	}
}
