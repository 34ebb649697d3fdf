package hyperv_test

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
)

// screens runs guests that show one colour and write one line.
type screens struct{}

func (screens) Start(_ context.Context, run model.VMRun) (model.Running, error) {
	if err := os.MkdirAll(filepath.Dir(run.Serial), 0o755); err != nil {
		return nil, err
	}
	return &screen{done: make(chan struct{})}, os.WriteFile(run.Serial, []byte("guest "+run.Name+" is up\n"), 0o600)
}

type screen struct {
	once sync.Once
	done chan struct{}
}

func (s *screen) Powerdown(context.Context) error { return s.Kill() }
func (s *screen) Pause(context.Context) error     { return nil }
func (s *screen) Resume(context.Context) error    { return nil }
func (s *screen) Done() <-chan struct{}           { return s.done }
func (s *screen) Kill() error                     { s.once.Do(func() { close(s.done) }); return nil }

func (s *screen) Screenshot(context.Context) ([]byte, error) {
	img := image.NewRGBA(image.Rect(0, 0, 64, 48))
	for y := range 48 {
		for x := range 64 {
			img.SetRGBA(x, y, color.RGBA{R: 255, B: 66, A: 255})
		}
	}
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}

// TestConsole: picture, serial log and heartbeat of a guest that runs.
func TestConsole(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline, c.Runner = true, screens{} })
	h := r.open(t)
	ctx := t.Context()
	b, err := h.SerialLog(ctx, r.id(), 1<<10)
	must(t, err)
	if string(b) != "guest web1 is up\n" {
		t.Errorf("serial log %q", b)
	}
	if b, err = h.SerialLog(ctx, r.id(), 3); err != nil || string(b) != "up\n" {
		t.Errorf("end of the serial log %q, %v", b, err)
	}
	shot, err := h.Screenshot(ctx, r.id())
	must(t, err)
	img, err := png.Decode(bytes.NewReader(shot))
	must(t, err)
	if got := color.RGBAModel.Convert(img.At(400, 300)); got != (color.RGBA{R: 255, B: 65, A: 255}) || img.Bounds().Dx() != 800 {
		t.Errorf("pixel %v of a picture of %v", got, img.Bounds())
	}
	must(t, r.vm.PowerOff())
	_, err = h.Screenshot(ctx, r.id())
	wantCode(t, err, dr.CodeVMNotRunning)
}

// TestPulse: only a guest that is heard from is alive.
func TestPulse(t *testing.T) {
	t.Parallel()
	for status, want := range map[uint16]bool{2: true, 3: true, 7: false, 12: false, 13: false} {
		r := newRig(t, func(c *hvsim.Config, s *hvsim.VMSpec) { c.Inline, s.Heartbeat = true, status })
		h := r.open(t)
		sign, alive, err := h.Pulse(t.Context(), r.id())
		if err != nil || alive != want || (sign != "") != want {
			t.Errorf("status %d: %q, %v, %v", status, sign, alive, err)
		}
		must(t, r.vm.PowerOff())
		if sign, alive, err = h.Pulse(t.Context(), r.id()); err != nil || alive || sign != "" {
			t.Errorf("a VM that is off: %q, %v, %v", sign, alive, err)
		}
		_, _, err = h.Pulse(t.Context(), "00000000-dead-4bee-8fff-000000000000")
		wantCode(t, err, dr.CodeVMNotFound)
	}
}
