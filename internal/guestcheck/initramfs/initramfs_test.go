package initramfs

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

// archive packs files with cpio and compresses the result with a command.
func archive(t testing.TB, files map[string]string, compress ...string) []byte {
	t.Helper()
	dir := imagetest.Tree(t, files)
	out := imagetest.Blank(t, 0)
	imagetest.Tool(t, "", "sh", "-c", "cd '"+dir+"' && find . | cpio --quiet -o -H newc > "+out)
	if len(compress) > 0 {
		imagetest.Tool(t, "", "sh", "-c", strings.Join(compress, " ")+" < "+out+" > "+out+".z && mv "+out+".z "+out)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func files() map[string]string {
	return map[string]string{
		"lib/modules/6.1/kernel/drivers/hv/hv_vmbus.ko":        strings.Repeat("elf ", 30000),
		"lib/modules/6.1/kernel/drivers/scsi/hv_storvsc.ko.xz": "xz",
		"lib/modules/6.1/kernel/drivers/net/hv-netvsc.ko.zst":  "zst",
		"lib/modules/6.1/modules.builtin":                      "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n",
		"init":                                                 "#!/bin/sh\n",
	}
}

func TestEveryCompression(t *testing.T) {
	t.Parallel()
	micro := archive(t, map[string]string{"kernel/x86/microcode/GenuineIntel.bin": strings.Repeat("m", 3000)})
	for name, cmd := range map[string][]string{
		"cpio": nil, "gzip": {"gzip", "-c"}, "xz": {"xz", "--check=crc32", "-c"}, "lzma": {"xz", "--format=lzma", "-c"},
		"zstd": {"zstd", "-q", "-19", "-c"}, "lz4": {"lz4", "-l", "-c"}, "bzip2": {"bzip2", "-c"}, "lzo": {"lzop", "-c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			z := archive(t, files(), cmd...)
			for _, c := range []struct {
				data    []byte
				formats []string
			}{
				{z, []string{name}},
				{slices.Concat(micro, make([]byte, 512), z), []string{"cpio", name}},
			} {
				got, err := Read(bytes.NewReader(c.data))
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got.Names(), []string{"hv_netvsc", "hv_storvsc", "hv_vmbus"}) || !got.Builtin["virtio_pci"] || !got.Builtin["ext4"] {
					t.Errorf("%q, built in: %v", got.Names(), got.Builtin)
				}
				formats := slices.DeleteFunc(slices.Clone(got.Formats), func(f string) bool { return f == "cpio" && name != "cpio" })
				want := slices.DeleteFunc(slices.Clone(c.formats), func(f string) bool { return f == "cpio" && name != "cpio" })
				if !slices.Equal(formats, want) {
					t.Errorf("formats %q, want %q", got.Formats, c.formats)
				}
			}
			for _, cut := range []int{len(z) / 2, len(z) - len(z)/10} {
				if got, err := Read(bytes.NewReader(z[:cut])); err == nil {
					t.Errorf("cut off at %d of %d: %q", cut, len(z), got.Names())
				}
			}
		})
	}
}

func TestHostile(t *testing.T) {
	t.Parallel()
	entry := func(size string) []byte {
		return []byte("070701" + strings.Repeat("0", 48) + size + strings.Repeat("0", 32) + "00000002" + "00000000" + "a\x00")
	}
	for name, b := range map[string][]byte{"empty": nil, "zeros": make([]byte, 4096), "text": []byte("no archive at all"), "huge file": entry("ffffffff"), "no hex": entry("zzzzzzzz")} {
		if c, err := Read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	x := archive(t, files(), "xz", "-c", "--lzma2=dict=1GiB")
	if _, err := Read(bytes.NewReader(x)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("dictionary of 1 GiB: %v", err)
	}
	bomb := imagetest.Blank(t, 0)
	imagetest.Tool(t, "", "sh", "-c", "head -c 100000000 /dev/zero | zstd -q -c > "+bomb)
	b, err := os.ReadFile(bomb)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("padding without end: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	small := map[string]string{"lib/modules/6/hv_vmbus.ko": "elf", "modules.builtin": "kernel/a.ko\n"}
	for _, cmd := range [][]string{nil, {"gzip", "-c"}, {"xz", "-c"}, {"zstd", "-q", "-c"}, {"lz4", "-l", "-c"}, {"lzop", "-c"}, {"bzip2", "-c"}, {"xz", "--format=lzma", "-c"}} {
		f.Add(archive(f, small, cmd...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Read(bytes.NewReader(b))
		if err == nil && c.Archives == 0 {
			t.Error("nothing was read, and no error said so")
		}
	})
}
