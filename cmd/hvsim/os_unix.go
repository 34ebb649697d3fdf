//go:build !windows

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// onHangup delivers SIGHUP.
func onHangup(c chan<- os.Signal) { signal.Notify(c, syscall.SIGHUP) }
