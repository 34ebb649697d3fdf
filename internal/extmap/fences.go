package extmap

import (
	"errors"
	"hash/crc32"
)

const (
	fenceFan   = 16 // entries of a level behind one entry of the level above
	sumMask    = 1<<lbaShift - 1
	sumDropped = 32 - lbaShift
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fences is what stays in memory of a run in a file. levels[0] has a word per
// block: the offset of its first record, in units, above the upper 26 bits of its CRC-32C. They
// share a word because both are wanted at once, and a cache miss costs more than the rest of
// a find. Every fenceFan-th word is repeated in the level above.
type fences struct {
	levels [][]uint64
}

func sum(block []byte) uint64 { return uint64(crc32.Checksum(block, castagnoli) >> sumDropped) }

// add appends the word of a block.
func (f *fences) add(block []byte) {
	word := lbaAt(block)<<lbaShift | sum(block)
	for i := 0; ; i++ {
		if i == len(f.levels) {
			var level []uint64
			if i > 0 { // the one below has just begun its second group
				level = []uint64{f.levels[i-1][0]}
			}
			f.levels = append(f.levels, level)
		}
		f.levels[i] = append(f.levels[i], word)
		if n := len(f.levels[i]) - 1; n == 0 || n%fenceFan != 0 {
			return
		}
	}
}

// check compares a block with its checksum.
func (f *fences) check(number int64, block []byte) error {
	if sum(block) != f.levels[0][number]&sumMask {
		return errors.New("checksum mismatch")
	}
	return nil
}

// find returns the number of the last block whose first record starts at or
// before unit lba; 0 if there is none. There must be blocks.
func (f *fences) find(lba uint64) int64 {
	limit := min(lba, uint64(MaxDisk)>>unitShift-1)<<lbaShift | sumMask
	at := 0
	for i := len(f.levels) - 1; i >= 0; i-- {
		at *= fenceFan
		level := f.levels[i][at:]
		level = level[:min(len(level), fenceFan)]
		base := 0
		for n := len(level); n > 1; {
			half := n / 2
			if level[base+half] <= limit {
				base += half
			}
			n -= half
		}
		at += base
	}
	return int64(at)
}

func (f *fences) memory() int64 {
	var n int64
	for _, level := range f.levels {
		n += int64(cap(level)) * 8
	}
	return n
}
