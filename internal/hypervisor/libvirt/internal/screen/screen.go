// Package screen turns the pictures of a VM's display into PNG.
package screen

import (
	"bufio"
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
)

const maxSide = 1 << 13 // pixels

// ToPNG takes what QEMU delivers: PNG, or PPM (P6) from older versions.
func ToPNG(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")) {
		if !bytes.HasSuffix(b, []byte("IEND\xaeB`\x82")) {
			return nil, fmt.Errorf("PNG: %w", io.ErrUnexpectedEOF)
		}
		return b, nil
	}
	img, err := decodePPM(b)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// decodePPM reads binary PPM: "P6 width height 255", one white space, RGB bytes.
func decodePPM(b []byte) (image.Image, error) {
	r := bufio.NewReader(bytes.NewReader(b))
	var w, h, depth int
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &w, &h, &depth); err != nil {
		return nil, fmt.Errorf("neither PNG nor PPM: %w", err)
	}
	if depth != 255 || w <= 0 || h <= 0 || w > maxSide || h > maxSide {
		return nil, fmt.Errorf("PPM of %d x %d with maximum %d", w, h, depth)
	}
	if 3*w*h > len(b) { // before anything of that size is allocated
		return nil, io.ErrUnexpectedEOF
	}
	pix := make([]byte, 3*w)
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		if _, err := io.ReadFull(r, pix); err != nil {
			return nil, err
		}
		for x := range w {
			img.SetRGBA(x, y, color.RGBA{pix[3*x], pix[3*x+1], pix[3*x+2], 0xff})
		}
	}
	return img, nil
}
