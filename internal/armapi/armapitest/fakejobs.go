package armapitest

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// busy finds an item that no job holds.
func (x failovers) idle(id dr.ItemID) (*dr.ProtectedItem, error) {
	it := x.w.itemOf(id)
	if it == nil {
		return nil, missing("protected item", string(id))
	}
	if it.Job != "" {
		return nil, dr.New(dr.KindConflict, dr.CodeJobInProgress, "armapitest", "item %q is busy with job %s", it.Name, it.Job)
	}
	return it, nil
}

func notNow(it *dr.ProtectedItem, op string) error {
	return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "armapitest", "item %q does not allow %s now", it.Name, op)
}

func (x failovers) point(it *dr.ProtectedItem, name string) (string, error) {
	ps := x.w.points(it)
	if len(ps) == 0 {
		return "", dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "armapitest", "item %q has no recovery point", it.Name)
	}
	if name == "" || strings.HasPrefix(name, "Latest") {
		return ps[0].Name(), nil
	}
	if !slices.ContainsFunc(ps, func(p dr.RecoveryPoint) bool { return p.Name() == name }) {
		return "", missing("recovery point", name)
	}
	return name, nil
}

// StartFailover implements armapi.Failovers.
func (x failovers) StartFailover(_ context.Context, r vault.FailoverRequest) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := x.idle(r.Item)
	if err != nil {
		return "", err
	}
	point, err := x.point(it, r.Point)
	if err != nil {
		return "", err
	}
	if r.Kind == dr.KindTestFailover {
		if it.Test != dr.TestNone || it.Failover != dr.FailoverNone {
			return "", notNow(it, "a test failover")
		}
		it.Test, it.TestNetwork = dr.TestRunning, r.Network
		return x.w.start("TestFailover", "ProtectionEntity", string(it.ID), it.VMName, r.By, it, []string{"PrerequisitesCheck", "StartVM", "VerifyBoot"}, nil, func(j *dr.Job) {
			if it.Test = dr.TestFailed; j.State == dr.JobSucceeded {
				it.Test, it.TestVM = dr.TestWaiting, dr.VMID(x.w.uuid())
				j.Outcome = map[string]string{"vm": it.VMName + "-test", "recoveryPoint": point, "recoveryPointTime": j.Started.Format(time.RFC3339), "bootSeconds": "1.5", "bootVerified": "true", "matched": "login:", "screenshot": string(j.ID), "network": r.Network}
			}
		}), nil
	}
	if it.Failover != dr.FailoverNone && it.Failover != dr.FailoverFailed {
		return "", notNow(it, "a failover")
	}
	it.Failover = dr.FailoverInProgress
	scenario := map[dr.FailoverKind]string{dr.KindPlannedFailover: "PlannedFailover", dr.KindUnplannedFailover: "UnplannedFailover"}[r.Kind]
	return x.w.start(scenario, "ProtectionEntity", string(it.ID), it.VMName, r.By, it, []string{"PrerequisitesCheck", "ShutdownVM", "StartVM"}, nil, func(j *dr.Job) {
		if it.Failover = dr.FailoverFailed; j.State == dr.JobSucceeded {
			it.Failover, it.Active, it.FailedOverTo, it.RecoveryVM, it.LastFailover = dr.FailoverCommitPending, dr.AtRecovery, point, dr.VMID(x.w.uuid()), j.Ended
			j.Outcome = map[string]string{"vm": it.VMName, "recoveryPoint": point}
		}
	}), nil
}

// CleanupTest implements armapi.Failovers.
func (x failovers) CleanupTest(_ context.Context, id dr.ItemID, comments, by string) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := x.idle(id)
	if err != nil {
		return "", err
	}
	if it.Test != dr.TestWaiting && it.Test != dr.TestFailed {
		return "", notNow(it, "cleaning up a test failover")
	}
	it.Test = dr.TestCleaning
	return x.w.start("TestFailoverCleanup", "ProtectionEntity", string(it.ID), it.VMName, by, it, []string{"RemoveVM"}, nil, func(j *dr.Job) {
		it.Test, it.TestVM, it.LastTest = dr.TestNone, "", j.Ended
		it.LastTestReport = fmt.Sprintf(`{"comments":%q}`, comments)
	}), nil
}

func (x failovers) pending(id dr.ItemID, op, scenario, by string, from, to dr.Failover, onEnd func(*dr.ProtectedItem)) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := x.idle(id)
	if err != nil {
		return "", err
	}
	if it.Failover != from {
		return "", notNow(it, op)
	}
	it.Failover = to
	return x.w.start(scenario, "ProtectionEntity", string(it.ID), it.VMName, by, it, []string{"Apply"}, nil, func(*dr.Job) { onEnd(it) }), nil
}

// Commit implements armapi.Failovers.
func (x failovers) Commit(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return x.pending(id, "commit", "CommitFailover", by, dr.FailoverCommitPending, dr.FailoverCommitPending, func(it *dr.ProtectedItem) { it.Failover = dr.FailoverCommitted })
}

