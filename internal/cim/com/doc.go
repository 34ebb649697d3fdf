// Package com is the cim.Session of a Windows host itself: WMI by COM
// (IWbemLocator, IWbemServices, IWbemClassObject), without listener or
// credentials. It runs as the process's own user.
//
// It promises: values come with the types that the class declares; a call returns
// by its context's deadline even if a provider hangs, and is then cancelled
// (CoCancelCall), though the outcome of a method that was cancelled is unknown; threads
// that providers hold are bounded, and Close tells of them. A connection
// that breaks (the service winmgmt restarts) is made anew by the next call; the call
// that broke is not repeated.
//
// Every call runs on a thread of its own that has entered the multithreaded
// apartment; interface pointers never leave that apartment.
//
// On other platforms Open fails. Keys of paths are rendered in quotes, as all keys
// of root\virtualization\v2 are strings.
//
// Source: the published reference of wbemcli.h, oaidl.h and combaseapi.h (Windows SDK).
package com

import "time"

// Config of a session; the zero value is the host itself.
type Config struct {
	Host         string        // another host, by DCOM as the process's user; "" = this one
	Threads      int           // calls in parallel, hanging ones included; 0 = 16
	CloseTimeout time.Duration // how long Close waits for calls that hang; 0 = 30 s
}

func (c Config) withDefaults() Config {
	if c.Threads <= 0 {
		c.Threads = 16
	}
	if c.CloseTimeout <= 0 {
		c.CloseTimeout = 30 * time.Second
	}
	return c
}
