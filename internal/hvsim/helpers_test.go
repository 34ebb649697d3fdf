package hvsim_test

import (
	"errors"
	"os"
	"testing"
)

func as(err error, target any) bool { return errors.As(err, target) }

// copyTree copies a directory with its symbolic links.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
