package snapshot_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
	"github.com/berthd/berth/test/wait"
)

// Without overlayfs in the new mount interface the same tree is seen, the thread's namespace goes, and the host sees nothing.
func TestMountsOfOlderKernels(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	store, layers := open(t, root), crashLayers()
	if err := snapshottest.Publish(t.Context(), store, layers...); err != nil {
		t.Fatal(err)
	}
	mounts, err := store.View(snapshottest.DiffIDs(layers...))
	if err != nil {
		t.Fatal(err)
	}
	want, err := snapshottest.Tree(snapshottest.Open(t, mounts))
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	for _, o := range mounts[0].Options {
		folders = append(folders, strings.TrimPrefix(o, "lowerdir+="))
	}
	home := link(t, "/proc/self/ns/mnt")
	for range 20 {
		f, err := store.MountInScratch(folders)
		if err != nil {
			t.Fatal(err)
		}
		got, err := snapshottest.Tree(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("tree differs: %v\n%s", err, diff)
		}
		f.Close()
	}
	var after map[string]int
	wait.Until(20*time.Second, time.Millisecond, func() bool { // a thread ends behind the call
		after = namespaces(t)
		return len(after) == 1
	})
	if len(after) != 1 || after[home] == 0 {
		t.Errorf("threads are in the mount namespaces %v, home is %s", after, home)
	}
	if now, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(now), root+"/trash ") {
		t.Errorf("the mount table has what was mounted in scratch, %v", err)
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// namespaces counts the process's threads by mount namespace.
func namespaces(t *testing.T) map[string]int {
	t.Helper()
	found := map[string]int{}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if target, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/mnt"); err == nil {
			found[target]++
		}
	}
	return found
}
