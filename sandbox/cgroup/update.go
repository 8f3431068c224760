package cgroup

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrInUse means that a limit is below what is in use, and that this cannot be taken away.
var ErrInUse = errors.New("limit is below what is in use")

// Update sets the limits of res on the cgroup p; what res leaves unset keeps its value. Device rules are not updated. It is all or nothing: on an
// error the limits are as before, unless the error says that one could not be put back.
// Errors: ErrInvalid, ErrNotSupported, ErrInUse, ErrGone, and what the kernel says about a value.
func (d *Driver) Update(p string, res *specs.LinuxResources) error {
	if err := d.Check(p); err != nil {
		return err
	}
	if err := d.update(relative(p), res); err != nil {
		if !d.Exists(p) {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
		return fmt.Errorf("update cgroup %s: %w", p, err)
	}
	return nil
}

// update sets memory first when that goes down, since nothing else fails as often, and last when it goes up, since it may not go down again.
func (d *Driver) update(rel string, res *specs.LinuxResources) error {
	memory, others := &specs.LinuxResources{Memory: res.Memory}, *res
	others.Memory, others.Devices = nil, nil
	lower, err := d.lowersMemory(rel, res.Memory)
	if err != nil {
		return err
	}
	if d.unified != nil && len(res.HugepageLimits) > 0 { // a hybrid host hands the controller down to those alone that were made with such a limit
		if err := d.unified.enable(path.Dir(rel), d.wanted(d.unified, res)); err != nil {
			return err
		}
	}
	steps := []*specs.LinuxResources{&others, memory}
	if lower {
		slices.Reverse(steps)
	}
	j := &journal{}
	writer := d.journaled(j)
	for _, step := range steps {
		if err := writer.limit(rel, step); err != nil {
			return errors.Join(err, j.undo())
		}
	}
	return nil
}

// lowersMemory tells whether the limit of m is below the one that is set. When it is below what is in use, too, version 2 would kill processes
// rather than refuse: there the kernel is asked to reclaim first. Version 1 does that by itself.
func (d *Driver) lowersMemory(rel string, m *specs.LinuxMemory) (bool, error) {
	if m == nil || m.Limit == nil || *m.Limit <= 0 {
		return false, nil
	}
	h, err := d.controller("memory")
	if err != nil {
		return false, err
	}
	limit := uint64(*m.Limit)
	if !h.v2 {
		set, err := h.readNumber(rel, "memory.limit_in_bytes")
		return err == nil && limit < set, err
	}
	set, err := h.readNumber(rel, "memory.max")
	if err != nil || limit >= set {
		return false, err
	}
	used, err := h.readNumber(rel, "memory.current")
	if err != nil {
		return false, err
	}
	if used > limit {
		// An error says that less could be reclaimed than was asked for, or that the kernel is older than 5.19.
		_ = h.write(rel, "memory.reclaim", strconv.FormatUint(used-limit, 10))
		if used, err = h.readNumber(rel, "memory.current"); err != nil {
			return false, err
		}
	}
	if used > limit {
		return false, fmt.Errorf("memory limit of %d bytes, %d in use: %w", limit, used, ErrInUse)
	}
	return true, nil
}

// readNumber reads a control file of one number.
func (h *hierarchy) readNumber(rel, file string) (uint64, error) {
	text, err := h.read(rel, file)
	if err != nil {
		return 0, err
	}
	return parseNumber([]byte(text))
}

// journal remembers what control files had in them before they were written.
type journal struct{ entries []entry }

type entry struct {
	h               *hierarchy // without a journal
	rel, file       string
	before, written string
}

// journaled is a Driver for limits alone, whose writes can be undone.
func (d *Driver) journaled(j *journal) *Driver {
	out := &Driver{tree: d.tree, pure: d.pure, swapFiles: d.swapFiles, hugepages: d.hugepages}
	for _, h := range d.hierarchies {
		writer := *h
		writer.journal = j
		out.hierarchies = append(out.hierarchies, &writer)
		if h == d.unified {
			out.unified = &writer
		}
	}
	return out
}

// note remembers what is in a file that is going to be written. What is not there cannot be written either.
func (j *journal) note(h *hierarchy, rel, file, value string) error {
	before, err := h.read(rel, file)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	plain := *h
	plain.journal = nil
	j.entries = append(j.entries, entry{h: &plain, rel: rel, file: file, before: before, written: value})
	return nil
}

// undo puts everything back, the last first.
func (j *journal) undo() error {
	var errs []error
	for _, e := range slices.Backward(j.entries) {
		for _, line := range e.undoLines() {
			if err := e.h.write(e.rel, e.file, line); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("put back: %w", err))
			}
		}
	}
	j.entries = nil
	return errors.Join(errs...)
}

// undoLines are what is written to have the file as it was. Files of devices take one line at a time, and list only what is set.
func (e *entry) undoLines() []string {
	lines := strings.Split(strings.TrimSpace(e.before), "\n")
	device, _, _ := strings.Cut(e.written, " ")
	none := map[string]string{"io.max": " rbps=max wbps=max riops=max wiops=max", "io.latency": " target=0", "io.weight": " default", "io.bfq.weight": " default"}[e.file]
	if none != "" && strings.Contains(device, ":") {
		lines = slices.DeleteFunc(lines, func(line string) bool { return line == "" })
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, device+" ") }) {
			lines = append(lines, device+none)
		}
	}
	for i := range lines {
		if lines[i] == "" {
			lines[i] = "\n" // an empty write reaches no control file
		}
	}
	return lines
}
