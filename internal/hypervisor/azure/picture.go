package azure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
)

// maxPixels bounds a picture in each direction.
const maxPixels = 8192

// toPNG makes a PNG of a screenshot: of a bitmap without compression with 24 or 32 bits per pixel
// (BITMAPFILEHEADER and BITMAPINFOHEADER, [MS-WMF] 2.2.2.9), which is what Azure keeps. A PNG is returned as it is.
func toPNG(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")) {
		if _, err := png.DecodeConfig(bytes.NewReader(b)); err != nil {
			return nil, fmt.Errorf("it is a damaged PNG: %w", err)
		}
		return b, nil
	}
	img, err := decodeBMP(b)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func decodeBMP(b []byte) (image.Image, error) {
	le := binary.LittleEndian
	if len(b) < 54 || b[0] != 'B' || b[1] != 'M' {
		return nil, errors.New("it is neither a PNG nor a bitmap")
	}
	start, header := int64(le.Uint32(b[10:])), le.Uint32(b[14:])
	width, height := int64(int32(le.Uint32(b[18:]))), int64(int32(le.Uint32(b[22:])))
	bits, compression := int64(le.Uint16(b[28:])), le.Uint32(b[30:])
	up := true // rows come from the bottom
	if height < 0 {
		up, height = false, -height
	}
	switch {
	case header < 40 || bits != 24 && bits != 32 || compression != 0 && (compression != 3 || bits != 32):
		return nil, fmt.Errorf("the bitmap is of a kind that is not known (header %d, %d bits, compression %d)", header, bits, compression)
	case width < 1 || height < 1 || width > maxPixels || height > maxPixels:
		return nil, fmt.Errorf("the bitmap has %d by %d pixels", width, height)
	}
	row := (width*bits/8 + 3) &^ 3
	if start < 54 || start+row*height > int64(len(b)) {
		return nil, errors.New("the bitmap is cut off")
	}
	img := image.NewRGBA(image.Rect(0, 0, int(width), int(height)))
	for y := range height {
		from := b[start+y*row:]
		to := y
		if up {
			to = height - 1 - y
		}
		for x := range width {
			p := from[x*bits/8:]
			img.SetRGBA(int(x), int(to), color.RGBA{R: p[2], G: p[1], B: p[0], A: 255})
		}
	}
	return img, nil
}
