package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// Details are what is seldom asked for, of a cgroup and all below it. What the host does not count is zero, or missing in a list.
type Details struct {
	User, System              time.Duration // processors' time since the cgroup was made
	Periods, ThrottledPeriods uint64        // of the processors' quota
	Throttled                 time.Duration
	MemoryPeak, MemoryKernel  uint64 // bytes
	MemoryReserved            uint64 // bytes that are kept for it; 0: none
	MemoryHits, OOMKills      uint64 // how often the limit was hit; processes killed
	Processes, Threads        uint64
	MaxThreads                uint64     // Unlimited: no limit
	Devices                   []DeviceIO // nil where nobody counts
	Hugepages                 []HugepageUsage
}

// DeviceIO is what was read from and written to a block device.
type DeviceIO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugepageUsage is of one size of huge pages, in bytes.
type HugepageUsage struct {
	Size        string // as the kernel names it in file names: 2MB
	Usage, Peak uint64
}

// Details reads the details of p by its path. Errors: ErrGone.
func (d *Driver) Details(p string) (Details, error) {
	var out Details
	r := reader{rel: relative(p)}
	d.cpuDetails(&r, &out)
	d.memoryDetails(&r, &out)
	d.pidsDetails(&r, &out)
	d.ioDetails(&r, &out)
	d.hugepageDetails(&r, &out)
	if r.err == nil {
		out.Processes, r.err = d.Processes(p)
	}
	if r.err == nil && !d.Exists(p) {
		r.err = ErrGone
	}
	if r.err != nil {
		return Details{}, fmt.Errorf("measure cgroup %s: %w", p, r.err)
	}
	return out, nil
}

// reader reads control files of one cgroup until one gives an error. A file that is not there is empty.
type reader struct {
	rel string
	err error
}

func (r *reader) text(h *hierarchy, file string) string {
	if r.err != nil {
		return ""
	}
	text, err := h.read(r.rel, file)
	if err != nil && !gone(err) {
		r.err = err
	}
	return text
}

func (r *reader) number(h *hierarchy, file string) uint64 {
	text := r.text(h, file)
	if text == "" {
		return 0
	}
	n, err := parseNumber([]byte(text))
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse %s: %w", file, err)
	}
	return n
}

// fields calls set for each field of a file.
func (r *reader) fields(h *hierarchy, file string, set map[string]func(uint64)) {
	text := r.text(h, file)
	err := fields([]byte(text), func(name []byte, n uint64) {
		if f := set[string(name)]; f != nil {
			f(n)
		}
	})
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse %s: %w", file, err)
	}
}

func into[T ~uint64 | ~int64](to *T, unit T) func(uint64) {
	return func(n uint64) { *to = T(n) * unit }
}

func (d *Driver) cpuDetails(r *reader, out *Details) {
	set := map[string]func(uint64){"nr_periods": into(&out.Periods, 1), "nr_throttled": into(&out.ThrottledPeriods, 1),
		"throttled_time": into(&out.Throttled, 1), "throttled_usec": into(&out.Throttled, time.Microsecond)}
	if h, err := d.controller("cpuacct"); err == nil {
		out.User = time.Duration(r.number(h, "cpuacct.usage_user"))
		out.System = time.Duration(r.number(h, "cpuacct.usage_sys"))
	} else if d.unified != nil {
		r.fields(d.unified, "cpu.stat", map[string]func(uint64){"user_usec": into(&out.User, time.Microsecond), "system_usec": into(&out.System, time.Microsecond)})
	}
	if h, err := d.controller("cpu"); err == nil {
		r.fields(h, "cpu.stat", set)
	}
}

func (d *Driver) memoryDetails(r *reader, out *Details) {
	h, err := d.controller("memory")
	if err != nil {
		return
	}
	if h.v2 {
		out.MemoryPeak = r.number(h, "memory.peak") // since Linux 5.19
		out.MemoryReserved = r.number(h, "memory.min")
		r.fields(h, "memory.events", map[string]func(uint64){"max": into(&out.MemoryHits, 1), "oom_kill": into(&out.OOMKills, 1)})
		r.fields(h, "memory.stat", map[string]func(uint64){"kernel": into(&out.MemoryKernel, 1)}) // since Linux 5.18
		return
	}
	out.MemoryPeak = r.number(h, "memory.max_usage_in_bytes")
	if soft := r.number(h, "memory.soft_limit_in_bytes"); soft != Unlimited {
		out.MemoryReserved = soft
	}
	out.MemoryHits = r.number(h, "memory.failcnt")
	out.MemoryKernel = r.number(h, "memory.kmem.usage_in_bytes")
	r.fields(h, "memory.oom_control", map[string]func(uint64){"oom_kill": into(&out.OOMKills, 1)})
}

func (d *Driver) pidsDetails(r *reader, out *Details) {
	out.MaxThreads = Unlimited
	h, err := d.controller("pids")
	if err != nil {
		return
	}
	out.Threads = r.number(h, "pids.current")
	if h.exists(path.Join(r.rel, "pids.max")) { // not in the root
		out.MaxThreads = r.number(h, "pids.max")
	}
}

