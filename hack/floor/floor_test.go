package floor

import (
	"os"
	"testing"
	"time"
)

func TestFloor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces, mounts, cgroups, links")
	}
	f, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	for range 3 {
		p, up, err := f.Up()
		if err != nil {
			t.Fatal(err)
		}
		took, err := p.Exec()
		if err != nil {
			t.Error(err)
		}
		down, err := p.Down()
		if err != nil {
			t.Error(err)
		}
		for name, d := range map[string]time.Duration{"up": up, "exec": took, "down": down} {
			if d <= 0 || d > time.Minute {
				t.Errorf("%s took %s", name, d)
			}
		}
		t.Logf("up %s, exec %s, down %s", up, took, down)
	}
}
