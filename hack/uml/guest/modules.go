package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// modprobeRoot is a folder that modprobe finds the modules in.
const modprobeRoot = "/run/modules"

// loadModules loads what is there from the start, and lets the kernel load more, from a folder with one for each version of it.
func loadModules(modules string) error {
	if err := os.MkdirAll(filepath.Join(modprobeRoot, "lib"), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(modules, filepath.Join(modprobeRoot, "lib", "modules")); err != nil {
		return err
	}
	for _, name := range loaded {
		if out, err := exec.Command("modprobe", "-d", modprobeRoot, name).CombinedOutput(); err != nil {
			return fmt.Errorf("load module %s: %w: %s", name, err, out)
		}
	}
	// request_module takes one path and no arguments.
	const script = modprobeRoot + "/modprobe"
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec /sbin/modprobe -d "+modprobeRoot+" \"$@\"\n"), 0o755); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(script), 0o644)
}
