package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mount is one mount to make.
//
// Type "overlay": each of Options is a parameter of overlayfs as fsconfig(2) takes it, in order: KEY=VALUE, or a flag.
// "lowerdir+" comes once a folder, the topmost first. A kernel that does not know it (before 6.7) wants them joined by colons
// as lowerdir, and at most a page of that in one mount(2). "volatile" is a flag.
//
// Type "bind": Source is a folder, Options is "ro", which is the mount's, not the file system's.
type Mount struct {
	Type    string
	Source  string
	Options []string
}

const lowerOption = "lowerdir+="

// overlayMount stacks the folders, the topmost first, below w's; with nil for reading only.
func overlayMount(folders []string, w *writable) Mount {
	m := Mount{Type: "overlay", Source: "overlay"}
	for _, folder := range folders {
		m.Options = append(m.Options, lowerOption+folder)
	}
	if w != nil {
		m.Options = append(m.Options,
			"upperdir="+filepath.Join(w.dir, "upper"),
			"workdir="+filepath.Join(w.dir, "work"),
			// What the kernel was built to do by itself varies; an upper folder must not depend on it: it is to be read
			// without overlayfs, and to be mounted again with other folders below.
			"index=off", "redirect_dir=off", "metacopy=off",
			"volatile")
	}
	return m
}

const detachedAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC

// openFolders opens the root of the tree that the folders, the topmost first, add up to. It is mounted nowhere: closing
// the root unmounts it.
func (s *Store) openFolders(folders []string) (*os.File, error) {
	if len(folders) == 1 {
		return os.Open(folders[0])
	}
	mount := s.mountInScratch
	if appendsLayers() {
		mount = mountDetached
	}
	f, err := mount(folders)
	if err != nil {
		return nil, fmt.Errorf("stack %d folders: %w", len(folders), err)
	}
	return f, nil
}

// appendsLayers tells whether overlayfs takes its layers one by one, as lowerdir+ (Linux 6.7). The kernel is asked once.
var appendsLayers = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return true // there is no overlayfs: the mount itself says so
	}
	defer unix.Close(fs)
	if unix.FsconfigSetString(fs, "lowerdir+", "/") != nil {
		return false
	}
	// Before Linux 6.5 overlayfs hears of its parameters only when it is created, and until then any is taken.
	return unix.FsconfigSetFlag(fs, "no-such-parameter") != nil
})

func mountDetached(folders []string) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, folder := range folders {
		if err := unix.FsconfigSetString(fs, "lowerdir+", folder); err != nil {
			return nil, fmt.Errorf("add folder %s: %w", folder, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make overlay: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, detachedAttrs)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// mountInScratch is mountDetached for older kernels: mount(2), in a mount namespace of a thread of its own, where the
// folders have names short enough for one page; the mount is then cloned, detached, and outlives the namespace.
func (s *Store) mountInScratch(folders []string) (*os.File, error) {
	type outcome struct {
		fd  int
		err error
	}
	ended := make(chan outcome)
	var attempt func()
	attempt = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and would stay in the namespace. This goroutine holds it while another runs.
			defer runtime.UnlockOSThread()
			inner := make(chan struct{})
			go func() { defer close(inner); attempt() }()
			<-inner
			return
		}
		// Not unlocked: the thread ends with the goroutine, and the namespace with the thread.
		fd, err := scratchMount(s.path(dirTrash, ""), folders)
		ended <- outcome{fd, err}
	}
	go attempt()
	got := <-ended
	if got.err != nil {
		return nil, got.err
	}
	return os.NewFile(uintptr(got.fd), "overlay"), nil
}

// scratchMount makes the overlay in a new mount namespace of the calling thread. place is a folder that holds nothing
// that is stacked: a tmpfs covers it there.
func scratchMount(place string, folders []string) (fd int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return -1, fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", place, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir(place); err != nil {
		return -1, err
	}
	names := make([]string, len(folders))
	for i, folder := range folders {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := unix.Symlink(folder, names[i]); err != nil {
			return -1, err
		}
	}
	if err := unix.Mkdir("tree", 0o700); err != nil {
		return -1, err
	}
	options := "lowerdir=" + strings.Join(names, ":")
	if len(options) >= os.Getpagesize() {
		return -1, ErrTooManyLayers
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("overlay", "tree", "overlay", flags, options); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	if fd, err = unix.OpenTree(unix.AT_FDCWD, "tree", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		return -1, fmt.Errorf("detach overlay: %w", err)
	}
	return fd, nil
}
