// Package armapi serves the Site Recovery compatible REST API of the vault,
// the token routes that let unmodified SDK credentials log in, and the vault's
// own extension under /holdfast/v1.
//
// It owns the translation between the API's shapes (package armwire) and the
// domain (package dr); the work itself is the vault's (interface Service). What
// it promises:
//
//   - Paths are matched without case, names keep the case they were created
//     with, JSON has the published spelling exactly.
//   - A change that is not done at once answers 202 with both Azure-AsyncOperation
//     and Location; the job's id is the operation's id. 201 is never sent for
//     replication resources.
//   - One table maps dr.Kind to HTTP statuses (route.StatusOf). "Could not ask" is never a 404.
//   - protectionState, testFailoverState and allowedOperations are derived from
//     an item's independent axes by the tables of package item.
//   - Types that the vault does not have answer an empty list, other verbs on
//     them a clear NotSupported.
//   - PUT and DELETE may be repeated after a lost answer.
package armapi
