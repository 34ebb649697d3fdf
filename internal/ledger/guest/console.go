//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

const consolePath = "/dev/console"

// say prints whole lines on the console and waits until the UART has sent
// them, so that what the outside has read was true when it was read.
func say(lines ...string) {
	text := strings.Join(lines, "\n") + "\n"
	f, err := os.OpenFile(consolePath, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil { // outside of a guest: the program is run by hand
		fmt.Print(text)
		return
	}
	defer f.Close()
	// One write per call: the tty layer keeps it together.
	f.WriteString(text)
	const tcsbrk = 0x5409 // with a non-zero argument it drains and sends no break
	syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), tcsbrk, 1)
}
