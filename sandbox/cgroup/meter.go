package cgroup

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone means that a cgroup that was there has been removed.
var ErrGone = errors.New("cgroup is gone")

// limitsAge is for how long limits count as known. What this daemon changes it says with Refresh.
const limitsAge = 5 * time.Second

// Meter reads what one cgroup uses, by descriptors that stay open: no path is walked but for the limits, now and then. It may be used from
// several goroutines. The caller closes it. It does not keep the cgroup from being removed.
type Meter struct {
	path   string
	driver *Driver
	memory *hierarchy // nil: none counts memory

	mu     sync.Mutex
	files  [meterFiles]int // -1: the host has no such file
	buf    *[]byte         // of meterBuffers, during Read
	limits struct {
		memory, swap uint64
		at           time.Time
	}
	closed bool
}

// The files of a Meter.
const (
	fileCPU = iota
	fileMemoryStat
	fileMemory
	fileSwap
	fileCPUPressure
	fileMemoryPressure
	fileIOPressure
	meterFiles
)

// MeterFiles is how many descriptors a Meter holds at most.
const MeterFiles = meterFiles

// limitFiles are the names of the limits' files.
var limitFiles = [...]struct{ v1, v2 string }{{"memory.limit_in_bytes", "memory.max"}, {"memory.memsw.limit_in_bytes", "memory.swap.max"}}

// meterNames are the files' names. controller "": the unified hierarchy has the file, whatever its controllers.
var meterNames = [meterFiles]struct{ controller, v1, v2 string }{
	fileCPU:            {"cpuacct", "cpuacct.usage", "cpu.stat"},
	fileMemoryStat:     {"memory", "memory.stat", "memory.stat"},
	fileMemory:         {"memory", "memory.usage_in_bytes", "memory.current"},
	fileSwap:           {"memory", "", "memory.swap.current"}, // version 1 has it in memory.stat
	fileCPUPressure:    {"", "", "cpu.pressure"},
	fileMemoryPressure: {"", "", "memory.pressure"},
	fileIOPressure:     {"", "", "io.pressure"},
}

// Meter opens the files of p. Errors: ErrGone, when p is not there.
func (d *Driver) Meter(p string) (*Meter, error) {
	m := &Meter{path: p, driver: d}
	for i := range m.files {
		m.files[i] = -1
	}
	if h, err := d.controller("memory"); err == nil {
		m.memory = h
	}
	rel := relative(p)
	for i := range m.files {
		fd, err := d.openMeterFile(rel, i)
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("measure cgroup %s: %w", p, err)
		}
		m.files[i] = fd
	}
	return m, nil
}

