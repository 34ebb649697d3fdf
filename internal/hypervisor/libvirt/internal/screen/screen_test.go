package screen

import (
	"bytes"
	"image"
	"image/png"
	"testing"
)

func picture(t testing.TB) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 3, 2))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestToPNG(t *testing.T) {
	t.Parallel()
	ppm := append([]byte("P6\n2 1\n255\n"), 1, 2, 3, 4, 5, 6)
	b, err := ToPNG(ppm)
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil || img.Bounds().Dx() != 2 || img.Bounds().Dy() != 1 {
		t.Fatalf("%v, %v", img, err)
	}
	if r, g, bl, _ := img.At(1, 0).RGBA(); r>>8 != 4 || g>>8 != 5 || bl>>8 != 6 {
		t.Errorf("colour %d %d %d", r>>8, g>>8, bl>>8)
	}
	p := picture(t)
	if got, err := ToPNG(p); err != nil || !bytes.Equal(got, p) {
		t.Errorf("a PNG is not passed on: %v", err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "half PNG": p[:len(p)-3], "half PPM": ppm[:len(ppm)-1], "huge": []byte("P6\n32000 32000\n255\n"), "depth": []byte("P6\n1 1\n65535\n123456"), "text": []byte("P3\n1 1\n255\n1 2 3"),
	} {
		if _, err := ToPNG(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzToPNG(f *testing.F) {
	f.Add([]byte("P6\n1 1\n255\nabc"))
	f.Add(picture(f))
	f.Add([]byte("P6\n99999999 1\n255\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := ToPNG(b); err == nil && !bytes.HasPrefix(out, []byte("\x89PNG")) {
			t.Fatal("no PNG")
		}
	})
}
