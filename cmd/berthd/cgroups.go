package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox/cgroup"
)

// Values of cgroup.driver.
const (
	driverAuto     = "auto"
	driverCgroupfs = "cgroupfs"
	driverSystemd  = "systemd"
)

// systemdTimeout bounds how long systemd may take to answer at the start.
const systemdTimeout = 10 * time.Second

// cgroupDriver is the rule of cgroup.driver.
func cgroupDriver(name string) error {
	switch name {
	case driverAuto, driverCgroupfs, driverSystemd:
		return nil
	}
	return fmt.Errorf("%q is not %q, %q or %q", name, driverAuto, driverCgroupfs, driverSystemd)
}

// openCgroups opens the driver that is configured, or that the host calls for.
func openCgroups(ctx context.Context, driver, instance string) (*cgroup.Driver, error) {
	starting, cancel := context.WithTimeout(ctx, systemdTimeout)
	defer cancel()
	switch driver {
	case driverCgroupfs:
		return cgroup.Open(instance)
	case driverSystemd:
		return cgroup.OpenSystemd(starting, instance, cgroup.SystemBus)
	}
	files, err := cgroup.Open(instance)
	if err != nil {
		return nil, err
	}
	why := cgroup.CheckSystemd()
	if why == nil && !files.V2() {
		why = errors.New("systemd is the init, and cgroup version 1 is mounted: cgroup.driver would have to say systemd")
	}
	if why != nil {
		klog.FromContext(ctx).V(2).Info("Chose the cgroup driver cgroupfs", "err", why)
		return files, nil
	}
	klog.FromContext(ctx).V(2).Info("Chose the cgroup driver systemd")
	if err := files.Close(); err != nil {
		return nil, err
	}
	// One that does not answer for the moment is no reason to choose the other: the kubelet goes on to name slices.
	d, err := cgroup.OpenSystemd(starting, instance, cgroup.SystemBus)
	if err != nil {
		return nil, fmt.Errorf("systemd is the init of this host, and cgroup.driver does not say %q: %w", driverCgroupfs, err)
	}
	return d, nil
}

// toldDriver is a driver's name for the kubelet.
func toldDriver(d *cgroup.Driver) runtimeapi.CgroupDriver {
	if d.Name() == driverSystemd {
		return runtimeapi.CgroupDriver_SYSTEMD
	}
	return runtimeapi.CgroupDriver_CGROUPFS
}
