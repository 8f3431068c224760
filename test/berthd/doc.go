// Package berthd starts, kills and sweeps away real daemons, for tests, benchmarks and the demonstration.
//
// # Binaries
//
// Build makes them once in a folder; with BERTH_BIN set in the environment, those in that folder are used as they are.
//
// # Concurrency
//
// Start, Kill and Stop of one Process must not run at the same time; its clients may be used at any time. A call that meets a
// daemon which is just being started again waits for it.
package berthd
