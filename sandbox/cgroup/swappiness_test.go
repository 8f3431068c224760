package cgroup

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version 2 has no swappiness. It is not left out silently, and nothing is written before that is known.
func TestSwappinessOfVersion2(t *testing.T) {
	limit, swappiness := int64(1<<20), uint64(10)
	h := &hierarchy{v2: true}
	if err := h.memoryV2("none", &specs.LinuxMemory{Limit: &limit, Swappiness: &swappiness}); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "swappiness") {
		t.Errorf("swappiness: %v", err)
	}
}
