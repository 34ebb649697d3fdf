// Package planner measures how much VMs change before anything is protected,
// and computes what protecting them takes: bandwidth for a recovery point
// objective, batches of initial replication, space on the hosts' volumes, stored bytes and their cost.
//
// Profiling makes the cuts that replication would make (a checkpoint or bitmap
// token per interval) and counts what changed without reading it, so a figure
// here is what a replication cycle of that length has to look at. It deletes
// only tokens that it made itself. A profile file is append-only and every interval is on the
// disk when it ends: a crash loses the interval it happened in.
//
// What the figures are not: changed bytes are counted at the granularity of
// change tracking (64 KiB and the like); replication ships 4 KiB blocks, mostly far less.
package planner
