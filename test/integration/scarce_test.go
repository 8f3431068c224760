package integration_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	testdisk "github.com/berthd/berth/test/disk"
	"github.com/berthd/berth/test/harness"
)

// smallDisk mounts a tmpfs with these options at a short path: there may be sockets in it.
func smallDisk(t testing.TB, options string) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "bd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fillBytes and fillInodes take what a file system has, below fill.
func fillBytes(t testing.TB, fill string) {
	t.Helper()
	f, err := os.Create(filepath.Join(fill, "bytes"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
}

func fillInodes(t testing.TB, fill string) {
	t.Helper()
	for i := range 100_000 {
		f, err := os.Create(filepath.Join(fill, fmt.Sprint(i)))
		if err != nil {
			return
		}
		f.Close()
	}
	t.Fatal("the inodes do not come to an end")
}

// TestNoRoomForFiles: what is there runs on, can be stopped and removed, and its exit code is kept, when no file can be made any more where the
// daemon keeps its records or its sockets; what needs one is refused, and the next try after room has been made works.
func TestNoRoomForFiles(t *testing.T) {
	for _, tc := range []struct {
		name, options string
		place         func(dir string) harness.Option
		fill          func(testing.TB, string)
	}{
		{"inodes of the root", "nr_inodes=3000", harness.WithRoot, fillInodes},
		{"bytes of the state", "size=16m", harness.WithState, fillBytes},
		{"inodes of the state", "nr_inodes=500", harness.WithState, fillInodes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := smallDisk(t, tc.options)
			d := harness.Start(t, tc.place(filepath.Join(disk, "r")))
			pod := d.RunPod(d.Pod("full"))
			c := pod.Run(d.Sleeper("c"))
			done := pod.Run(d.Shell("done", "trap 'exit 7' TERM; echo up; sleep 3600 & wait"))
			done.WaitOutput("up\n")
			fill := filepath.Join(disk, "fill")
			if err := os.Mkdir(fill, 0o700); err != nil {
				t.Fatal(err)
			}
			tc.fill(t, fill)
			done.Stop(harness.Timeout)
			if s := done.Status(); s.ExitCode != 7 {
				t.Errorf("code of what ended = %d, want 7", s.ExitCode)
			}
			if other, err := d.TryRunPod(d.Pod("one-more")); err == nil {
				other.Remove()
			} else {
				wantCode(t, "a pod without room", err, codes.ResourceExhausted)
			}
			if r, err := c.TryExec(harness.Timeout, "echo", "alive"); err != nil && harness.Handler != "" {
				wantCode(t, "an exec by a program that needs files", err, codes.ResourceExhausted)
			} else if err != nil || r.Stdout != "alive\n" {
				t.Errorf("exec = %q, %v", r.Stdout, err)
			}
			d.Restart()
			if s := done.Wait(harness.Timeout); s.ExitCode != 7 {
				t.Errorf("code of what ended, after a restart = %d, want 7", s.ExitCode)
			}
			c.Stop(5 * time.Second)
			c.Remove()
			pod.Stop()
			pod.Remove()
			if err := os.RemoveAll(fill); err != nil {
				t.Fatal(err)
			}
			d.RunPod(d.Pod("after")).Remove()
		})
	}
}

// TestReadOnlyRecords: a file system that becomes read-only under the records, as after an error of the disk, stops nothing that runs. Questions are
// answered, containers and pods can be stopped, and when it can be written again all goes on.
func TestReadOnlyRecords(t *testing.T) {
	root := filepath.Join(smallDisk(t, "size=512m"), "r")
	pods := filepath.Join(root, "pods") // the daemon's lock and the writable layers are open for writing: what they are in cannot become read-only
	if err := os.MkdirAll(pods, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(pods, pods, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(pods, unix.MNT_DETACH) })
	d := harness.Start(t, harness.WithRoot(root))
	pod := d.RunPod(d.Pod("pod"))
	c, other := pod.Run(d.Sleeper("c")), pod.Run(d.Sleeper("other"))
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", pods, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	d.Status()
	if r, err := d.Runtime.ListContainers(d.Context(), &runtimeapi.ListContainersRequest{}); err != nil || len(r.Containers) != 2 {
		t.Errorf("ListContainers = %v, %v", r, err)
	}
	if _, err := d.Runtime.ListContainerStats(d.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
		t.Errorf("ListContainerStats: %v", err)
	}
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("exec = %q", got)
	}
	if _, err := d.TryRunPod(d.Pod("none")); err == nil || !contains(err, "read-only file system") {
		t.Errorf("a pod without records: %v", err)
	}
	c.Stop(5 * time.Second)
	if s := c.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("status = %v", s)
	}
	pod.Stop()
	if s := other.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status of the other = %v", s)
	}
	remount(0)
	c.Remove()
	pod.Remove()
	d.RunPod(d.Pod("after")).Remove()
}

