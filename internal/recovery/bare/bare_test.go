package bare

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store/storetest"
)

// The ledger guest boots from nothing but a store.
func TestBootLedgerGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	cache, err := guestimage.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := guestimage.Build(t.Context(), guestimage.Config{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile(img.Boot)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(img.Data)
	if err != nil {
		t.Fatal(err)
	}
	r := storetest.New(t, mem.New(), int64(len(boot)), int64(len(data)))
	r.VM.MemoryMB = 128
	r.Flat[0], r.Flat[1] = boot, data
	pt := r.Base()
	view, err := r.Store().OpenPoint(t.Context(), r.Machine, pt.Ref.Gen, pt.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	in, console := io.Pipe()
	proved := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			if l, ok := ledger.ParseLine(lines.Text()); ok && l.Kind == ledger.KindBoot {
				proved <- lines.Text()
				cancel()
				break
			}
		}
		_, _ = io.Copy(io.Discard, in)
	}()
	err = Boot(ctx, Config{View: view, Console: console, Accel: "tcg"})
	console.Close()
	select {
	case line := <-proved:
		t.Log(line)
	default:
		t.Fatalf("the guest gave no sign of life: %v", err)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Boot ended with %v", err)
	}
}

func TestNoFirmware(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 1<<20)
	r.VM.Generation = 2
	pt := r.Base()
	view, err := r.Store().OpenPoint(t.Context(), r.Machine, pt.Ref.Gen, pt.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	args, err := arguments(Config{View: view})
	if err == nil && !strings.Contains(strings.Join(args, " "), "pflash") || err != nil && dr.KindOf(err) != dr.KindUnsupported {
		t.Errorf("a UEFI guest without firmware: %v %v", args, err)
	}
}
