package winetest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/winetest"
)

// TestPrefix proves that programs run, that their failures are told and that nothing of Wine stays.
func TestPrefix(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 seconds")
	}
	t.Parallel()
	p := winetest.New(t)
	good := filepath.Join(p.Drive(), "good.exe")
	winetest.Compile(t, `#include <stdio.h>
int main(int n, char **v) { printf("hello %s", v[1]); return n - 2; }`, good)
	if out := p.Exec(t, good, "there"); out != "hello there" {
		t.Errorf("the program said %q", out)
	}
	if out, err := p.Start(t, good, "there", "again"); err == nil {
		t.Errorf("a program that ended with 1 is no failure (it said %q)", out)
	}
	if text, err := winetest.TryCompile(t, "#error no", filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(text, "no") {
		t.Errorf("the compiler's refusal: %q, %v", text, err)
	}
}
