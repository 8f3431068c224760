package engine

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain gives the tests the umask that a daemon has: users of the containers look into roots that are made here.
func TestMain(m *testing.M) {
	unix.Umask(0o022)
	os.Exit(m.Run())
}
