package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

// pausing is a plan that waits at both points, with its root on the host.
func pausing(t *testing.T, args ...string) *Plan {
	plan := testPlan(t, args...)
	plan.HostRoot, plan.Pauses = t.TempDir(), Created|Starting
	t.Cleanup(func() { unix.Unmount(plan.HostRoot, unix.MNT_DETACH) })
	return plan
}

// At the first point all is mounted below a folder that the host has as well; at the second one the root is the container's.
func TestPauses(t *testing.T) {
	plan := pausing(t, "cat", "/from-the-host")
	var points []Point
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := StartAsking(plan, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())}, func(at Point, c Child) error {
		points = append(points, at)
		proc := "/proc/" + strconv.Itoa(c.PID)
		there := func(path string) bool {
			_, err := os.Stat(proc + "/root" + path)
			return err == nil
		}
		fds, err := os.ReadDir(proc + "/fd")
		if err != nil {
			t.Error(err)
		}
		switch at {
		case Created:
			if !there(plan.HostRoot+"/bin/sh") || !there(plan.HostRoot+"/dev/null") || !there(plan.HostRoot+"/data/deep") || !there("/usr") {
				t.Error("the container's mount namespace does not show its tree on the host's")
			}
			if _, err := os.Stat(plan.HostRoot + "/dev/null"); err == nil {
				t.Error("a container's mount shows on the host")
			}
			if err := os.WriteFile(plan.HostRoot+"/from-the-host", []byte("hello"), 0o644); err != nil {
				t.Error(err)
			}
			if len(fds) > 6 {
				t.Errorf("the waiting child holds %d descriptors", len(fds))
			}
		case Starting:
			if !there("/bin/sh") || !there("/dev/null") || there("/usr") {
				t.Error("the child's root is not the container's")
			}
			if len(fds) != 5 { // standard streams, report, gate
				t.Errorf("the waiting child holds %d descriptors, want 5", len(fds))
			}
		}
		return nil
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if out, ws := finish(t, c, r); out != "hello" || ws.ExitStatus() != 0 {
		t.Errorf("printed %q, status %d", out, ws.ExitStatus())
	}
	if !slices.Equal(points, []Point{Created, Starting}) {
		t.Errorf("points %v", points)
	}
}

// A child that may not go on ends, and nothing of it is left but the root on the host, which is the caller's to take away.
func TestRefusedPause(t *testing.T) {
	for _, refused := range []Point{Created, Starting} {
		plan := pausing(t, "true")
		no := errors.New("no")
		pid := 0
		_, err := StartAsking(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}, func(at Point, c Child) error {
			pid = c.PID
			if at == refused {
				return no
			}
			return nil
		})
		if !errors.Is(err, no) {
			t.Errorf("refused at %d: %v", refused, err)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("refused at %d: the child is there: %v", refused, err)
		}
	}
	if _, err := Start(pausing(t, "true"), Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.ENOTSUP) {
		t.Errorf("with nobody to ask: %v", err)
	}
}

// A child that waits ends with its parent, also when another one was cloned meanwhile and waits as well.
func TestPausedChildEndsWithItsParent(t *testing.T) {
	if os.Getenv("BERTH_TEST_PAUSED") != "" {
		waiting := make(chan int)
		for range 2 {
			plan := pausing(t, "true")
			go StartAsking(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}, func(_ Point, c Child) error {
				waiting <- c.PID
				select {}
			})
		}
		fmt.Println("pid", <-waiting)
		fmt.Println("pid", <-waiting)
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	busyboxRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			if place := strings.Fields(line)[4]; strings.HasPrefix(place, dir+"/") {
				unix.Unmount(place, unix.MNT_DETACH)
			}
		}
	})
	again := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	again.Env = append(os.Environ(), "BERTH_TEST_PAUSED=1", "TMPDIR="+dir)
	out, _ := again.Output()
	found := regexp.MustCompile(`pid (\d+)`).FindAllSubmatch(out, -1)
	if len(found) != 2 {
		t.Fatalf("it said %q", out)
	}
	for _, f := range found {
		pid, _ := strconv.Atoi(string(f[1]))
		if !wait.Until(30*time.Second, 10*time.Millisecond, func() bool {
			state, err := os.ReadFile("/proc/" + string(f[1]) + "/stat")
			return err != nil || strings.Contains(string(state), ") Z ")
		}) {
			unix.Kill(pid, unix.SIGKILL)
			t.Fatalf("child %d outlives its parent", pid)
		}
	}
}
