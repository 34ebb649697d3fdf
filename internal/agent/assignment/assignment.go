// Package assignment turns what the vault orders for one VM into what capture
// needs: the assignment itself, the bandwidth limit that it shares with others of its
// policy, and the consistency group that it belongs to.
//
// It promises that an order which can't be understood is an error of that one
// item, and never taken for another order: a window that can't be read is neither
// "always" nor "never".
package assignment

import (
	"encoding/hex"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const op = "agent.assignment"

// Mark is what an agent remembers of a machine's one-time orders, because the
// wire only says that they have changed. It is a durable form.
type Mark struct {
	Void string `json:"void,omitempty"` // request that was there when this host took the replica over: it was meant for another host's state
	Full string `json:"full,omitempty"` // the newest Assignment.Full
	With string `json:"with,omitempty"` // the request that is to be carried out by sending everything
}

// First is the mark of a machine that this host had nothing of.
func First(a agentapi.Assignment) Mark {
	m := Mark{Full: a.Full}
	if a.Base != nil {
		// Everything is compared anyway, when the policy says.
		m.Void = request(a)
	}
	return m
}

// Next is the mark after a newer assignment.
func (m Mark) Next(a agentapi.Assignment) Mark {
	if a.Full != m.Full {
		m.Full, m.With = a.Full, ""
		if a.Full != "" {
			m.With = request(a)
		}
	}
	return m
}

// request names what is asked for: it changes whenever something is.
func request(a agentapi.Assignment) string {
	if a.Full == "" {
		return a.ResyncRequest
	}
	return a.ResyncRequest + "+" + a.Full
}

// Translate makes capture's assignment. Errors name the machine and the setting.
func Translate(a agentapi.Assignment, m Mark) (capture.Assignment, error) {
	out := capture.Assignment{
		VM: dr.VMID(a.VM), Disks: a.Disks, Gen: dr.Generation(a.Generation),
		CopyFrequency: max(seconds(a.CopyFrequencySeconds), dr.MinCopyFrequency), AppFrequency: seconds(a.AppFrequencySeconds),
		Paused: a.Paused, PauseReason: a.PauseReason, ResumeAt: a.ResumeAt, Seeded: a.Seeded,
		InitialNotBefore: a.Initial.NotBefore, InitialSerial: a.Initial.Serial, InitialCancelled: a.InitialCancelled, Priority: a.Initial.Priority,
		ResyncThreshold: a.Resync.Threshold,
	}
	if r := request(a); r != m.Void {
		out.ResyncRequest, out.ResyncReason, out.ResyncFull = r, dr.Code(a.ResyncReason), a.ResyncFull || r == m.With && r != ""
	}
	if a.Base != nil {
		b, err := hex.DecodeString(a.Base.Hash)
		if err != nil || len(b) != len(out.Base.Hash) {
			return out, invalid(a, "base %s has no valid hash", dr.PointName(dr.Generation(a.Base.Generation), a.Base.N))
		}
		out.Base = cut.Ref{Gen: dr.Generation(a.Base.Generation), N: a.Base.N, Hash: cut.Hash(b)}
	}
	for _, d := range a.BaseDisks {
		out.BaseDisks = append(out.BaseDisks, cut.Disk{Index: d.Index, ID: d.ID, Size: d.Size})
	}
	var err error
	if out.VaultKey, err = cut.ParseVaultPublicKey(a.VaultPublicKey); err != nil {
		return out, err
	}
	if out.InitialWindow, err = window(a, "the window of the initial replication", a.Initial.Window); err != nil {
		return out, err
	}
	text := a.Resync.Window
	if text == "" {
		text = dr.DefaultResyncWindow
	}
	if out.ResyncWindow, err = window(a, "the window of resynchronizations", text); err != nil {
		return out, err
	}
	switch mode := dr.ResyncMode(a.Resync.Mode); mode {
	case "", dr.ResyncInWindow, dr.ResyncNow, dr.ResyncManual:
		out.ResyncMode = mode
	default:
		return out, invalid(a, "resynchronization mode %q is not one that this agent knows", a.Resync.Mode)
	}
	switch dr.Compression(a.Compression) {
	case "":
	case dr.CompressionZstd:
		out.Codec = cut.CodecZstd
	case dr.CompressionFast:
		out.Codec = cut.CodecMinLZ
	case dr.CompressionNone:
		out.Codec = cut.CodecNone
	default:
		return out, invalid(a, "compression %q is not one that this agent knows", a.Compression)
	}
	return out, nil
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func invalid(a agentapi.Assignment, format string, args ...any) *dr.Error {
	args = append([]any{a.VMName, a.Machine}, args...)
	return dr.Errorf(dr.KindInvalid, op, "the vault's assignment of VM %s (machine %s): "+format, args...).
		WithHint("Save the item's policy again in the vault; if that does not help, upgrade this host's agent.")
}

// window reads one window; errors say which.
func window(a agentapi.Assignment, what, text string) (dr.Window, error) {
	w, err := dr.ParseWindow(text)
	if err != nil {
		return w, dr.New(dr.KindInvalid, dr.CodeWindowInvalid, op, "read %s of VM %s (machine %s): %w", what, a.VMName, a.Machine, err).WithHint("%s", dr.HintOf(err))
	}
	return w, nil
}
