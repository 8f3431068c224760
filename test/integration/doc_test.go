// Package integration_test drives real daemons, monitors and kernels over the CRI, as root. Each file is about one thing that the CRI
// promises; package harness ends each test with the invariants.
package integration_test
