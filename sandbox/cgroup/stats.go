package cgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stats are what a cgroup uses, all below it included. What the host does not count is zero.
type Stats struct {
	At                         time.Time
	CPU                        time.Duration // since the cgroup was made
	Memory                     uint64        // bytes, page cache included
	WorkingSet                 uint64        // bytes that cannot be dropped: Memory without inactive file pages
	RSS                        uint64        // bytes of anonymous memory
	MemoryLimit                uint64        // bytes; 0 is none
	PageFaults, MajorPageFault uint64
	Pids                       uint64
}

// unlimited is where v1 puts "no limit": the largest multiple of the page size.
const unlimited = 1 << 62

// Stats reads what the cgroup p uses. A cgroup that is not there uses nothing.
func (d *Driver) Stats(p string) (Stats, error) {
	s := Stats{At: time.Now()}
	rel := relative(p)
	err := errors.Join(d.readCPU(rel, &s), d.readMemory(rel, &s), d.readPids(rel, &s))
	if err != nil {
		return Stats{}, fmt.Errorf("measure cgroup %s: %w", p, err)
	}
	return s, nil
}

func (d *Driver) readCPU(rel string, s *Stats) error {
	for _, h := range d.hierarchies {
		switch {
		case h.v2 && d.pure:
			text, err := h.readCounter(rel, "cpu.stat")
			if err != nil || text == "" {
				return err
			}
			usec, err := field(text, "usage_usec")
			s.CPU = time.Duration(usec) * time.Microsecond
			return err
		case !h.v2 && h.has("cpuacct"):
			nsec, err := h.readNumber(rel, "cpuacct.usage")
			s.CPU = time.Duration(nsec)
			return err
		}
	}
	return nil
}

func (d *Driver) readMemory(rel string, s *Stats) error {
	h, err := d.controller("memory")
	if err != nil {
		return nil // not counted on this host
	}
	usage, limit, inactive, rss := "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file", "total_rss"
	faults, major := "total_pgfault", "total_pgmajfault"
	if h.v2 {
		usage, limit, inactive, rss, faults, major = "memory.current", "memory.max", "inactive_file", "anon", "pgfault", "pgmajfault"
	}
	if s.Memory, err = h.readNumber(rel, usage); err != nil {
		return err
	}
	if s.MemoryLimit, err = h.readNumber(rel, limit); err != nil {
		return err
	}
	if s.MemoryLimit >= unlimited {
		s.MemoryLimit = 0
	}
	text, err := h.readCounter(rel, "memory.stat")
	if err != nil || text == "" {
		return err
	}
	var dropped uint64
	for _, f := range []struct {
		name string
		into *uint64
	}{{inactive, &dropped}, {rss, &s.RSS}, {faults, &s.PageFaults}, {major, &s.MajorPageFault}} {
		if *f.into, err = field(text, f.name); err != nil {
			return err
		}
	}
	s.WorkingSet = s.Memory - min(s.Memory, dropped)
	return nil
}

func (d *Driver) readPids(rel string, s *Stats) error {
	h, err := d.controller("pids")
	if err != nil {
		return nil
	}
	s.Pids, err = h.readNumber(rel, "pids.current")
	return err
}

// readCounter reads a control file; one that is gone is empty.
func (h *hierarchy) readCounter(rel, file string) (string, error) {
	text, err := h.read(rel, file)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return text, err
}

// readNumber reads a control file of one number; "max" and a file that is gone are 0.
func (h *hierarchy) readNumber(rel, file string) (uint64, error) {
	text, err := h.readCounter(rel, file)
	text = strings.TrimSpace(text)
	if err != nil || text == "" || text == "max" {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}
