// Package azsim is a simulated Azure for tests: Microsoft Entra ID's token
// endpoint, Azure Resource Manager with what Holdfast uses of the resource
// providers Microsoft.Resources, Microsoft.Network, Microsoft.Compute and
// Microsoft.Storage, and the data plane of managed disks and storage accounts
// (package pagestore), all behind one HTTPS listener with a certificate
// authority of its own. It is written to the published REST contracts, and
// driven by programs that were not written for it: Microsoft's SDK for Go.
//
// What it promises:
//
//   - Documents come back as they were sent, unknown fields included, with what
//     the service adds. Any API version is taken and recorded ([Cloud.Calls]).
//   - Every change that Azure makes as a long-running operation is one: it is
//     accepted, runs on although the client may be gone, and is told by
//     Azure-AsyncOperation and Location. [Cloud.Settle] waits for all of them.
//     Operations on one resource run one after the other.
//   - Refusals carry Azure's status, code and form of message: they are what the
//     tests are after. Where Azure refuses something that the simulator
//     does not know, the simulator says so with code SimulatorUnsupported, not with success.
//   - Nothing outlives Close: listener, operations, guests.
//
// Package plane has what all resource providers share, network and compute are
// providers, entra is the directory, sizes the table of VM sizes, wire the shape
// of answers, faults and the transcript.
//
// The state is in memory; disks are files below Config.Dir. What it does not
// have: other subscriptions, management groups, eventual consistency of lists,
// role assignments (see Deny), prices.
package azsim
