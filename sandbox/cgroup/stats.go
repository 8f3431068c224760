package cgroup

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Unlimited is the limit of what has none.
const Unlimited = math.MaxUint64

// Stats are what a cgroup uses, all below it included. What the host does not count is zero.
type Stats struct {
	At       time.Time
	CPU      time.Duration // since the cgroup was made
	Memory   Memory
	Swap     Swap
	Pressure Pressure
}

// Memory is in bytes.
type Memory struct {
	Usage                uint64 // page cache included
	WorkingSet           uint64 // what cannot be dropped: Usage without inactive file pages
	RSS                  uint64 // anonymous
	Limit                uint64 // Unlimited: none
	Cache, Mapped        uint64
	ActiveFile, Inactive uint64 // file pages
	Faults, MajorFaults  uint64 // since the cgroup was made
	swapUsage            uint64 // version 1 has it among the memory's
}

// Swap is in bytes, of swap alone.
type Swap struct {
	Counted      bool // the host counts swap
	Usage, Limit uint64
}

// Pressure tells how long tasks waited (Documentation/accounting/psi.rst). nil: the kernel does not tell.
type Pressure struct{ CPU, Memory, IO *PSI }

// PSI is the pressure on one resource.
type PSI struct{ Some, Full Stall }

// Stall is for how long some, or all, tasks waited: in sum, and in percent of the last 10, 60 and 300 seconds.
type Stall struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64
}

// unlimited is from where on version 1 means "no limit": it writes the largest multiple of the page size.
const unlimited = 1 << 62

// parseNumber reads a control file of one number; "max", and what version 1 writes for it, is Unlimited.
func parseNumber(text []byte) (uint64, error) {
	text = bytes.TrimSpace(text)
	if string(text) == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(string(text), 10, 64)
	if n >= unlimited {
		n = Unlimited
	}
	return n, err
}

// fields calls set for each line "name value" of a control file.
func fields(text []byte, set func(name []byte, value uint64)) error {
	for line := range bytes.Lines(text) {
		name, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return fmt.Errorf("field %s: %w", name, err)
		}
		set(name, n)
	}
	return nil
}

// parseMemoryV1 reads memory.stat. The fields that begin with total_ count what is below, too.
func (m *Memory) parseMemoryV1(text []byte) error {
	return fields(text, func(name []byte, n uint64) {
		switch string(name) {
		case "total_cache":
			m.Cache = n
		case "total_rss":
			m.RSS = n
		case "total_mapped_file":
			m.Mapped = n
		case "total_active_file":
			m.ActiveFile = n
		case "total_inactive_file":
			m.Inactive = n
		case "total_pgfault":
			m.Faults = n
		case "total_pgmajfault":
			m.MajorFaults = n
		case "total_swap":
			m.swapUsage = n
		}
	})
}

// parseMemoryV2 reads memory.stat.
func (m *Memory) parseMemoryV2(text []byte) error {
	return fields(text, func(name []byte, n uint64) {
		switch string(name) {
		case "file":
			m.Cache = n
		case "anon":
			m.RSS = n
		case "file_mapped":
			m.Mapped = n
		case "active_file":
			m.ActiveFile = n
		case "inactive_file":
			m.Inactive = n
		case "pgfault":
			m.Faults = n
		case "pgmajfault":
			m.MajorFaults = n
		}
	})
}

// parseUsec reads one field of microseconds.
func parseUsec(text []byte, field string) (d time.Duration, err error) {
	err = fields(text, func(name []byte, n uint64) {
		if string(name) == field {
			d = time.Duration(n) * time.Microsecond
		}
	})
	return d, err
}

// parsePSI reads a pressure file:
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=0
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=0
func parsePSI(text []byte) (*PSI, error) {
	var p PSI
	for line := range bytes.Lines(text) {
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		into := &p.Some
		if string(words[0]) == "full" {
			into = &p.Full
		}
		for _, word := range words[1:] {
			key, value, _ := bytes.Cut(word, []byte{'='})
			if err := into.set(string(key), string(value)); err != nil {
				return nil, fmt.Errorf("pressure %s: %w", word, err)
			}
		}
	}
	return &p, nil
}

func (s *Stall) set(key, value string) (err error) {
	switch key {
	case "total":
		var usec int64
		usec, err = strconv.ParseInt(value, 10, 64)
		s.Total = time.Duration(usec) * time.Microsecond
	case "avg10":
		s.Avg10, err = strconv.ParseFloat(value, 64)
	case "avg60":
		s.Avg60, err = strconv.ParseFloat(value, 64)
	case "avg300":
		s.Avg300, err = strconv.ParseFloat(value, 64)
	}
	return err
}
