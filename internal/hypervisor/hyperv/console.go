package hyperv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io/fs"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// The size of screenshots, pixels; the host scales.
const shotWidth, shotHeight = 800, 600

// Screenshot asks the host for a picture of the VM's display.
func (h *Host) Screenshot(ctx context.Context, id dr.VMID) ([]byte, error) {
	const op = "Screenshot"
	vm, _, err := h.load(ctx, op, id, msvm.Storage)
	if err != nil {
		return nil, err
	}
	if vm.State == msvm.Off {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "hyperv."+op, "VM %s is not running", vm.Name)
	}
	raw, err := h.ms.Thumbnail(ctx, vm.Settings.ID, shotWidth, shotHeight)
	if err != nil {
		return nil, msvm.Wrap(op, "take a picture of VM "+vm.Name, "", err)
	}
	if len(raw) == 0 {
		return nil, dr.Errorf(dr.KindUnsupported, "hyperv."+op, "the host has no picture of VM %s", vm.Name)
	}
	b, err := rgb565(raw, shotWidth, shotHeight)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "picture of VM %s: %w", vm.Name, err)
	}
	return b, nil
}

// rgb565 makes a PNG of 16-bit pixels, little endian.
func rgb565(raw []byte, width, height int) ([]byte, error) {
	if len(raw) != 2*width*height {
		return nil, errors.New("it has not the size that was asked for")
	}
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for i := range width * height {
		v := uint32(binary.LittleEndian.Uint16(raw[2*i:]))
		r, g, b := v>>11&31, v>>5&63, v&31
		img.SetRGBA(i%width, i/width, color.RGBA{R: uint8(r * 255 / 31), G: uint8(g * 255 / 63), B: uint8(b * 255 / 31), A: 255})
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// SerialLog returns what the guest wrote to a serial port, if that goes to a file.
// On a Windows host it goes to a named pipe that nobody keeps: dr.KindUnsupported.
func (h *Host) SerialLog(ctx context.Context, id dr.VMID, limit int) ([]byte, error) {
	const op = "SerialLog"
	vm, _, err := h.load(ctx, op, id, msvm.Systems)
	if err != nil {
		return nil, err
	}
	logs, ok := h.cfg.Disks.(SerialLogs)
	if !ok {
		return nil, dr.Errorf(dr.KindUnsupported, "hyperv."+op, "the serial port of VM %s is not kept in a file", vm.Name)
	}
	b, err := logs.SerialLog(ctx, vm.ID, max(limit, 0))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, dr.Errorf(dr.KindUnsupported, "hyperv."+op, "the serial port of VM %s is not kept in a file", vm.Name)
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the serial log of VM %s: %w", vm.Name, err)
	}
	return b, nil
}
