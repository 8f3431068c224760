package cgroup

import (
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
)

// Limits are those that the kernel keeps for one cgroup, which need not be what was asked for: it rounds and clamps.
type Limits struct {
	Shares      uint64 // of the processors, as version 1 counts them; 0: nobody does
	Quota       int64  // microseconds a Period; -1: none
	Period      uint64 // 0: nobody counts
	Cpus, Mems  string // "": not set
	Memory      uint64 // bytes; Unlimited: none, as below
	MemorySwap  uint64 // memory and swap together
	Reservation uint64 // 0: none
	Hugepages   map[string]uint64
}

// Shares and weight that the kernel gives a new cgroup.
const (
	DefaultShares = 1024
	defaultWeight = 100
)

// Limits reads the limits of p. asked are the shares that were: version 2 keeps a weight, which stands for several numbers of shares, and
// means those that were asked for when it can. Errors: ErrGone.
func (d *Driver) Limits(p string, asked uint64) (Limits, error) {
	r := reader{rel: relative(p)}
	out := Limits{Quota: -1, Memory: Unlimited, MemorySwap: Unlimited, Hugepages: map[string]uint64{}}
	d.cpuLimits(&r, &out, asked)
	if h, err := d.controller("cpuset"); err == nil {
		out.Cpus, out.Mems = strings.TrimSpace(r.text(h, "cpuset.cpus")), strings.TrimSpace(r.text(h, "cpuset.mems"))
	}
	d.memoryLimits(&r, &out)
	if h, err := d.controller("hugetlb"); err == nil {
		for _, size := range d.hugepages {
			file := "hugetlb." + size + ".limit_in_bytes"
			if h.v2 {
				file = "hugetlb." + size + ".max"
			}
			if h.exists(path.Join(r.rel, file)) {
				out.Hugepages[size] = r.number(h, file)
			}
		}
	}
	if r.err == nil && !d.Exists(p) {
		r.err = ErrGone
	}
	if r.err != nil {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", p, r.err)
	}
	return out, nil
}

func (d *Driver) cpuLimits(r *reader, out *Limits, asked uint64) {
	h, err := d.controller("cpu")
	if err != nil {
		return
	}
	if !h.v2 {
		out.Shares, out.Period = r.number(h, "cpu.shares"), r.number(h, "cpu.cfs_period_us")
		out.Quota = r.signed(r.text(h, "cpu.cfs_quota_us"))
		return
	}
	out.Shares = shares(r.number(h, "cpu.weight"), asked)
	quota, period, _ := strings.Cut(r.text(h, "cpu.max"), " ")
	out.Quota = r.signed(quota)
	out.Period = uint64(max(0, r.signed(period)))
}

// signed reads a number that may be "max", or nothing: that is -1.
func (r *reader) signed(text string) int64 {
	text = strings.TrimSpace(text)
	if text == "" || text == "max" {
		return -1
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil && r.err == nil {
		r.err = err
	}
	return n
}

func (d *Driver) memoryLimits(r *reader, out *Limits) {
	h, err := d.controller("memory")
	if err != nil {
		return
	}
	limit := func(file string) uint64 {
		if !h.exists(path.Join(r.rel, file)) {
			return Unlimited
		}
		return r.number(h, file)
	}
	if !h.v2 {
		out.Memory, out.MemorySwap = limit("memory.limit_in_bytes"), limit("memory.memsw.limit_in_bytes")
		if soft := limit("memory.soft_limit_in_bytes"); soft != Unlimited {
			out.Reservation = soft
		}
		return
	}
	out.Memory, out.Reservation = limit("memory.max"), r.number(h, "memory.low")
	if swap := limit("memory.swap.max"); swap != Unlimited && out.Memory != Unlimited {
		out.MemorySwap = out.Memory + swap
	}
}

// shares is the inverse of weight: asked when that gives this weight, else the least number that does.
func shares(w, asked uint64) uint64 {
	switch {
	case w == 0:
		return 0
	case asked != 0 && weight(asked) == w:
		return asked
	case w == defaultWeight:
		return DefaultShares
	case w <= 1:
		return 2
	case w >= 10000:
		return 262144
	}
	// weight is 10^((l*l+125*l)/612-7/34) of l = log2(shares).
	l := (-125 + math.Sqrt(125*125+4*612*(math.Log10(float64(w))+7.0/34.0))) / 2
	n := uint64(math.Exp2(l))
	for n > 2 && weight(n-1) >= w {
		n--
	}
	for weight(n) < w {
		n++
	}
	return n
}
