package cgroup

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.TempDir()) > len("/var/tmp") { // sockets have short names
		os.Setenv("TMPDIR", "/var/tmp")
	}
	os.Exit(m.Run())
}
