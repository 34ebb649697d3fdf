package vhdx

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
)

func TestSmoke(t *testing.T) {
	d := t.TempDir()
	base := filepath.Join(d, "base.vhdx")
	f, err := Create(base, CreateSpec{Size: 100 * mib, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte("abc"), 1000)
	if _, err := f.WriteAt(p, 33*mib-777); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(d, "child.avhdx")
	c, err := CreateChild(child, base, CreateSpec{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ch, err := OpenChain(child, ChainOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.WriteAt([]byte("XYZ"), 33*mib); err != nil {
		t.Fatal(err)
	}
	want := append([]byte{}, p...)
	copy(want[777:], "XYZ")
	got := make([]byte, len(p))
	if _, err := ch.ReadAt(got, 33*mib-777); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err, "differs")
	}
	ch.Close()
	if err := Merge(context.Background(), child, base, nil); err != nil {
		t.Fatal(err)
	}
	ch, err = OpenChain(base, ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.ReadAt(got, 33*mib-777); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err, "differs")
	}
	ch.Close()
}
