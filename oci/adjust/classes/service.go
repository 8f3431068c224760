package classes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
)

// Resctrl is where the kernel has classes of service.
const Resctrl = "/sys/fs/resctrl"

// Service gives containers their class of service, a group in the folder, which is Resctrl but for tests. It comes after whatever else may ask for
// one, and refuses what this kernel does not have.
type Service string

// Adjust gives c its class.
func (f Service) Adjust(_ context.Context, c *adjust.Container) error {
	class, field := serviceKind.class(c)
	if class == "" {
		if r := c.Spec.Linux.IntelRdt; r != nil && !f.there() {
			return f.unsupported("linux.intelRdt", r.ClosID)
		}
		return nil
	}
	if !f.there() {
		return f.unsupported(field, class)
	}
	if !isGroup(class) {
		return &spec.InvalidError{Field: field, Value: class, Rule: "is not the name of a class of service"}
	}
	if st, err := os.Stat(filepath.Join(string(f), class, "tasks")); err != nil || !st.Mode().IsRegular() {
		return &spec.InvalidError{Field: field, Value: class, Rule: "is not a class of service: there is no group of this name in " + string(f)}
	}
	if c.Spec.Linux.IntelRdt == nil {
		c.Spec.Linux.IntelRdt = &specs.LinuxIntelRdt{}
	}
	c.Spec.Linux.IntelRdt.ClosID = class
	return nil
}

func (f Service) unsupported(field, class string) error {
	return &spec.InvalidError{Field: field, Value: class, Rule: "is not supported by this kernel: there are no classes of service at " + string(f)}
}

// there tells whether the kernel has classes of service, and they are mounted.
func (f Service) there() bool {
	_, err := os.Stat(filepath.Join(string(f), "schemata"))
	return err == nil
}

// isGroup tells whether a name is one component of a path, and none of the kernel's own.
func isGroup(name string) bool {
	return name != "" && name != "." && name != ".." && name != "info" && name != "mon_groups" && name != "mon_data" && !strings.ContainsAny(name, "/\n\x00") && len(name) < 256
}

// Join puts a process, and with it all that it will start, into the group of a class.
func (f Service) Join(class string, pid int) error {
	if class != "/" && !isGroup(class) { // that is the root's, which all begin in
		return fmt.Errorf("join class of service %q: %w", class, fs.ErrInvalid)
	}
	tasks, err := os.OpenFile(filepath.Join(string(f), class, "tasks"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("join class of service %s: %w", class, err)
	}
	_, err = tasks.WriteString(strconv.Itoa(pid))
	if err := errors.Join(err, tasks.Close()); err != nil {
		return fmt.Errorf("join class of service %s: %w", class, err)
	}
	return nil
}