// CancelFailover implements armapi.Failovers.
func (x failovers) CancelFailover(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return x.pending(id, "cancel", "CancelFailover", by, dr.FailoverCommitPending, dr.FailoverCancelling, func(it *dr.ProtectedItem) {
		it.Failover, it.Active, it.FailedOverTo, it.RecoveryVM = dr.FailoverNone, dr.AtPrimary, "", ""
	})
}

// ChangePoint implements armapi.Failovers.
func (x failovers) ChangePoint(_ context.Context, id dr.ItemID, point, by string) (dr.JobID, error) {
	return x.pending(id, "change of the recovery point", "ChangeRecoveryPoint", by, dr.FailoverCommitPending, dr.FailoverCommitPending, func(it *dr.ProtectedItem) { it.FailedOverTo = point })
}

func (x jobs) find(id dr.JobID) (*work, error) {
	for _, j := range x.w.jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return nil, missing("job", string(id))
}

// Job implements armapi.Jobs.
func (x jobs) Job(_ context.Context, id dr.JobID) (dr.Job, error) {
	defer x.w.lock()()
	j, err := x.find(id)
	if err != nil {
		return dr.Job{}, err
	}
	return j.copy(), nil
}

func (j *work) copy() dr.Job {
	out := j.Job
	out.Tasks, out.Errors = slices.Clone(j.Tasks), slices.Clone(j.Errors)
	return out
}

// Jobs implements armapi.Jobs.
func (x jobs) Jobs(_ context.Context, f vault.JobFilter) ([]dr.Job, error) {
	defer x.w.lock()()
	var out []dr.Job
	for _, j := range slices.Backward(x.w.jobs) {
		if (f.Item == "" || j.Item == f.Item) && (f.Scenario == "" || j.Scenario == f.Scenario) && (f.States == nil || slices.Contains(f.States, j.State)) &&
			(f.Since.IsZero() || !j.Created.Before(f.Since)) && (f.Until.IsZero() || !j.Created.After(f.Until)) {
			out = append(out, j.copy())
		}
	}
	return out[:min(len(out), max(f.Limit, 200))], nil
}

// CancelJob implements armapi.Jobs.
func (x jobs) CancelJob(_ context.Context, id dr.JobID, _ string) error {
	defer x.w.lock()()
	j, err := x.find(id)
	if err == nil && !j.CanCancel {
		err = dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "armapitest", "job %s can't be cancelled", id)
	}
	if err != nil {
		return err
	}
	j.State = dr.JobCancelling
	return nil
}

// RestartJob implements armapi.Jobs.
func (x jobs) RestartJob(_ context.Context, id dr.JobID, _ string) error {
	defer x.w.lock()()
	j, err := x.find(id)
	if err == nil && !j.CanRestart {
		err = dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "armapitest", "job %s can't be restarted", id)
	}
	if err != nil {
		return err
	}
	j.State, j.CanRestart = dr.JobInProgress, false
	return nil
}

// ResumeJob implements armapi.Jobs; no job of the fake waits for a person.
func (x jobs) ResumeJob(_ context.Context, id dr.JobID, _, _ string) error {
	defer x.w.lock()()
	if _, err := x.find(id); err != nil {
		return err
	}
	return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "armapitest", "job %s does not wait for anybody", id)
}

// Screenshot implements armapi.Screenshots: one black pixel for every job that has a picture.
func (x jobs) Screenshot(_ context.Context, id dr.JobID) ([]byte, error) {
	defer x.w.lock()()
	j, err := x.find(id)
	if err == nil && j.Outcome["screenshot"] == "" {
		err = missing("screenshot of job", string(id))
	}
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
}

// Identity implements armapi.Access.
func (x access) Identity() vault.Identity { return x.w.ident }

// Authenticate implements armapi.Access.
func (x access) Authenticate(_ context.Context, bearer string) (vault.Principal, error) {
	defer x.w.lock()()
	role, ok := x.w.tokens[bearer]
	if !ok {
		return vault.Principal{}, dr.Errorf(dr.KindUnauthenticated, "armapitest", "the token is not known")
	}
	return vault.Principal{Name: strings.ToLower(string(role)) + "@test", Role: role}, nil
}

// IssueToken implements armapi.Access: the client id is the name of a role.
func (x access) IssueToken(_ context.Context, clientID, secret string) (string, int, error) {
	defer x.w.lock()()
	role := dr.Role(clientID)
	if secret != Secret || !role.Includes(dr.RoleReader) {
		return "", 0, dr.Errorf(dr.KindUnauthenticated, "armapitest", "unknown client")
	}
	token := "token-" + x.w.uuid()
	x.w.tokens[token] = role
	return token, int(time.Hour / time.Second), nil
}

// Setting implements armapi.Access.
func (x access) Setting(_ context.Context, name string) (string, error) {
	defer x.w.lock()()
	return x.w.settings[name], nil
}

// SetSetting implements armapi.Access.
func (x access) SetSetting(_ context.Context, name, value string) error {
	defer x.w.lock()()
	x.w.settings[name] = value
	return nil
}
