// Package route is what the handlers of the REST API have in common: the call that
// a request becomes, the table of operations, long-running operations, lists with
// pages and filters, ids, errors, and what the API needs of the vault (Service).
//
// It promises one answer for one kind of error everywhere, both headers of a
// long-running operation on every 202, and paths that are compared without case.
package route
