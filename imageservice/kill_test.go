package imageservice

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestMain lets the test binary be the daemon that is killed.
func TestMain(m *testing.M) {
	if root := os.Getenv("BERTH_TEST_PULL_ROOT"); root != "" {
		os.Exit(pullForEver(root, os.Getenv("BERTH_TEST_PULL_REF")))
	}
	os.Exit(m.Run())
}

// pullForEver pulls and removes until it is killed.
func pullForEver(root, ref string) int {
	ctx := context.Background()
	s, err := Open(ctx, Config{Root: root})
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	for {
		id, err := s.Pull(ctx, ref, Auth{}, nil)
		if err == nil {
			err = s.Remove(ctx, id)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
			return 1
		}
	}
}

func TestKilledPullsAndRemovesLeaveAWholeImageOrNothing(t *testing.T) {
	needRoot(t)
	reg := startReal(t)
	img := realImage()
	img.Layers = append(img.Layers, noise(9, 3<<20))
	p, err := reg.Push("a/b", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	whole, none := 0, 0
	for i := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BERTH_TEST_PULL_ROOT="+root, "BERTH_TEST_PULL_REF="+p.Ref)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+7*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.Process.Wait(); err != nil {
			t.Fatal(err)
		}
		s := openReal(t, root)
		if problems := s.Problems(); len(problems) != 0 {
			t.Errorf("round %d: %v", i, problems)
		}
		images := s.Images()
		wantLayers := 0
		if len(images) > 0 {
			whole, wantLayers = whole+1, 4
			if got, err := s.ReadFile(t.Context(), images[0].ID, "etc/group", 100); err != nil || string(got) != "new\n" {
				t.Errorf("round %d: %q, %v", i, got, err)
			}
		} else {
			none++
		}
		if n := len(list(t, filepath.Join(root, "layers"))); n != wantLayers {
			t.Errorf("round %d: %d layers of %d images", i, n, len(images))
		}
		if left := list(t, filepath.Join(root, "ingest")); len(left) != 0 {
			t.Errorf("round %d: ingest: %v left", i, left)
		}
		if n := len(list(t, filepath.Join(root, "records"))); n != len(images) {
			t.Errorf("round %d: %d records of %d images", i, n, len(images))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a whole image %d times, nothing %d times", whole, none)
}
