package harness

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Handler is the runtime handler that the daemons of tests use by default, from BERTH_TEST_HANDLER: empty for the native engine, else the name of
// an OCI runtime that is on PATH, such as runc.
var Handler = os.Getenv("BERTH_TEST_HANDLER")

// Native skips a test of what only the native engine promises; what says what that is.
func Native(t testing.TB, what string) {
	t.Helper()
	if Handler != "" {
		t.Skipf("of the native engine only: %s", what)
	}
}

// runtimeConfig makes Handler a daemon's default.
func runtimeConfig(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath(Handler)
	if err != nil {
		t.Fatalf("the handler that is tested needs its program: %v", err)
	}
	return fmt.Sprintf("[runtime]\ndefault = %q\n\n[runtimes.%s]\ntype = \"oci\"\npath = %q\n", Handler, Handler, program)
}

// underSystemd tells whether systemd is the init, where a daemon that nothing is said to has it make its cgroups. There every host mounts version 2 alone.
func underSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
