package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (d *Driver) limitMemory(rel string, m *specs.LinuxMemory) error {
	if m.Limit == nil && m.Swap == nil && m.Reservation == nil && m.Swappiness == nil {
		return nil
	}
	h, err := d.controller("memory")
	if err != nil {
		return err
	}
	if h.v2 {
		return h.memoryV2(rel, m)
	}
	return d.memoryV1(h, rel, m)
}

// memoryV1 keeps memory.limit_in_bytes <= memory.memsw.limit_in_bytes true at every moment, as the kernel demands: the limit goes first when it
// fits below the memory+swap limit that is set, else memory+swap does.
func (d *Driver) memoryV1(h *hierarchy, rel string, m *specs.LinuxMemory) error {
	limit := func() error { return h.writeSet(rel, "memory.limit_in_bytes", m.Limit) }
	swap := func() error {
		if !d.swapFiles { // the kernel does not account swap: there is no file to write, and no limit to keep
			return nil
		}
		return h.writeSet(rel, "memory.memsw.limit_in_bytes", m.Swap)
	}
	first, second := limit, swap
	if d.swapFiles && m.Limit != nil && m.Swap != nil {
		text, err := h.read(rel, "memory.memsw.limit_in_bytes")
		if err != nil {
			return err
		}
		if current, err := strconv.ParseInt(text, 10, 64); err == nil && (*m.Limit > current || *m.Limit < 0) {
			first, second = swap, limit
		}
	}
	for _, set := range []func() error{first, second} {
		if err := set(); err != nil {
			return usage(err)
		}
	}
	if err := h.writeSet(rel, "memory.soft_limit_in_bytes", m.Reservation); err != nil {
		return err
	}
	if m.Swappiness != nil {
		return h.write(rel, "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10))
	}
	return nil
}

func (h *hierarchy) writeSet(rel, file string, value *int64) error {
	if value == nil || *value == 0 {
		return nil
	}
	return h.write(rel, file, strconv.FormatInt(*value, 10))
}

// memoryV2 sets memory.max and memory.swap.max, which unlike version 1 counts swap alone.
func (h *hierarchy) memoryV2(rel string, m *specs.LinuxMemory) error {
	if m.Swappiness != nil {
		return fmt.Errorf("memory.swappiness: %w", ErrNotSupported)
	}
	if m.Swap != nil && *m.Swap != 0 {
		swap := *m.Swap
		if swap > 0 {
			if m.Limit == nil || *m.Limit <= 0 || swap < *m.Limit {
				return fmt.Errorf("memory and swap limit %d without a memory limit below it: %w", swap, unix.EINVAL)
			}
			swap -= *m.Limit
		}
		err := h.write(rel, "memory.swap.max", max64(swap))
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: the kernel does not account swap
			return err
		}
	}
	if m.Limit != nil && *m.Limit != 0 {
		if err := h.write(rel, "memory.max", max64(*m.Limit)); err != nil {
			return usage(err)
		}
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		return h.write(rel, "memory.low", max64(*m.Reservation))
	}
	return nil
}

// usage says in words what EBUSY means for a memory limit.
func usage(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

// cpuMax is version 2's "QUOTA PERIOD". What is unset keeps the kernel's default.
func cpuMax(cpu *specs.LinuxCPU) string {
	quota := "max"
	if cpu.Quota != nil && *cpu.Quota > 0 {
		quota = strconv.FormatInt(*cpu.Quota, 10)
	}
	if cpu.Period == nil || *cpu.Period == 0 {
		return quota
	}
	return quota + " " + strconv.FormatUint(*cpu.Period, 10)
}

// weight maps version 1's shares (2 to 262144, 1024 by default) onto version 2's weight (1 to 10000, 100 by default) with the curve
// that runc and crun have agreed on: it meets all three points of both scales.
func weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34.0)))
}

// OOMKills is how many processes of p the kernel has killed for want of memory. What is not there has had none: its count went with it.
func (d *Driver) OOMKills(p string) (uint64, error) {
	h, err := d.controller("memory")
	if err != nil {
		return 0, err
	}
	file := "memory.oom_control"
	if h.v2 {
		file = "memory.events"
	}
	text, err := h.read(relative(p), file)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", p, err)
	}
	return field(text, "oom_kill")
}

// field reads one number of a file of "name value" lines.
func field(text, name string) (uint64, error) {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("field %s: %w", name, ErrNotSupported)
}
