//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "the ledger guest program runs on Linux only")
	os.Exit(2)
}
