// Package job is the durable job engine: jobs are rows, their stored step lists
// are the Jobs page, and any replica of the vault can run any step of them.
//
// It owns the tables job, job_step, job_failure, job_signal, job_command and
// job_replica. It promises:
//
//   - A submitted job reaches a final state, whatever dies in between: process
//     (kill -9 at any instruction), database server, disk space, network. Only an
//     error of a handler or of an agent fails a job; a database error never does.
//   - A step may run more than once (after a crash, a lost commit, a false
//     take-over); its writes through Commit and Done happen only while its run owns
//     the job, and the state change of Done happens exactly once. So handlers must
//     be idempotent in everything else that they do.
//   - A command of a step has the id job/step/attempt. It is delivered at least
//     once, and its first final report counts.
//   - The step list is stored when the job is submitted. New code never changes
//     the list of an old job; a step that no replica knows stops the job with
//     UnknownStep, it is never skipped.
//   - At most one job per non-empty item is active.
//   - A job that waits for an agent or for a person is rows only: no goroutine, no
//     memory, no lease.
//
// # How
//
// A replica claims a job by writing its owner (host + incarnation), epoch + 1 and
// a lease into the job's row. Every later write of that run first updates the job
// row "where owner = me and epoch = mine and state = 'running'"; no row means that
// somebody else has taken over, and the run stops. That update is also the lock:
// every transaction that touches a job's steps, signals or commands locks the
// job's row first, so no wake-up can be lost between "nothing there" and "wait".
//
// On a database error the run lets go and writes nothing; the lease runs out and
// somebody runs the step again. The heartbeat renews only the leases of the runs
// that live in this process.
//
// Notifications make waiting replicas and agents look at once; a poll makes lost
// ones harmless.
package job
