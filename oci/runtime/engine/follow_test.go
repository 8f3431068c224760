package engine

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

// TestBoundVolumesMissNoMount mounts below volumes at any moment of a container's start. A clone of a volume that is kept detached until it
// is attached loses what is mounted in between.
func TestBoundVolumesMissNoMount(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "while [ ! -e /vol/go ]; do sleep 0.01; done; cat /vol/m/file")
	for name, propagation := range map[string]uint64{"host to container": unix.MS_SLAVE, "bidirectional": unix.MS_SHARED} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH)
			if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, "m"), 0o755); err != nil {
				t.Fatal(err)
			}
			volume := *plan
			volume.Mounts = append(plan.Mounts[:len(plan.Mounts):len(plan.Mounts)],
				Mount{Type: "bind", Source: dir, Target: "/vol", Recursive: true, Propagation: propagation, Set: unix.MOUNT_ATTR_RDONLY})
			for range 25 {
				volume.Rootfs = busyboxRoot(t)
				mounted := make(chan error)
				go func() {
					time.Sleep(rand.N(4 * time.Millisecond))
					mounted <- unix.Mount("tmpfs", filepath.Join(dir, "m"), "tmpfs", 0, "")
				}()
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				c, err := Start(&volume, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
				w.Close()
				if err := <-mounted; err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"m/file", "go"} {
					if err := os.WriteFile(filepath.Join(dir, name), []byte("seen"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				out, ws := finish(t, c, r)
				r.Close()
				if out != "seen" || ws.ExitStatus() != 0 {
					t.Fatalf("a mount on the host while the container starts: %q, status %d", out, ws.ExitStatus())
				}
				// Whoever looks at all mounts of the host holds this one for a moment.
				if wait.Until(20*time.Second, time.Millisecond, func() bool {
					err = unix.Unmount(filepath.Join(dir, "m"), 0)
					return err != unix.EBUSY
				}); err != nil {
					t.Fatalf("the mount is held: %v", err)
				}
				if err := os.Remove(filepath.Join(dir, "go")); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestSharedVolumesKeepTheHostsMounts holds the host against a container whose start shares a volume with it: what the child mounts, and
// that it lets go of its copy of the host's mounts, must not show there.
func TestSharedVolumesKeepTheHostsMounts(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	for _, at := range []string{dir, below} {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
		if err := unix.Mount("", at, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
	}
	before := mountsAt(t, dir)
	plan := testPlan(t, "grep", "-c", " /vol/below ", "/proc/self/mountinfo")
	plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: dir, Target: "/vol", Recursive: true, Propagation: unix.MS_SHARED})
	if out, ws := output(t, plan); ws.ExitStatus() != 0 || out != "1\n" {
		t.Errorf("the mount below the volume is there %q times, status %d", out, ws.ExitStatus())
	}
	if after := mountsAt(t, dir); after != before {
		t.Errorf("the host's mounts were\n%s\nand are\n%s", before, after)
	}
}

// mountsAt are the lines of this process's mounts at dir and below.
func mountsAt(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestTheHostAsAVolume mounts all of the host, as programs do that watch it: its root is there, and is nowhere else in the container.
func TestTheHostAsAVolume(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, propagation := range map[string]uint64{"host to container": unix.MS_SLAVE, "bidirectional": unix.MS_SHARED} {
		t.Run(name, func(t *testing.T) {
			plan := testPlan(t, "sh", "-c", "cat /host"+dir+"/file; ls /bin | grep -c sleep; cut -d' ' -f5 /proc/self/mountinfo | grep -v ^/host; sleep 1000")
			plan.Masked, plan.Readonly = nil, nil
			plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: "/", Target: "/host", Recursive: true, Propagation: propagation, Set: unix.MOUNT_ATTR_RDONLY})
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer end(c)
			defer unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
			const want = "host1\n/\n/proc\n/dev\n/dev/pts\n/sys\n/dev/mqueue\n"
			out := make([]byte, len(want))
			n, err := io.ReadFull(r, out)
			if string(out) != want {
				t.Errorf("the container says %q, %v; want %q", out[:n], err, want)
			}
			if out := execOutput(t, c, &Process{Args: []string{"/bin/ls", "/"}, Cwd: "/"}); !strings.Contains(out, "data\n") || strings.Contains(out, "usr\n") {
				t.Errorf("an exec has the root %q", out)
			}
		})
	}
}
