package vhdx

import (
	"os/exec"
	"testing"
)

// qemuImg runs qemu-img of the package qemu-utils.
func qemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v (package qemu-utils): %v: %s", args, err, out)
	}
	return out
}
