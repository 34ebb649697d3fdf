package rotation

import (
	"context"
	"fmt"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// Report is what a drill found out about one machine and one key.
type Report struct {
	Machine  dr.MachineID
	KeyID    cut.KeyID
	Opened   []uint32  // epochs whose key was opened, in order
	Problems []Problem // sealed keys that do not open as they should
}

// Err returns nil if the key opens everything, else dr.CodeKeyOpensNotAll.
func (r Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	return dr.New(dr.KindForbidden, dr.CodeKeyOpensNotAll, "rotation.Check", "vault key %s opens %d epochs of machine %s and fails %d times, first: %w", r.KeyID, len(r.Opened), r.Machine, len(r.Problems), r.Problems[0].Err).
		WithHint("Recovery points whose data is sealed under the other epochs can't be restored with this key. Keep the older keys.")
}

// String is one line for people.
func (r Report) String() string {
	return fmt.Sprintf("machine %s: key %s opens %d epochs, %d problems", r.Machine, r.KeyID, len(r.Opened), len(r.Problems))
}

// Check proves that a key opens every sealed epoch key that a machine has: each
// is read from the store and opened for real, and where an epoch is sealed to the key
// twice, both have to agree. It writes nothing.
//
// An error means that the question could not be answered: the store or the key
// store could not be asked, or (dr.KindNotFound) the machine has no sealed keys. What the key
// does not open is in the report. With an external key store the program's word
// is taken for each key; a segment read with it is the proof of that.
func Check(ctx context.Context, bucket objstore.Reader, by cut.KeyOpener, machine dr.MachineID) (Report, error) {
	const op = "rotation.Check"
	r := Report{Machine: machine, KeyID: by.ID()}
	epochs, err := listWraps(ctx, bucket, machine)
	if err != nil {
		return r, err
	}
	if len(epochs) == 0 {
		return r, dr.Errorf(dr.KindNotFound, op, "the store has no sealed key of machine %s", machine)
	}
	opened, problems := make([]bool, len(epochs)), make([][]Problem, len(epochs))
	err = each(ctx, epochs, parallel, func(ctx context.Context, i int, e epochWraps) error {
		var key cut.EpochKey
		var err error
		key, opened[i], problems[i], err = e.open(ctx, bucket, by)
		clear(key[:])
		return err
	})
	if err != nil {
		return r, err
	}
	for i, e := range epochs {
		if opened[i] {
			r.Opened = append(r.Opened, e.epoch)
		}
		r.Problems = append(r.Problems, problems[i]...)
	}
	return r, nil
}
