//go:build linux

// Command guest is everything that runs inside the ledger guest: init, the
// ledger writer, and the tools a test calls through the guest agent. It is one
// static program of the standard library only; package guestimage compiles it
// and puts it into the initramfs as /init.
//
// # Words on the kernel command line
//
//	rate=20       ledger records per second (default 20)
//	churn=50      random 4 KiB rewrites per second of /disk/data/churn, made durable once a second (default 0)
//	fill=4096     once after boot: write that many random 4 KiB blocks to /disk/data/fill, sync, print FILL-DONE
//	net=dhcp      bring eth0 up by DHCP; or net=192.0.2.7/24 or net=192.0.2.7/24,192.0.2.1 for a fixed address.
//	              /disk/data is then served by HTTP on port 80
//	verify        after the boot lines print LEDGER-STOP and power off, without writing a record
//
// # Driving it at run time
//
// One request per line, one answer line per request, on the virtio-serial port
// "org.holdfast.ledger.0" (ledger.ControlPort) or, from inside the guest (e.g.
// by guest-exec of the guest agent), with "/ledger ctl fill 4096":
//
//	fill N     write N random 4 KiB blocks, sync, answer (and print on the console) FILL-DONE blocks=N took=…
//	rate N     set records per second, 0 pauses the ledger; answer OK
//	churn N    set rewrites per second; answer OK
//	status     answer STATUS last=N boot=N rate=N churn=N
//
// Anything else is answered with ERROR and a reason.
//
// # Calls
//
//	/init                          as process 1
//	ledger run A B [rate]          write the ledger until SIGTERM
//	ledger verify A B              print the boot lines, exit code 1 if they are unsound
//	ledger ctl WORDS…              see above
//	shutdown [-P|-r|-H] …          what the guest agent calls
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	args := os.Args[1:]
	switch name := filepath.Base(os.Args[0]); {
	case os.Getpid() == 1:
		runInit()
	case name == "shutdown" || name == "poweroff" || name == "halt":
		askInit(args)
	case len(args) >= 3 && args[0] == "run":
		exit(runLedger(args[1:]))
	case len(args) == 3 && args[0] == "verify":
		exit(verify(args[1], args[2]))
	case len(args) >= 2 && args[0] == "ctl":
		exit(control(strings.Join(args[1:], " ")))
	case len(args) == 2 && args[0] == "console":
		say(args[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: ledger run A B [rate] | verify A B | ctl WORDS…")
		os.Exit(2)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// askInit passes a shutdown request to process 1: SIGTERM restarts, SIGUSR2 powers off.
func askInit(args []string) {
	sig := syscall.SIGUSR2
	for _, a := range args {
		if a == "-r" {
			sig = syscall.SIGTERM
		}
	}
	exit(syscall.Kill(1, sig))
}
