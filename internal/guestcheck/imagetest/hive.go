package imagetest

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// EmptyHive is a registry hive with nothing but a root key.
func EmptyHive() []byte {
	le := binary.LittleEndian
	b := make([]byte, 8192)
	copy(b, "regf")
	for at, v := range map[int]uint32{4: 1, 8: 1, 20: 1, 24: 3, 32: 1, 36: 0x20, 40: 4096, 44: 1} {
		le.PutUint32(b[at:], v)
	}
	h := b[4096:]
	copy(h, "hbin")
	le.PutUint32(h[8:], 4096)
	nk := h[0x20:]
	le.PutUint32(nk, 0xFFFFFFA0)
	copy(nk[4:], "nk\x2c\x00")
	for at, v := range map[int]uint32{16: 0xFFFFFFFF, 28: 0xFFFFFFFF, 32: 0xFFFFFFFF, 40: 0xFFFFFFFF, 44: 0x80, 48: 0xFFFFFFFF, 72: 4} {
		le.PutUint32(nk[4+at:], v)
	}
	copy(nk[4+76:], "ROOT")
	sk := h[0x80:]
	le.PutUint32(sk, 0xFFFFFFD0)
	copy(sk[4:], "sk")
	for at, v := range map[int]uint32{4: 0x80, 8: 0x80, 12: 1, 16: 20} {
		le.PutUint32(sk[4+at:], v)
	}
	copy(sk[4+20:], "\x01\x00\x00\x80")
	le.PutUint32(h[0xB0:], 4096-0xB0) // free
	SealHive(b)
	return b
}

// SealHive computes the checksum of a hive's header.
func SealHive(b []byte) {
	sum := uint32(0)
	for k := 0; k < 508; k += 4 {
		sum ^= binary.LittleEndian.Uint32(b[k:])
	}
	binary.LittleEndian.PutUint32(b[508:], sum)
}

// Hive makes a hive of what is written in the format of .reg files, by
// hivexregedit. Keys above those that are named are made, too.
func Hive(t testing.TB, reg string) string {
	t.Helper()
	img := Blank(t, 0)
	must(t, os.WriteFile(img, EmptyHive(), 0o600))
	all := "Windows Registry Editor Version 5.00\n\n"
	known := map[string]bool{}
	for line := range strings.Lines(reg) {
		if key := strings.Trim(line, "[]\n"); strings.HasPrefix(line, "[") {
			for k := 1; k < len(key); k++ {
				if key[k] == '\\' && !known[key[:k]] {
					known[key[:k]] = true
					all += "[" + key[:k] + "]\n\n"
				}
			}
			known[key] = true
		}
		all += line
	}
	Tool(t, all+"\n", "hivexregedit", "--merge", img)
	b, err := os.ReadFile(img)
	must(t, err)
	return string(b)
}
