package monitor

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
)

// flags are those of the namespaces that a pod may have of its own, by their names.
var flags = map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS}

// namespaces are a pod's user namespace, and those that it owns; none for a pod in the host's, whose monitor is cloned into its own.
type namespaces struct {
	names []string // "user" is the first
	fds   []int
}

// makeNamespaces makes them for a pod that has a user namespace.
func makeNamespaces(p Pod) (namespaces, error) {
	if len(p.UIDs) == 0 {
		return namespaces{}, nil
	}
	n := namespaces{names: []string{"user"}}
	for _, kind := range []struct {
		name string
		own  bool
	}{{"net", p.NewNet}, {"ipc", p.NewIPC}, {"uts", p.NewUTS}} {
		if kind.own {
			n.names = append(n.names, kind.name)
		}
	}
	var err error
	if n.fds, err = engine.NewNamespaces(p.UIDs, p.GIDs, n.names[1:]...); err != nil {
		return n, fmt.Errorf("make user namespace: %w", err)
	}
	return n, nil
}

func (n namespaces) close() {
	for _, fd := range n.fds {
		unix.Close(fd)
	}
}

// start starts the monitor in all but the user namespace, of which it gets a descriptor: the monitor has the host's root, and writes the
// host's logs. A process starts where the thread is that starts it, so the calling one, which is the Spawner's own, goes there and back.
func (n namespaces) start(cmd *exec.Cmd) error {
	if len(n.fds) == 0 {
		return cmd.Start()
	}
	users, err := duplicate(n.fds[0], "user namespace")
	if err != nil {
		return err
	}
	defer users.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, users)
	for i, name := range n.names[1:] {
		home, err := unix.Open("/proc/thread-self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", name, err)
		}
		defer func() {
			if err := unix.Setns(home, flags[name]); err != nil {
				panic("monitor: a thread cannot go back to its " + name + " namespace: " + err.Error()) // nothing that it does would be right
			}
			unix.Close(home)
		}()
		if err := unix.Setns(n.fds[i+1], flags[name]); err != nil {
			return fmt.Errorf("enter %s namespace: %w", name, err)
		}
	}
	return cmd.Start()
}

func duplicate(fd int, name string) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	return os.NewFile(uintptr(own), name), nil
}
