package monitor

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
)

// inUsers are the namespaces that a pod's user namespace owns, and their flags.
var inUsers = []struct {
	name string
	flag int
}{{"net", unix.CLONE_NEWNET}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}}

// namespaces are a pod's user namespace, and then those of inUsers; none for a pod in the host's, whose monitor is cloned into its own.
type namespaces []int

// makeNamespaces makes them for a pod that has a user namespace.
func makeNamespaces(p Pod) (namespaces, error) {
	if len(p.UIDs) == 0 {
		return nil, nil
	}
	var names []string
	for _, n := range inUsers {
		names = append(names, n.name)
	}
	made, err := engine.NewNamespaces(p.UIDs, p.GIDs, names...)
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return made, nil
}

func (n namespaces) close() {
	for _, fd := range n {
		unix.Close(fd)
	}
}

// start starts the monitor in all but the user namespace, of which it gets a descriptor: the monitor has the host's root, and writes the
// host's logs. A process starts where the thread is that starts it, so the calling one, which is the Spawner's own, goes there and back.
func (n namespaces) start(cmd *exec.Cmd) error {
	if len(n) == 0 {
		return cmd.Start()
	}
	users, err := duplicate(n[0], "user namespace")
	if err != nil {
		return err
	}
	defer users.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, users)
	for i, in := range inUsers {
		home, err := unix.Open("/proc/thread-self/ns/"+in.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", in.name, err)
		}
		defer func() {
			if err := unix.Setns(home, in.flag); err != nil {
				panic("monitor: a thread cannot go back to its " + in.name + " namespace: " + err.Error()) // nothing that it does would be right
			}
			unix.Close(home)
		}()
		if err := unix.Setns(n[i+1], in.flag); err != nil {
			return fmt.Errorf("enter %s namespace: %w", in.name, err)
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
