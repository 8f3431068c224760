// Package harness is what integration tests are written with: a real berthd of the test's own, an image, and calls that fail the test.
//
//	d := harness.Start(t)
//	pod := d.RunPod(d.Pod("web"))
//	c := pod.Run(d.Shell("main", "echo hello; sleep 60"))
//	out := c.Exec("cat", "/etc/hostname").Stdout
//	c.Stop(2 * time.Second)
//
// # What every test ends with
//
// The invariants hold; after all pods are removed everything is as before; then the daemon is ended, and what is left of it on the host is
// taken away.
//
// # Files
//
// A test's daemon lives below BERTH_TEST_DIR (default /var/tmp), in a folder with a short name, since the names of sockets are short.
// It goes with the test, unless the test failed and BERTH_TEST_KEEP is set.
package harness
