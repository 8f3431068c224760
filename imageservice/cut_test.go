package imageservice

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/snapshot"
	testdisk "github.com/berthd/berth/test/disk"
)

// disk is a file system of a test's own, of which the power can be cut.
type disk struct {
	t          *testing.T
	image, dir string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, image: testdisk.Ext4(t, 192<<20), dir: t.TempDir()}
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) run(command ...string) {
	d.t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}

func (d *disk) mount() {
	d.t.Helper()
	d.run("mount", "-o", "loop", d.image, d.dir)
}

func (d *disk) unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.dir, 0); err != nil {
		d.t.Error(err)
	}
}

// cut ends all writing at once: what the file system had not yet written, its log included, never is.
func (d *disk) cut() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587d, 2 // linux/ext4.h EXT4_IOC_SHUTDOWN
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		d.t.Fatal(err)
	}
}

// inOwnMounts runs a test once more, in a mount namespace of its own, and tells how that went. Where it returns false the test goes on, in there.
// What copies of the host's mounts others make would keep a file system mounted, as it was when its power was cut.
func inOwnMounts(t *testing.T) (done bool) {
	t.Helper()
	const there = "BERTH_TEST_OWN_MOUNTS"
	if os.Getenv(there) != "" {
		return false
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), there+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name())):
		t.Skipf("the kernel lacks what the file system needs: %s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("it did not run:\n%s", out)
	}
	t.Logf("%s", out)
	return true
}

// TestPowerCuts: what a pull has brought is on disk when it returns, to the last byte; what it has not, is not in the way.
func TestPowerCuts(t *testing.T) {
	needRoot(t)
	if inOwnMounts(t) {
		return
	}
	reg := startReal(t)
	img := realImage()
	img.Layers = append(img.Layers, noise(9, 3<<20))
	p, err := reg.Push("a/b", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(t)
	root := filepath.Join(d.dir, "images")
	whole := 0
	for round := range 20 {
		s := openReal(t, root)
		if round%2 == 0 {
			if _, err := s.Pull(t.Context(), p.Ref, Auth{}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Prepare(t.Context(), "k", p.ImageID); err != nil {
				t.Fatal(err)
			}
			d.cut()
		} else {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = s.Pull(t.Context(), p.Ref, Auth{}, nil)
			}()
			time.Sleep(time.Duration(5*round) * time.Millisecond) // any moment will do
			d.cut()
			<-ended
		}
		_ = s.Close() // it cannot say anything good any more
		d.unmount()
		d.mount()
		s = openReal(t, root)
		for _, problem := range s.Problems() {
			if !strings.Contains(problem.Error(), "writable layer") { // those are not made durable
				t.Errorf("round %d: %v", round, problem)
			}
		}
		images := s.Images()
		if round%2 == 0 && len(images) != 1 {
			t.Errorf("round %d: %d images after a pull that has returned", round, len(images))
		}
		for _, image := range images {
			whole++
			for _, id := range image.DiffIDs {
				if err := s.snap.(*snapshot.Store).Verify(t.Context(), id); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			if got, err := s.ReadFile(t.Context(), image.ID, "etc/group", 100); err != nil || string(got) != "new\n" {
				t.Errorf("round %d: %q, %v", round, got, err)
			}
			if err := s.Remove(t.Context(), image.ID); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if err := s.Release(t.Context(), "k"); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if err := errors.Join(s.prune(t.Context()), s.Close()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for _, name := range []string{"layers", "chains", "ingest", "records", "containers"} {
			if left := list(t, filepath.Join(root, name)); len(left) != 0 {
				t.Errorf("round %d: %s: %v left", round, name, left)
			}
		}
	}
	t.Logf("a whole image %d times", whole)
}
