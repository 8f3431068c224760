package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// jailEnv names the kubelet's folder for a process that shall become the kubelet.
const jailEnv = "BERTH_KUBELET_JAIL"

// parameters are what the kubelet sets in the kernel.
var parameters = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// Enter returns at once in a test's own process. In one that was started to become the kubelet it arranges the mounts and executes it.
func Enter() {
	dir := os.Getenv(jailEnv)
	if dir == "" {
		return
	}
	os.Unsetenv(jailEnv)
	err := arrange(dir)
	if err == nil {
		err = unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "kubelet's jail:", err)
	os.Exit(1)
}

// arrange cuts every mount but dir's off from the host's, and covers what the kubelet would write.
func arrange(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		at := mountpoint(line)
		if at == dir || strings.HasPrefix(at, dir+"/") {
			continue
		}
		if err := unix.Mount("", at, "", unix.MS_PRIVATE, ""); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("make %s private: %w", at, err) // EINVAL, ENOENT: another mount hides it
		}
	}
	for _, p := range parameters {
		if err := cover(filepath.Join(dir, "parameters", strings.ReplaceAll(p, "/", ".")), "/proc/sys/"+p); err != nil {
			return err
		}
	}
	for _, at := range []string{"/var/log", "/var/lib"} {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("cover %s: %w", at, err)
		}
	}
	return nil
}

// cover puts a copy of a file, made at path, over it.
func cover(path, file string) error {
	value, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, value, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(path, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", file, err)
	}
	return nil
}
