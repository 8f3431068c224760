package classes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
)

// maxBytes bounds the file.
const maxBytes = 1 << 20

// BlockIO has the classes of block I/O in a file; "" has none.
type BlockIO string

// Adjust gives c the block I/O of its class.
func (f BlockIO) Adjust(_ context.Context, c *adjust.Container) error {
	class, field := blockIOKind.class(c)
	if class == "" {
		return nil
	}
	if f == "" {
		return &spec.InvalidError{Field: field, Value: class, Rule: "is not supported: the configuration names no file of block I/O classes"}
	}
	all, err := read(string(f))
	if err != nil {
		return fmt.Errorf("block I/O classes of %s: %w", f, err)
	}
	entries, found := all[class]
	if !found {
		return &spec.InvalidError{Field: field, Value: class, Rule: fmt.Sprintf("must be one of the classes in %s: %s", f, strings.Join(slices.Sorted(maps.Keys(all)), ", "))}
	}
	limits, err := compose(entries)
	if err != nil {
		return fmt.Errorf("block I/O class %s of %s: %w", class, f, err)
	}
	c.Spec.Linux.Resources.BlockIO = limits
	return nil
}

// entry is what a class says of some devices, or with none of all.
type entry struct {
	Devices                                                                []string
	Weight                                                                 *quantity
	ThrottleReadBps, ThrottleWriteBps, ThrottleReadIOPS, ThrottleWriteIOPS *quantity
}

func read(path string) (map[string][]entry, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxBytes {
		return nil, fmt.Errorf("it must be a regular file of at most %d bytes", maxBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// parse reads the file by way of JSON, whose keys match in either case: files of other runtimes have both.
func parse(text []byte) (map[string][]entry, error) {
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	plain, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	var file struct{ Classes map[string][]entry }
	d := json.NewDecoder(bytes.NewReader(plain))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	return file.Classes, nil
}

// quantity is a number, or a number with a unit: k, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.
type quantity uint64

var units = map[string]uint64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

// UnmarshalJSON reads either form.
func (q *quantity) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	digits := strings.TrimRight(text, "kKMGTi")
	unit, known := units[text[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !known || n > math.MaxUint64/unit {
		return fmt.Errorf("%q is not a number such as 100, 60M or 1Gi", text)
	}
	*q = quantity(n * unit)
	return nil
}

// The weights that a group may have (runtime-spec config-linux.md#block-io).
const minWeight, maxWeight = 10, 1000

// compose makes the limits of a class. A later entry for a device counts. Devices that are not there now have none.
func compose(entries []entry) (*specs.LinuxBlockIO, error) {
	out := &specs.LinuxBlockIO{}
	for _, e := range entries {
		if w := e.Weight; w != nil && (*w < minWeight || *w > maxWeight) {
			return nil, fmt.Errorf("weight %d is not %d to %d", *w, minWeight, maxWeight)
		}
		if len(e.Devices) == 0 {
			if e.ThrottleReadBps != nil || e.ThrottleWriteBps != nil || e.ThrottleReadIOPS != nil || e.ThrottleWriteIOPS != nil {
				return nil, fmt.Errorf("a throttle needs devices")
			}
			if e.Weight != nil {
				weight := uint16(*e.Weight)
				out.Weight = &weight
			}
			continue
		}
		numbers, err := find(e.Devices)
		if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			if e.Weight != nil {
				weight := uint16(*e.Weight)
				d := specs.LinuxWeightDevice{Weight: &weight}
				d.Major, d.Minor = n[0], n[1]
				out.WeightDevice = append(slices.DeleteFunc(out.WeightDevice, func(o specs.LinuxWeightDevice) bool {
					return o.Major == d.Major && o.Minor == d.Minor
				}), d)
			}
			for _, t := range []struct {
				rate *quantity
				list *[]specs.LinuxThrottleDevice
			}{{e.ThrottleReadBps, &out.ThrottleReadBpsDevice}, {e.ThrottleWriteBps, &out.ThrottleWriteBpsDevice},
				{e.ThrottleReadIOPS, &out.ThrottleReadIOPSDevice}, {e.ThrottleWriteIOPS, &out.ThrottleWriteIOPSDevice}} {
				if t.rate == nil {
					continue
				}
				d := specs.LinuxThrottleDevice{Rate: uint64(*t.rate)}
				d.Major, d.Minor = n[0], n[1]
				*t.list = append(slices.DeleteFunc(*t.list, func(o specs.LinuxThrottleDevice) bool { return o.Major == d.Major && o.Minor == d.Minor }), d)
			}
		}
	}
	return out, nil
}

// find returns the numbers of the block devices that patterns name, each once.
func find(patterns []string) ([][2]int64, error) {
	var numbers [][2]int64
	for _, pattern := range patterns {
		if !filepath.IsAbs(pattern) {
			return nil, fmt.Errorf("device %q is not an absolute path", pattern)
		}
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", pattern, err)
		}
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
				continue
			}
			n := [2]int64{int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))}
			if !slices.Contains(numbers, n) {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}