// ioDetails takes version 1's numbers from the throttling policy: it counts whatever the device's scheduler is.
func (d *Driver) ioDetails(r *reader, out *Details) {
	if h, err := d.controller("io"); err == nil && h.v2 {
		out.Devices = []DeviceIO{}
		r.ioV2(r.text(h, "io.stat"), out)
		return
	}
	if h, err := d.controller("blkio"); err == nil {
		out.Devices = []DeviceIO{}
		r.ioV1(r.text(h, "blkio.throttle.io_service_bytes_recursive"), out, func(i *DeviceIO) (read, write *uint64) { return &i.ReadBytes, &i.WriteBytes })
		r.ioV1(r.text(h, "blkio.throttle.io_serviced_recursive"), out, func(i *DeviceIO) (read, write *uint64) { return &i.Reads, &i.Writes })
	}
}

// device finds the entry of "MAJOR:MINOR"; nil for what is none.
func (out *Details) device(name string) *DeviceIO {
	major, minor, ok := strings.Cut(name, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err != nil || err2 != nil {
		return nil
	}
	for i := range out.Devices {
		if e := &out.Devices[i]; e.Major == uint32(a) && e.Minor == uint32(b) {
			return e
		}
	}
	out.Devices = append(out.Devices, DeviceIO{Major: uint32(a), Minor: uint32(b)})
	return &out.Devices[len(out.Devices)-1]
}

// ioV1 reads lines of "MAJOR:MINOR OPERATION NUMBER"; there are others.
func (r *reader) ioV1(text string, out *Details, fields func(*DeviceIO) (read, write *uint64)) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue
		}
		e := out.device(words[0])
		n, err := strconv.ParseUint(words[2], 10, 64)
		if e == nil || err != nil {
			r.err = errors.Join(r.err, err)
			continue
		}
		read, write := fields(e)
		switch words[1] {
		case "Read":
			*read = n
		case "Write":
			*write = n
		}
	}
}

// ioV2 reads lines of "MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...".
func (r *reader) ioV2(text string, out *Details) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		e := out.device(words[0])
		if e == nil {
			continue
		}
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			to := map[string]*uint64{"rbytes": &e.ReadBytes, "wbytes": &e.WriteBytes, "rios": &e.Reads, "wios": &e.Writes}[key]
			if to == nil {
				continue
			}
			n, err := strconv.ParseUint(value, 10, 64)
			r.err = errors.Join(r.err, err)
			*to = n
		}
	}
}

// hugepagesFolder has a folder for each size.
const hugepagesFolder = "/sys/kernel/mm/hugepages"

// hugepageSizes lists the kernel's sizes of huge pages, as its control files name them.
func hugepageSizes() []string {
	folders, err := os.ReadDir(hugepagesFolder)
	if err != nil {
		return nil // it has none
	}
	var sizes []string
	for _, f := range folders {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(f.Name(), "hugepages-"), "kB"))
		if err != nil {
			continue
		}
		unit := "KB"
		for _, next := range []string{"MB", "GB"} {
			if n >= 1024 {
				n, unit = n/1024, next
			}
		}
		sizes = append(sizes, strconv.Itoa(n)+unit)
	}
	return sizes
}

func (d *Driver) hugepageDetails(r *reader, out *Details) {
	h, err := d.controller("hugetlb")
	for _, size := range d.hugepages {
		usage, peak := "usage_in_bytes", "max_usage_in_bytes"
		if err == nil && h.v2 {
			usage, peak = "current", "peak" // no kernel has a peak on version 2 yet
		}
		file := func(name string) string { return "hugetlb." + size + "." + name }
		if err == nil && h.exists(path.Join(r.rel, file(usage))) {
			now := r.number(h, file(usage))
			out.Hugepages = append(out.Hugepages, HugepageUsage{Size: size, Usage: now, Peak: max(now, r.number(h, file(peak)))})
		} else if noHugepages(size) { // where nobody counts, nothing is in use if there is nothing
			out.Hugepages = append(out.Hugepages, HugepageUsage{Size: size})
		}
	}
}

// noHugepages says whether the host has none of a size, and makes none when they are asked for.
func noHugepages(size string) bool {
	folder := hugepagesFolder + "/hugepages-" + strconv.Itoa(kibibytes(size)) + "kB/"
	for _, file := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
		if text, err := os.ReadFile(folder + file); err != nil || strings.TrimSpace(string(text)) != "0" {
			return false
		}
	}
	return true
}

// kibibytes is what hugepageSizes made a size of.
func kibibytes(size string) int {
	n, _ := strconv.Atoi(strings.TrimRight(size, "KMGB"))
	switch {
	case strings.HasSuffix(size, "MB"):
		n <<= 10
	case strings.HasSuffix(size, "GB"):
		n <<= 20
	}
	return n
}
