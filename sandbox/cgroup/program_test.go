package cgroup

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestProgramLoadsAmongSignals: the kernel's verifier gives up when its thread gets a signal, and Go sends many.
func TestProgramLoadsAmongSignals(t *testing.T) {
	if fd, err := deny.load(); err != nil {
		t.Skipf("the kernel takes no programs for devices from this process: %v", err)
	} else {
		unix.Close(fd)
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for n := range int64(500) {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &n, Minor: &n, Access: "rw"})
	}
	p, err := deviceProgram(rules)
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	stop := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // what Go preempts with
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	for range 10 {
		fd, err := p.load()
		if err != nil {
			t.Error(err)
			break
		}
		unix.Close(fd)
	}
	close(stop)
	sender.Wait()
}
