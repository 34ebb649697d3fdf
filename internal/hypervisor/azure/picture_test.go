package azure

import (
	"bytes"
	"encoding/binary"
	"image/png"
	"testing"
)

// bmp makes a bitmap with a red pixel at the upper left and blue ones elsewhere.
func bmp(width, height, bits int, up bool) []byte {
	row := (width*bits/8 + 3) &^ 3
	b := make([]byte, 54+row*height)
	copy(b, "BM")
	le := binary.LittleEndian
	le.PutUint32(b[10:], 54)
	le.PutUint32(b[14:], 40)
	le.PutUint32(b[18:], uint32(width))
	h := int32(height)
	if !up {
		h = -h
	}
	le.PutUint32(b[22:], uint32(h))
	le.PutUint16(b[28:], uint16(bits))
	for y := range height {
		for x := range width {
			p := b[54+y*row+x*bits/8:]
			top := y == 0
			if up {
				top = y == height-1
			}
			if p[0] = 255; top && x == 0 {
				p[0], p[2] = 0, 255
			}
		}
	}
	return b
}

func TestPicture(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{24, 32} {
		for _, up := range []bool{true, false} {
			out, err := toPNG(bmp(5, 3, bits, up))
			if err != nil {
				t.Fatal(err)
			}
			img, err := png.Decode(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			r, _, b, _ := img.At(0, 0).RGBA()
			r2, _, b2, _ := img.At(4, 2).RGBA()
			if img.Bounds().Dx() != 5 || img.Bounds().Dy() != 3 || r == 0 || b != 0 || r2 != 0 || b2 == 0 {
				t.Errorf("%d bits, up %v: %v %d %d %d %d", bits, up, img.Bounds(), r, b, r2, b2)
			}
			again, err := toPNG(out)
			if err != nil || !bytes.Equal(again, out) {
				t.Errorf("a PNG is not returned as it is: %v", err)
			}
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte("hello"), "cut off": bmp(5, 3, 24, true)[:60], "16 bits": bmp(5, 3, 16, true), "damaged PNG": []byte("\x89PNG\r\n\x1a\n1234")} {
		if _, err := toPNG(b); err == nil {
			t.Errorf("%s was taken for a picture", name)
		}
	}
}

func FuzzPicture(f *testing.F) {
	f.Add(bmp(5, 3, 24, true))
	f.Add(bmp(2, 2, 32, false))
	f.Add([]byte("BM"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		out, err := toPNG(b)
		if err == nil && len(out) == 0 {
			t.Error("no picture and no error")
		}
	})
}