// openMeterFile returns -1 for a file that this host does not have.
func (d *Driver) openMeterFile(rel string, i int) (fd int, err error) {
	names := meterNames[i]
	h := d.unified
	if names.controller != "" {
		if h, err = d.controller(names.controller); err != nil && i == fileCPU {
			h, err = d.unified, nil // version 2 counts it without a controller
		}
	}
	if h == nil || err != nil {
		return -1, nil
	}
	name := names.v1
	if h.v2 {
		name = names.v2
	}
	if name == "" {
		return -1, nil
	}
	err = retryEINTR(func() error {
		fd, err = unix.Openat(h.fd(), path.Join(rel, name), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		if h.exists(rel) {
			return -1, nil
		}
		return -1, ErrGone
	}
	return fd, err
}

// Close gives the descriptors back. It is idempotent; Read returns ErrGone from then on.
func (m *Meter) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for i, fd := range m.files {
		if fd >= 0 {
			unix.Close(fd)
		}
		m.files[i] = -1
	}
}

// meterBuffers are shared: there may be thousands of Meters.
var meterBuffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// Read measures the cgroup. Errors: ErrGone.
func (m *Meter) Read() (Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buf = meterBuffers.Get().(*[]byte)
	defer func() { meterBuffers.Put(m.buf); m.buf = nil }()
	s, err := m.read()
	if err != nil {
		return Stats{}, fmt.Errorf("measure cgroup %s: %w", m.path, err)
	}
	return s, nil
}

func (m *Meter) read() (s Stats, err error) {
	if m.closed {
		return s, ErrGone
	}
	s.At = time.Now()
	for _, part := range []func(*Stats) error{m.readCPU, m.readMemory, m.readLimits, m.readPressure} {
		if err := part(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// file reads a file from its beginning; nil when the host has none.
func (m *Meter) file(i int) ([]byte, error) {
	if m.files[i] < 0 {
		return nil, nil
	}
	text, err := readAt(m.files[i], m.buf)
	if errors.Is(err, unix.ENODEV) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read %s or %s: %w", meterNames[i].v1, meterNames[i].v2, err)
	}
	return text, nil
}

// readAt reads an open control file into a buffer that grows when it must. The kernel writes such a file in one piece, so an answer that
// leaves room is all of it.
func readAt(fd int, buf *[]byte) ([]byte, error) {
	for {
		n, err := unix.Pread(fd, *buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < len(*buf) {
			return (*buf)[:n], nil
		}
		*buf = make([]byte, 2*len(*buf))
	}
}

// number reads a file of one number; one that the host does not have is 0.
func (m *Meter) number(i int) (uint64, error) {
	text, err := m.file(i)
	if err != nil || text == nil {
		return 0, err
	}
	n, err := parseNumber(text)
	if err != nil {
		return 0, fmt.Errorf("parse %s or %s: %w", meterNames[i].v1, meterNames[i].v2, err)
	}
	return n, nil
}

func (m *Meter) readCPU(s *Stats) error {
	text, err := m.file(fileCPU)
	if err != nil || len(text) == 0 {
		return err
	}
	if text[0] >= '0' && text[0] <= '9' { // cpuacct.usage
		n, err := parseNumber(text)
		s.CPU = time.Duration(n)
		return err
	}
	s.CPU, err = parseUsec(text, "usage_usec")
	return err
}

func (m *Meter) readMemory(s *Stats) (err error) {
	text, err := m.file(fileMemoryStat)
	if err != nil || text == nil {
		return err
	}
	if m.memory.v2 {
		err = s.Memory.parseMemoryV2(text)
	} else {
		err = s.Memory.parseMemoryV1(text)
	}
	if err != nil {
		return fmt.Errorf("parse memory.stat: %w", err)
	}
	if s.Memory.Usage, err = m.number(fileMemory); err != nil {
		return err
	}
	s.Memory.WorkingSet = s.Memory.Usage - min(s.Memory.Usage, s.Memory.Inactive)
	return nil
}

// readLimits comes after readMemory. Version 1 limits memory and swap together, so a part of that is for swap alone.
func (m *Meter) readLimits(s *Stats) (err error) {
	if m.memory == nil {
		s.Memory.Limit = Unlimited
		return nil
	}
	l := &m.limits
	if s.At.Sub(l.at) > limitsAge {
		for i, into := range []*uint64{&l.memory, &l.swap} {
			if *into, err = m.limit(i); err != nil {
				return err
			}
		}
		l.at = s.At
	}
	s.Memory.Limit, s.Swap.Limit = l.memory, l.swap
	s.Swap.Counted = m.memory.v2 && m.files[fileSwap] >= 0 || !m.memory.v2 && m.driver.swapFiles
	switch {
	case !s.Swap.Counted:
		s.Swap.Limit = 0
	case m.memory.v2:
		s.Swap.Usage, err = m.number(fileSwap)
	default:
		s.Swap.Usage = s.Memory.swapUsage
		if s.Swap.Limit != Unlimited {
			s.Swap.Limit -= min(s.Swap.Limit, s.Memory.Limit)
		}
	}
	return err
}

// limit reads a limit's file; one that the host does not have limits nothing.
func (m *Meter) limit(i int) (uint64, error) {
	name := limitFiles[i].v1
	if m.memory.v2 {
		name = limitFiles[i].v2
	}
	text, err := m.memory.read(relative(m.path), name)
	if gone(err) {
		return Unlimited, nil
	}
	if err != nil {
		return 0, err
	}
	return parseNumber([]byte(text))
}

// Refresh has the limits read anew by the next Read.
func (m *Meter) Refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limits.at = time.Time{}
}

func (m *Meter) readPressure(s *Stats) error {
	for i, into := range [...]**PSI{&s.Pressure.CPU, &s.Pressure.Memory, &s.Pressure.IO} {
		text, err := m.file(fileCPUPressure + i)
		if errors.Is(err, unix.EOPNOTSUPP) { // switched off, by psi=0 or cgroup.pressure
			continue
		}
		if err == nil && text != nil {
			*into, err = parsePSI(text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
