package cgroup

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limitBlockIO sets weights and throttles (runtime-spec config-linux.md#block-io).
func (d *Driver) limitBlockIO(rel string, io *specs.LinuxBlockIO) error {
	if io == nil {
		return nil
	}
	name := "blkio"
	if d.pure {
		name = "io"
	}
	h, err := d.controller(name)
	if err != nil {
		return fmt.Errorf("block I/O: %w", err)
	}
	if io.LeafWeight != nil {
		return fmt.Errorf("weight of a leaf: %w", ErrNotSupported)
	}
	if io.Weight != nil && *io.Weight != 0 {
		if err := h.blockWeight(rel, "", *io.Weight); err != nil {
			return err
		}
	}
	for _, w := range io.WeightDevice {
		if w.LeafWeight != nil {
			return fmt.Errorf("weight of a leaf: %w", ErrNotSupported)
		}
		if w.Weight != nil {
			if err := h.blockWeight(rel, fmt.Sprintf("%d:%d", w.Major, w.Minor), *w.Weight); err != nil {
				return err
			}
		}
	}
	for _, t := range []struct {
		devices []specs.LinuxThrottleDevice
		v1, v2  string
	}{
		{io.ThrottleReadBpsDevice, "read_bps", "rbps"}, {io.ThrottleWriteBpsDevice, "write_bps", "wbps"},
		{io.ThrottleReadIOPSDevice, "read_iops", "riops"}, {io.ThrottleWriteIOPSDevice, "write_iops", "wiops"},
	} {
		for _, device := range t.devices {
			file, value := "blkio.throttle."+t.v1+"_device", strconv.FormatUint(device.Rate, 10)
			if h.v2 {
				file, value = "io.max", t.v2+"="+value
			}
			if err := lacking("throttle", h.write(rel, file, fmt.Sprintf("%d:%d %s", device.Major, device.Minor, value))); err != nil {
				return err
			}
		}
	}
	return nil
}

// blockWeight sets the weight for a device, or with none the one for all others. The file is that of the scheduler which the kernel has.
func (h *hierarchy) blockWeight(rel, device string, weight uint16) error {
	value := strconv.Itoa(int(weight))
	type place struct{ file, value string }
	var places []place
	switch {
	case h.v2:
		// io.weight counts from 1 to 10000, others from 10 to 1000.
		wide := strconv.Itoa(1 + (max(int(weight), 10)-10)*9999/990)
		if device == "" {
			places = []place{{"io.bfq.weight", value}, {"io.weight", "default " + wide}}
		} else {
			places = []place{{"io.bfq.weight", device + " " + value}, {"io.weight", device + " " + wide}}
		}
	case device == "":
		places = []place{{"blkio.weight", value}, {"blkio.bfq.weight", value}}
	default:
		places = []place{{"blkio.weight_device", device + " " + value}, {"blkio.bfq.weight_device", device + " " + value}}
	}
	var err error
	for _, p := range places {
		if err = h.write(rel, p.file, p.value); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return lacking("weight", err)
}

// lacking makes a file that this kernel does not have ErrNotSupported.
func lacking(what string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("block I/O %s: %w by this kernel: %w", what, ErrNotSupported, err)
	}
	return err
}
