package cni

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const sysctlRoot = "/proc/sys/net/"

func ipv6Sysctl(ifName, key string) string { return sysctlRoot + "ipv6/conf/" + ifName + "/" + key }

func ipv4Sysctl(ifName, key string) string { return sysctlRoot + "ipv4/conf/" + ifName + "/" + key }

// writeSysctl writes a sysctl of the calling thread's network namespace. One that does not exist (no IPv6 in the kernel) is no
// error.
func writeSysctl(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		if current, ok := readSysctl(path); ok && current == value {
			return nil // read-only /proc/sys, but as it should be
		}
		return fmt.Errorf("set sysctl %s to %s: %w", path, value, err)
	}
	return nil
}

// readSysctl returns a value, without its line break, and whether the sysctl can be read.
func readSysctl(path string) (string, bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", false
	}
	return string(bytes.TrimSpace(b[:n])), true
}

// raiseSysctl sets a switch that is shared with others, and leaves it alone when it is set.
func raiseSysctl(path, value string) error {
	if current, ok := readSysctl(path); !ok || current == value {
		return nil
	}
	return writeSysctl(path, value)
}
