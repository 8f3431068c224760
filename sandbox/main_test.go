package sandbox

import (
	"flag"
	"io"
	"os"
	"runtime"
	"testing"

	"k8s.io/klog/v2"
)

// The first thread of a process never ends: if the thread that starts monitors were that one, it would stay in their cgroup.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
	}
	os.Exit(m.Run())
}
