// Package oracle holds no product code: it attacks the replication engine as a
// whole – host, capture, spool, sink, store, retention – and compares every
// recovery point at all times with a flat copy of the source at its cut.
//
// The slice in the test run takes seconds; the long run is
//
//	go test ./internal/oracle -run TestEngine -engine.ops 1000000 -timeout 24h
//
// A failure prints its seed, and -engine.seed repeats it alone.
package oracle
