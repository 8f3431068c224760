package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder is where iproute2 keeps names of network namespaces.
const Folder = "/run/netns"

// Pins are those of one daemon.
type Pins struct{ folder, prefix string }

// New makes nothing. instance is "" or the short name of a daemon that shares the host with others.
func New(folder, instance string) *Pins {
	p := &Pins{folder: folder, prefix: "berth-"}
	if instance != "" {
		p.prefix += instance + "-"
	}
	return p
}

// Path is where the sandbox's network namespace is pinned, or will be.
func (p *Pins) Path(sandboxID string) string { return filepath.Join(p.folder, p.prefix+sandboxID) }

// Pin mounts the network namespace of the process pid at Path(sandboxID), in place of a pin that an earlier attempt left. The caller makes
// sure that pid is still its process. On an error nothing is left.
func (p *Pins) Pin(sandboxID string, pid int) (err error) {
	path := p.Path(sandboxID)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("pin network namespace %s: %w", path, err), p.Unpin(sandboxID))
		}
	}()
	create := func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	err = create()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(p.folder, 0o755); err == nil {
			err = create()
		}
	}
	if errors.Is(err, fs.ErrExist) {
		if err = p.Unpin(sandboxID); err == nil {
			err = create()
		}
	}
	if err != nil {
		return err
	}
	return unix.Mount("/proc/"+strconv.Itoa(pid)+"/ns/net", path, "", unix.MS_BIND, "")
}

// Unpin takes the pin away. It is idempotent. The namespace goes when its last process and descriptor do.
func (p *Pins) Unpin(sandboxID string) error {
	path := p.Path(sandboxID)
	for { // once a mount: an outsider may have put more on it
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpin network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin network namespace: %w", err)
	}
	return nil
}

// List names the sandboxes that have a pin of this daemon, whole or half made.
func (p *Pins) List() ([]string, error) {
	entries, err := os.ReadDir(p.folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins of network namespaces: %w", err)
	}
	var ids []string
	for _, e := range entries {
		id, ours := strings.CutPrefix(e.Name(), p.prefix)
		if ours && len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Pinned tells whether a network namespace stands at Path(sandboxID), as it no longer does after a reboot.
func (p *Pins) Pinned(sandboxID string) bool {
	var st unix.Statfs_t
	return unix.Statfs(p.Path(sandboxID), &st) == nil && st.Type == unix.NSFS_MAGIC
}
