package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNotSupported means that the kernel, or a file system, lacks what is asked for.
var ErrNotSupported = errors.New("not supported by this kernel or file system")

// ProbeUserNamespaces tells whether containers can be in user namespaces: an overlay with mapped owners in the folder layers, and
// mounts with mapped owners of tmpfs (Linux 6.3) and of the other folders. It leaves nothing. The error wraps ErrNotSupported.
func ProbeUserNamespaces(layers string, others ...string) (err error) {
	missing := func(what string, err error) error { return fmt.Errorf("%s: %w: %w", what, ErrNotSupported, err) }
	const first, length = 1 << 20, 1 << 16 // any would do
	ids := []IDMap{{Outside: first, Length: length}}
	made, err := NewNamespaces(ids, ids)
	if err != nil {
		return missing("user namespaces", err)
	}
	defer unix.Close(made[0])
	u := &UserNamespace{UIDs: ids, GIDs: ids, Descriptor: made[0]}
	dir, err := os.MkdirTemp(layers, ".probe")
	if err != nil {
		return missing("folder", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay := Mount{Type: "overlay"}
	for _, option := range []string{"lowerdir+", "upperdir", "workdir"} {
		folder := filepath.Join(dir, option)
		if err := os.Mkdir(folder, 0o755); err != nil {
			return missing("folder", err)
		}
		overlay.Options = append(overlay.Options, option+"="+folder)
	}
	root, err := mapRootfs(&overlay, u)
	if err != nil {
		return missing("overlay with mapped owners in "+layers, err)
	}
	defer unix.Close(root)
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil || st.Uid != first {
		return missing("overlay with mapped owners in "+layers, fmt.Errorf("its root belongs to %d, not to %d: %w", st.Uid, first, err))
	}
	if err := probeTmpfs(made[0]); err != nil { // a pod's /dev/shm
		return missing("tmpfs with mapped owners", err)
	}
	var d descriptors
	defer d.close()
	for _, folder := range others {
		if _, err := u.clone(folder, &d); err != nil {
			return missing("mapped owners in "+folder, err)
		}
	}
	return nil
}

func probeTmpfs(userns int) error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return idmap(fd, userns)
}
