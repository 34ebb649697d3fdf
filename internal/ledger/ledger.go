// Package ledger owns the proof that a replica is the source at its cut: a
// file format whose content shows by itself what is missing, and its verifier.
//
// A guest keeps two ledger files, A and B, on two different disks. Both hold
// the same append-only sequence of 256-byte records. Record n is made durable
// in A before it is written to B, so at every instant last(A)-last(B) is 0 or
// 1. Any replica whose disks were not frozen at one instant breaks that rule;
// any replica with lost, repeated, altered or future blocks breaks the hash chain.
//
// What it promises: Verify never reports OrderOK and ChainOK for two files
// that are not a state which the writer's rule allows. A record cut short at
// the end of a file is such a state (the power went while it was written) and
// is reported as TornTail, not as damage.
//
// # Record, version 1
//
// Source: own format. All integers are little-endian.
//
//	offset size
//	     0    8  magic and version "LEDGER01"
//	     8    8  sequence number, the first record is 1
//	    16    8  wall clock, nanoseconds since 1970 UTC (signed)
//	    24    8  boot number, the first boot is 1, never falls
//	    32   32  sum of the previous record, zero in record 1
//	    64  160  zero
//	   224   32  sum: SHA-256 of bytes 0..223
//
// The console lines that the guest program prints are part of this package
// too (see Line), so that writer and reader share one definition.
//
// The guest program itself is package guest below this one; its sources are
// embedded here (GuestSource) because it is always compiled where it is used.
package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Magic opens every record; its last two digits are the format version.
const Magic = "LEDGER01"

// RecordSize is the size of one record in bytes.
const RecordSize = 256

const (
	offSeq  = 8
	offTime = 16
	offBoot = 24
	offPrev = 32
	offZero = 64
	offSum  = 224
)

// Sum is the hash that ends a record and that the next record repeats.
type Sum [sha256.Size]byte

// ErrRecord marks bytes that are not an intact record.
var ErrRecord = errors.New("not an intact ledger record")

// Record is one entry of a ledger. Time has nanosecond resolution, UTC.
type Record struct {
	Seq  uint64 // 1 for the first
	Time time.Time
	Boot uint64 // 1 for the first boot
	Prev Sum    // zero for the first record
}

// Encode returns the record's bytes and its sum.
func (r Record) Encode() ([RecordSize]byte, Sum) {
	var b [RecordSize]byte
	copy(b[:], Magic)
	binary.LittleEndian.PutUint64(b[offSeq:], r.Seq)
	binary.LittleEndian.PutUint64(b[offTime:], uint64(r.Time.UnixNano()))
	binary.LittleEndian.PutUint64(b[offBoot:], r.Boot)
	copy(b[offPrev:], r.Prev[:])
	sum := Sum(sha256.Sum256(b[:offSum]))
	copy(b[offSum:], sum[:])
	return b, sum
}

// Decode reads one record. It fails with ErrRecord unless b is exactly one
// canonical record: right length, magic, zero padding and sum.
func Decode(b []byte) (Record, Sum, error) {
	if len(b) != RecordSize {
		return Record{}, Sum{}, fmt.Errorf("decode %d bytes: %w", len(b), ErrRecord)
	}
	if string(b[:offSeq]) != Magic {
		return Record{}, Sum{}, fmt.Errorf("decode magic %q: %w", b[:offSeq], ErrRecord)
	}
	sum := Sum(sha256.Sum256(b[:offSum]))
	if !bytes.Equal(sum[:], b[offSum:]) {
		return Record{}, Sum{}, fmt.Errorf("decode record: sum differs: %w", ErrRecord)
	}
	for _, c := range b[offZero:offSum] {
		if c != 0 {
			return Record{}, Sum{}, fmt.Errorf("decode record: padding is not zero: %w", ErrRecord)
		}
	}
	return Record{
		Seq:  binary.LittleEndian.Uint64(b[offSeq:]),
		Time: time.Unix(0, int64(binary.LittleEndian.Uint64(b[offTime:]))).UTC(),
		Boot: binary.LittleEndian.Uint64(b[offBoot:]),
		Prev: Sum(b[offPrev : offPrev+sha256.Size]),
	}, sum, nil
}