// TestDaemonWithoutDescriptors: when the daemon can open no more files, calls fail, connections are served again when it can, and nothing is left over.
func TestDaemonWithoutDescriptors(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("scarce"))
	c := pod.Run(d.Sleeper("c"))
	c.Exec("true")
	var usual unix.Rlimit
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, nil, &usual); err != nil {
		t.Fatal(err)
	}
	// room is the limit below which so many descriptors are free.
	room := func(free int) (limit uint64) {
		open := listFolder(t, fmt.Sprintf("/proc/%d/fd", d.PID()))
		for ; free > 0 || slices.Contains(open, fmt.Sprint(limit)); limit++ {
			if !slices.Contains(open, fmt.Sprint(limit)) {
				free--
			}
		}
		return limit
	}
	set := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: usual.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	failed := 0
	for n := range 20 {
		set(room(2 * n))
		if other, err := d.TryRunPod(d.Pod(fmt.Sprint("pod", n))); err != nil {
			failed++
			if code := status.Code(err); code == codes.OK || !contains(err, "too many open files") {
				t.Errorf("RunPodSandbox: %v, want what is lacking", err)
			}
		} else {
			set(usual.Cur)
			other.Remove()
			set(room(2 * n))
		}
		if _, err := c.TryExec(time.Minute, "true"); err != nil {
			failed++
		}
		if n == 0 { // a client that comes when there is no descriptor for it
			client, err := berthd.Dial(d.Options().Socket)
			if err != nil {
				t.Fatal(err)
			}
			answered := make(chan error, 1)
			go func() {
				_, err := client.Runtime.Version(d.Context(), &runtimeapi.VersionRequest{})
				answered <- err
			}()
			time.Sleep(50 * time.Millisecond)
			set(usual.Cur)
			if err := <-answered; err != nil {
				t.Errorf("a client that had to wait: %v", err)
			}
			client.Close()
		}
	}
	set(usual.Cur)
	if failed < 5 {
		t.Errorf("%d calls failed: this test tests little", failed)
	}
	c.Exec("true")
	// What could not be undone without descriptors is listed, and can be removed now.
	r, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Items {
		if p.Id != pod.ID {
			(&harness.Pod{Daemon: d, ID: p.Id}).Remove()
		}
	}
	d.RunPod(d.Pod("after")).Remove()
}

// ownDisk mounts an ext4 of its own, which can be frozen.
func ownDisk(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", testdisk.Ext4(t, 256<<20), dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// freeze stops all writing to the file system of dir until thaw is called, or this process ends: who writes waits.
func freeze(t testing.TB, dir string) (thaw func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", `fsfreeze --freeze "$0" && echo frozen && cat && fsfreeze --unfreeze "$0"`, dir)
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(out, make([]byte, len("frozen\n"))); err != nil {
		t.Fatalf("freeze: %d bytes, %v", n, err)
	}
	return sync.OnceFunc(func() {
		w.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("thaw: %v", err)
		}
	})
}

// TestDiskThatDoesNotAnswer: calls that wait for the disk hold up no question, no exec and no pod that stands on another disk.
func TestDiskThatDoesNotAnswer(t *testing.T) {
	disk := ownDisk(t)
	d := harness.Start(t, harness.WithRoot(filepath.Join(disk, "r")))
	pod := d.RunPod(d.Pod("pod"))
	c, other := pod.Run(d.Sleeper("c")), pod.Run(d.Sleeper("other"))
	proc := fmt.Sprintf("/proc/%d", other.PID())
	thaw := freeze(t, disk)
	defer thaw()
	var waiting sync.WaitGroup
	var ended atomic.Int32
	for _, call := range []func() error{
		func() error { _, err := d.TryRunPod(d.Pod("second")); return err },
		func() error { _, err := pod.TryCreate(d.Container("created", []string{"true"})); return err },
		func() error {
			_, err := d.Runtime.StopContainer(d.Context(), &runtimeapi.StopContainerRequest{ContainerId: other.ID, Timeout: 1})
			return err
		},
	} {
		waiting.Go(func() {
			if err := call(); err != nil {
				t.Errorf("a call that had to wait: %v", err)
			}
			ended.Add(1)
		})
	}
	d.Eventually(harness.Timeout, "the other container is stopped", func() bool {
		_, err := os.Stat(proc)
		return err != nil
	})
	d.Status()
	pod.Status()
	c.Status()
	for name, call := range map[string]func() error{
		"ListPodSandbox": func() error {
			_, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ListContainers": func() error {
			_, err := d.Runtime.ListContainers(d.Context(), &runtimeapi.ListContainersRequest{})
			return err
		},
		"ListImages": func() error { _, err := d.Images.ListImages(d.Context(), &runtimeapi.ListImagesRequest{}); return err },
		"ListContainerStats": func() error {
			_, err := d.Runtime.ListContainerStats(d.Context(), &runtimeapi.ListContainerStatsRequest{})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("exec = %q", got)
	}
	much := make(chan error, 1) // what does not fit into memory waits for the disk, but no longer than the command may take
	go func() {
		_, err := c.TryExec(2*time.Second, "probe", "bytes", "1000000", "x")
		much <- err
	}()
	select {
	case err := <-much:
		wantCode(t, "an exec that prints much", err, codes.DeadlineExceeded)
	case <-time.After(2 * harness.Timeout):
		t.Error("an exec with a timeout waits for the disk")
	}
	if n := ended.Load(); n == 3 {
		t.Error("nothing waited for the disk: this test tests little")
	}
	thaw()
	waiting.Wait()
}
