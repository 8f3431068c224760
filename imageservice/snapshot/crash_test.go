package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

// The process that is killed runs TestMain with this in its environment.
const crashRoot = "BERTH_TEST_CRASH_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(crashRoot); root != "" {
		fmt.Fprintln(os.Stderr, work(root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func crashLayers() [][]byte {
	base := []snapshottest.Entry{snapshottest.Dir("d", 0o700), snapshottest.Symlink("s", "d")}
	for i := range 60 {
		base = append(base, snapshottest.File(fmt.Sprintf("d/%d", i), strings.Repeat("x", i*100)))
	}
	var implicit, through []snapshottest.Entry
	for i := range 40 {
		implicit = append(implicit, snapshottest.File(fmt.Sprintf("d/e%d/f", i), "f"), snapshottest.Whiteout("d", fmt.Sprint(i)))
		through = append(through, snapshottest.File(fmt.Sprintf("s/n%d", i), "n"), snapshottest.File(fmt.Sprintf("s/n%d", i), "again"))
	}
	return [][]byte{snapshottest.Layer(base...), snapshottest.Layer(implicit...), snapshottest.Layer(through...)}
}

// work does all that a store can, over and over, until it is killed. What it has been told is done it prints.
func work(root string) error {
	ctx := context.Background()
	store, err := snapshot.Open(root)
	if err != nil {
		return err
	}
	layers := crashLayers()
	ids := snapshottest.DiffIDs(layers...)
	for i := 0; ; i++ {
		if err := snapshottest.Publish(ctx, store, layers...); err != nil {
			return err
		}
		fmt.Println("published")
		key := fmt.Sprint("key-", i%3)
		mounts, err := store.Prepare(ctx, key, ids)
		if err != nil {
			return err
		}
		fmt.Println("prepared", key)
		for j := range 20 {
			upper := strings.TrimPrefix(mounts[0].Options[len(mounts[0].Options)-6], "upperdir=")
			if err := os.WriteFile(filepath.Join(upper, fmt.Sprint(j)), []byte("x"), 0o600); err != nil {
				return err
			}
		}
		if i%2 == 0 {
			fmt.Println("removing", key)
			if err := store.Remove(ctx, key); err != nil {
				return err
			}
			fmt.Println("removed", key)
		}
		if i%4 == 3 {
			for k := range 3 {
				fmt.Println("removing", fmt.Sprint("key-", k))
				if err := store.Remove(ctx, fmt.Sprint("key-", k)); err != nil {
					return err
				}
				fmt.Println("removed", fmt.Sprint("key-", k))
			}
			fmt.Println("pruning")
			if err := store.Prune(ctx, ids[:i%3]); err != nil {
				return err
			}
			if i%8 == 7 {
				if err := store.Prune(ctx, nil); err != nil {
					return err
				}
			}
		}
	}
}

// TestKilledAtAnyMoment kills a process that uses a store, and opens what it left. BERTH_CRASHES=1000 for more rounds.
func TestKilledAtAnyMoment(t *testing.T) {
	needRoot(t)
	rounds := 40
	if s := os.Getenv("BERTH_CRASHES"); s != "" {
		if _, err := fmt.Sscan(s, &rounds); err != nil {
			t.Fatal(err)
		}
	}
	root, layers := t.TempDir(), crashLayers()
	want := filepath.Join(t.TempDir(), "want")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := snapshottest.Unpack(want, layers...); err != nil {
		t.Fatal(err)
	}
	tree, err := snapshottest.Tree(want)
	if err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		said := runAndKill(t, root, time.Duration(rand.IntN(120))*time.Millisecond)
		checkLeft(t, root, said, tree)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

func runAndKill(t *testing.T, root string, after time.Duration) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashRoot+"="+root)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20*time.Millisecond + after)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if errs.Len() > 0 {
		t.Fatalf("the process failed by itself: %s", &errs)
	}
	return strings.Split(strings.TrimSpace(out.String()), "\n")
}

// checkLeft opens the store and compares it with what the killed process last said.
func checkLeft(t *testing.T, root string, said []string, want []string) {
	t.Helper()
	ctx, layers := t.Context(), crashLayers()
	ids := snapshottest.DiffIDs(layers...)
	store, err := snapshot.Open(root)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer store.Close()
	if p := store.Problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
	published, keys := false, map[string]bool{}
	for _, line := range said {
		verb, key, _ := strings.Cut(line, " ")
		switch verb {
		case "published":
			published = true
		case "pruning":
			published = false
		case "prepared":
			keys[key] = true
		case "removing": // or removed: nobody knows
			delete(keys, key)
		}
	}
	for _, id := range ids {
		_, there := store.Size(id)
		if published && !there {
			t.Errorf("published layer %s is gone", id)
		}
		if there {
			if err := store.Verify(ctx, id); err != nil {
				t.Errorf("verify: %v", err)
			}
		}
	}
	all, err := store.Keys()
	if err != nil {
		t.Error(err)
	}
	for key := range keys {
		if !slices.Contains(all, key) {
			t.Errorf("%s is gone", key)
		}
	}
	for _, key := range all { // whole, or not there
		mounts, err := store.Mounts(key)
		if err != nil {
			t.Errorf("mounts of %s: %v", key, err)
			continue
		}
		snapshottest.Open(t, mounts)
	}
	if mounts, err := store.View(ids); err == nil {
		got, err := snapshottest.Tree(snapshottest.Open(t, mounts))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("tree differs: %v\n%s", err, diff)
		}
	} else if published || !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("view: %v", err)
	}
	if err := store.Wait(ctx); err != nil {
		t.Errorf("wait: %v", err)
	}
	for _, dir := range []string{"ingest", "trash", "damaged"} {
		if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if len(all) > 0 { // a container keeps its layers
		if err := store.Prune(ctx, nil); err != nil {
			t.Errorf("prune: %v", err)
		}
		if _, err := store.View(ids); err != nil {
			t.Errorf("view below %v after prune: %v", all, err)
		}
	}
}
