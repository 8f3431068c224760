package cnitest_test

import (
	"path/filepath"
	"testing"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

func TestMain(m *testing.M) { cnitest.Main(m) }

func TestFake(t *testing.T) {
	cnitest.Suite(t, func(t *testing.T) cnitest.Harness {
		fake := &cnitest.Fake{}
		return cnitest.Harness{
			Open: func(*testing.T) cni.Network { return fake },
			NetNS: func(t *testing.T) (string, func()) {
				return filepath.Join(t.TempDir(), "netns"), func() {}
			},
			Leftovers: func(*testing.T) []string { return fake.Live() },
		}
	})
}
