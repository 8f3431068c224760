package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limit writes what res sets, and nothing else, into whichever hierarchy has the controller.
func (d *Driver) limit(rel string, res *specs.LinuxResources) error {
	if len(res.Unified) > 0 && !d.pure {
		return fmt.Errorf("unified resources: %w", ErrNotSupported)
	}
	if res.CPU != nil {
		if err := d.limitCPU(rel, res.CPU); err != nil {
			return err
		}
		if err := d.limitCpuset(rel, res.CPU); err != nil {
			return err
		}
	}
	if res.Memory != nil {
		if err := d.limitMemory(rel, res.Memory); err != nil {
			return err
		}
	}
	if res.Pids != nil && res.Pids.Limit != nil {
		if err := d.limitPids(rel, *res.Pids.Limit); err != nil {
			return err
		}
	}
	if err := d.limitHugepages(rel, res.HugepageLimits); err != nil {
		return err
	}
	if err := d.limitBlockIO(rel, res.BlockIO); err != nil {
		return err
	}
	if err := d.limitDevices(rel, res.Devices); err != nil {
		return err
	}
	return d.limitUnified(rel, res.Unified)
}

// controller finds the hierarchy that has it.
func (d *Driver) controller(name string) (*hierarchy, error) {
	for _, h := range d.hierarchies {
		if h.has(name) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("controller %s is not mounted: %w", name, ErrNotSupported)
}

func (d *Driver) limitCPU(rel string, cpu *specs.LinuxCPU) error {
	if cpu.Shares == nil && cpu.Quota == nil && cpu.Period == nil && cpu.Burst == nil && cpu.Idle == nil {
		return nil
	}
	h, err := d.controller("cpu")
	if err != nil {
		return err
	}
	var shares, bandwidth func() error
	if h.v2 {
		shares = func() error { return h.write(rel, "cpu.weight", strconv.FormatUint(weight(*cpu.Shares), 10)) }
		bandwidth = func() error { return h.write(rel, "cpu.max", cpuMax(cpu)) }
	} else {
		shares = func() error { return h.write(rel, "cpu.shares", strconv.FormatUint(*cpu.Shares, 10)) }
		bandwidth = func() error { return h.bandwidth(rel, cpu) }
	}
	if cpu.Shares != nil && *cpu.Shares != 0 {
		if err := shares(); err != nil {
			return err
		}
	}
	if cpu.Quota != nil || cpu.Period != nil {
		if err := bandwidth(); err != nil {
			return err
		}
	}
	if cpu.Burst != nil {
		file := "cpu.cfs_burst_us"
		if h.v2 {
			file = "cpu.max.burst"
		}
		if err := h.write(rel, file, strconv.FormatUint(*cpu.Burst, 10)); err != nil {
			return err
		}
	}
	if cpu.Idle != nil {
		return h.write(rel, "cpu.idle", strconv.FormatInt(*cpu.Idle, 10))
	}
	return nil
}

// bandwidth sets the version 1 period and quota. The kernel judges each write by the ratio that it leaves, so the order that goes
// through depends on the values: the other one is tried when the first is refused.
func (h *hierarchy) bandwidth(rel string, cpu *specs.LinuxCPU) error {
	period := func() error {
		if cpu.Period == nil || *cpu.Period == 0 {
			return nil
		}
		return h.write(rel, "cpu.cfs_period_us", strconv.FormatUint(*cpu.Period, 10))
	}
	quota := func() error {
		if cpu.Quota == nil {
			return nil
		}
		return h.write(rel, "cpu.cfs_quota_us", strconv.FormatInt(*cpu.Quota, 10))
	}
	err := period()
	if errors.Is(err, unix.EINVAL) && cpu.Quota != nil {
		if err := quota(); err != nil {
			return err
		}
		return period()
	}
	if err != nil {
		return err
	}
	return quota()
}

func (d *Driver) limitCpuset(rel string, cpu *specs.LinuxCPU) error {
	if cpu.Cpus == "" && cpu.Mems == "" {
		return nil
	}
	h, err := d.controller("cpuset")
	if err != nil {
		return err
	}
	if cpu.Cpus != "" {
		if err := h.write(rel, "cpuset.cpus", cpu.Cpus); err != nil {
			return err
		}
	}
	if cpu.Mems != "" {
		return h.write(rel, "cpuset.mems", cpu.Mems)
	}
	return nil
}

func (d *Driver) limitPids(rel string, limit int64) error {
	h, err := d.controller("pids")
	if err != nil {
		return err
	}
	return h.write(rel, "pids.max", max64(limit))
}

// limitHugepages sets the limits. A limit of a page size that the kernel does not have is refused unless it is zero, which such a kernel fulfils by itself;
// so is every limit when the controller is not mounted, but for zero: the kubelet sends a zero for each size, whatever is mounted.
func (d *Driver) limitHugepages(rel string, limits []specs.LinuxHugepageLimit) error {
	for _, l := range limits {
		h, err := d.controller("hugetlb")
		if err != nil {
			if l.Limit == 0 {
				continue
			}
			return fmt.Errorf("limit of %s pages: %w", l.Pagesize, err)
		}
		if strings.ContainsAny(l.Pagesize, "/.\x00") {
			return fmt.Errorf("huge page size %q: %w", l.Pagesize, ErrInvalid)
		}
		file := "hugetlb." + l.Pagesize + ".limit_in_bytes"
		if h.v2 {
			file = "hugetlb." + l.Pagesize + ".max"
		}
		err = usage(h.write(rel, file, strconv.FormatUint(l.Limit, 10)))
		if errors.Is(err, unix.ENOENT) && l.Limit == 0 {
			continue
		}
		if err != nil {
			return h.unknown(rel, err)
		}
	}
	return nil
}

// limitUnified writes version 2 files by their names, in order of name.
func (d *Driver) limitUnified(rel string, files map[string]string) error {
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if strings.ContainsRune(file, '/') || !strings.ContainsRune(file, '.') || strings.HasPrefix(file, "cgroup.") {
			return fmt.Errorf("unified resource %q is not a controller's file: %w", file, ErrInvalid)
		}
		if err := d.unified.write(rel, file, files[file]); err != nil {
			return d.unified.unknown(rel, err)
		}
	}
	return nil
}

// unknown says of a file that is missing in a cgroup which is there that this kernel has no such limit.
func (h *hierarchy) unknown(rel string, err error) error {
	if errors.Is(err, unix.ENOENT) && h.exists(rel) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

func cpuShares(shares uint64) *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}
}

// max64 writes a limit as both versions' pids.max and version 2's memory files do: "max" for none.
func max64(limit int64) string {
	if limit < 0 {
		return "max"
	}
	return strconv.FormatInt(limit, 10)
}
