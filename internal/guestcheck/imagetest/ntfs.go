package imagetest

import (
	"encoding/json"
	"fmt"
	"testing"
)

// NTFSFile is a file, or with a name that ends in a slash a directory.
type NTFSFile struct {
	Name       string
	Data       []byte
	Stride     int    // > 0: the data is written in pieces of 4 KiB, each so many bytes after the one before, with holes between
	Compressed bool   // the directory and what comes into it later
	Reparse    []byte // a reparse point's tag and data
	Delete     bool   // instead of making it
	Fill       bool   // the data is repeated until the volume is full
}

// NTFS makes an NTFS volume of so many MiB; args go to mkntfs. Files are written
// by ntfs-3g's library, without a mount, in the order given.
func NTFS(t testing.TB, mib int64, files []NTFSFile, args ...string) string {
	t.Helper()
	img := Blank(t, mib<<20)
	Tool(t, "", append(append([]string{"mkntfs", "-q", "-F", "-f"}, args...), img)...)
	if len(files) == 0 {
		return img
	}
	spec, err := json.Marshal(files)
	must(t, err)
	Tool(t, string(spec), "python3", "-c", ntfsScript, img)
	return img
}

// NTFSTree is NTFS with files by path; directories are made.
func NTFSTree(t testing.TB, mib int64, files map[string]string, args ...string) string {
	t.Helper()
	var list []NTFSFile
	for n, b := range files {
		list = append(list, NTFSFile{Name: n, Data: []byte(b)})
	}
	return NTFS(t, mib, list, args...)
}

// Pattern is n bytes that do not repeat soon.
func Pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 12345
	for k := range b {
		x = x*1664525 + 1013904223
		b[k] = byte(x >> 24)
	}
	return b
}

// Text is n bytes of text that packs well.
func Text(n int) []byte {
	b := []byte{}
	for k := 0; len(b) < n; k++ {
		b = fmt.Appendf(b, "line %d: the quick brown fox jumps over the lazy dog\n", k*k)
	}
	return b[:n]
}

const ntfsScript = `
import base64, ctypes, json, os, sys
from ctypes import c_void_p, c_char_p, c_ulong, c_int64, c_uint32, c_uint8, c_int, byref
lib = ctypes.CDLL("libntfs-3g.so.89", use_errno=True)
def fn(name, res, *args):
    f = getattr(lib, name); f.restype = res; f.argtypes = args
    return f
mount = fn("ntfs_mount", c_void_p, c_char_p, c_ulong)
umount = fn("ntfs_umount", c_int, c_void_p, c_int)
find = fn("ntfs_pathname_to_inode", c_void_p, c_void_p, c_void_p, c_char_p)
create = fn("ntfs_create", c_void_p, c_void_p, c_uint32, c_char_p, c_uint8, c_uint32)
close = fn("ntfs_inode_close", c_int, c_void_p)
aopen = fn("ntfs_attr_open", c_void_p, c_void_p, c_uint32, c_void_p, c_uint32)
aclose = fn("ntfs_attr_close", None, c_void_p)
apclose = fn("ntfs_attr_pclose", c_int, c_void_p)
pwrite = fn("ntfs_attr_pwrite", c_int64, c_void_p, c_int64, c_int64, c_char_p)
setattrib = fn("ntfs_set_ntfs_attrib", c_int, c_void_p, c_char_p, c_ulong, c_int)
setreparse = fn("ntfs_set_ntfs_reparse_data", c_int, c_void_p, c_char_p, c_ulong, c_int)
delete = fn("ntfs_delete", c_int, c_void_p, c_char_p, c_void_p, c_void_p, c_char_p, c_uint8)
unnamed = ctypes.addressof(ctypes.c_uint16.in_dll(lib, "AT_UNNAMED"))
def check(x, what):
    if not x:
        sys.exit("%s: %s" % (what, os.strerror(ctypes.get_errno())))
    return x
vol = check(mount(sys.argv[1].encode(), 0), "mount")
state = ctypes.cast(vol + 16, ctypes.POINTER(c_ulong))
state[0] |= 1 << 6  # compression
check(fn("ntfs_volume_get_free_space", c_int, c_void_p)(vol) == 0, "free space")
known = {}
def make(path, directory):
    parent, _, base = path.rpartition("/")
    if parent and parent not in known:
        close(make(parent, True))
    d = check(find(vol, None, ("/" + parent).encode()), "open " + parent)
    n = base.encode("utf-16-le")
    ni = create(d, 0, n, len(n) // 2, 0o040000 if directory else 0o100000)
    check(ni, "create " + path)
    close(d)
    if directory:
        known[path] = True
    return ni
for f in json.load(sys.stdin):
    name, data = f["Name"].strip("/"), base64.b64decode(f["Data"] or "")
    if f["Delete"]:
        parent, _, base = name.rpartition("/")
        n = base.encode("utf-16-le")
        ni, d = check(find(vol, None, ("/" + name).encode()), "find " + name), check(find(vol, None, ("/" + parent).encode()), "find " + parent)
        check(delete(vol, None, ni, d, n, len(n) // 2) == 0, "delete " + name)
        continue
    ni = make(name, f["Name"].endswith("/"))
    if f["Compressed"]:
        check(setattrib(ni, (0x800).to_bytes(4, "little"), 4, 0) == 0, "attributes of " + name)
    if f["Reparse"]:
        r = base64.b64decode(f["Reparse"])
        check(setreparse(ni, r, len(r), 0) == 0, "reparse point " + name)
    if data:
        na = check(aopen(ni, 0x80, unnamed, 0), "data of " + name)
        step = 4096 if f["Stride"] else len(data)
        for k in range(0, len(data), step):
            at = k // 4096 * f["Stride"] if f["Stride"] else 0
            part = data[k:k+step]
            while part:
                n = pwrite(na, at, len(part), part)
                if n <= 0 and f["Fill"]:
                    break
                check(n > 0, "write " + name)
                at, part = at + n, part[n:]
                if f["Fill"] and not part:
                    part = data
        apclose(na)
        aclose(na)
    check(close(ni) == 0, "close " + name)
check(umount(vol, 0) == 0, "umount")
`
