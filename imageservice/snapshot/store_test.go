package snapshot_test

import (
	"testing"

	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

func TestConformance(t *testing.T) {
	snapshottest.Run(t, func(root string) (snapshottest.Snapshotter, error) { return snapshot.Open(root) })
}
