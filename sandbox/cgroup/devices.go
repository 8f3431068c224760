package cgroup

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limitDevices applies the rules in their order. Version 1 has a file for each kind of rule; version 2 takes an eBPF program, which goes
// with the cgroup.
func (d *Driver) limitDevices(rel string, rules []specs.LinuxDeviceCgroup) error {
	if len(rules) == 0 {
		return nil
	}
	h, err := d.controller("devices")
	if err == nil {
		return h.devicesV1(rel, rules)
	}
	if d.unified == nil {
		return err
	}
	program, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	f, err := d.unified.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := program.attach(int(f.Fd())); err != nil {
		return fmt.Errorf("attach device rules to %s: %w", f.Name(), err)
	}
	return nil
}

// DeviceRules tells whether device rules can be set: by version 1, or by programs where the kernel attaches them to cgroups and takes them from
// this process.
func (d *Driver) DeviceRules() bool {
	if _, err := d.controller("devices"); err == nil {
		return true
	}
	if d.unified == nil {
		return false
	}
	fd, err := deny.load()
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

func (h *hierarchy) devicesV1(rel string, rules []specs.LinuxDeviceCgroup) error {
	for _, rule := range rules {
		file := "devices.deny"
		if rule.Allow {
			file = "devices.allow"
		}
		if err := h.write(rel, file, deviceRule(rule)); err != nil {
			return err
		}
	}
	return nil
}

// deviceRule writes a rule in version 1's form: "c 1:3 rwm". A rule for all kinds is "a", whose numbers and access the kernel ignores.
func deviceRule(rule specs.LinuxDeviceCgroup) string {
	if rule.Type == "" || rule.Type == "a" {
		return "a"
	}
	number := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	access := rule.Access
	if access == "" {
		access = "rwm"
	}
	return rule.Type + " " + number(rule.Major) + ":" + number(rule.Minor) + " " + access
}
