package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// trash is a folder whose content a goroutine deletes. What is moved into it is gone for everybody else at that moment;
// what is still in it when the process ends, the next one deletes.
type trash struct {
	dir    string
	fd     *os.File
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	queue []string
	busy  bool          // the goroutine is deleting
	errs  []error       // of deletions, for wait
	wake  chan struct{} // holds one
	idle  chan struct{} // closed when the queue is empty; renewed when it no longer is
}

// openTrash starts the goroutine, which close ends.
func openTrash(dir string) (*trash, error) {
	fd, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	t := &trash{dir: dir, fd: fd, ended: make(chan struct{}), wake: make(chan struct{}, 1), idle: make(chan struct{})}
	close(t.idle)
	left, err := fd.Readdirnames(-1)
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(context.Background())
	for _, name := range left {
		t.enqueue(name)
	}
	go t.run(ctx)
	return t, nil
}

// discard moves path, which lies on the same file system, into the trash. What is gone already is nil.
func (t *trash) discard(path string) error {
	name := rand.Text()
	if err := os.Rename(path, filepath.Join(t.dir, name)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("move to trash: %w", err)
	}
	t.enqueue(name)
	return nil
}

func (t *trash) enqueue(name string) {
	t.mu.Lock()
	if len(t.queue) == 0 && !t.busy {
		t.idle = make(chan struct{})
	}
	t.queue = append(t.queue, name)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *trash) run(ctx context.Context) {
	defer close(t.ended)
	for {
		name, ok := t.take()
		if !ok {
			select {
			case <-t.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := removeTree(ctx, t.fd, name)
		t.done(name, err)
		if ctx.Err() != nil {
			return
		}
	}
}

func (t *trash) take() (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return "", false
	}
	name := t.queue[0]
	t.queue = t.queue[1:]
	t.busy = true
	return name, true
}

func (t *trash) done(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && len(t.errs) < 100 {
		t.errs = append(t.errs, fmt.Errorf("delete %s: %w", filepath.Join(t.dir, name), err))
	}
	t.busy = false
	if len(t.queue) == 0 {
		close(t.idle)
	}
}

// wait returns when nothing is left to delete, with the errors since the last wait.
func (t *trash) wait(ctx context.Context) error {
	for {
		t.mu.Lock()
		idle, errs := t.idle, t.errs
		empty := len(t.queue) == 0 && !t.busy
		if empty {
			t.errs = nil
		}
		t.mu.Unlock()
		if empty {
			return errors.Join(errs...)
		}
		select {
		case <-idle:
		case <-t.ended:
			return errors.New("the store is closed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close stops the goroutine at the next file, and waits for it.
func (t *trash) close() error {
	t.cancel()
	<-t.ended
	return t.fd.Close()
}

// maxDepth is how many directories removeTree holds open at once. Deeper ones it moves up into the trash first: a
// container can nest them deeper than there are descriptors, or than a path can name.
const maxDepth = 64

// removeTree deletes name in the directory at, which is trash.
func removeTree(ctx context.Context, at *os.File, name string) error {
	err := unix.Unlinkat(int(at.Fd()), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	r := remover{ctx: ctx, trash: int(at.Fd()), deep: []string{name}}
	for len(r.deep) > 0 {
		last := len(r.deep) - 1
		name := r.deep[last]
		r.deep = r.deep[:last]
		if err := r.removeDir(r.trash, name, 0); err != nil {
			return err
		}
	}
	return nil
}

type remover struct {
	ctx   context.Context
	trash int
	deep  []string // directories moved up into trash
}

// removeDir deletes the directory name in at.
func (r *remover) removeDir(at int, name string, depth int) error {
	if depth == maxDepth {
		up := rand.Text()
		if err := unix.Renameat(at, name, r.trash, up); err != nil {
			return fmt.Errorf("move up %q: %w", name, err)
		}
		r.deep = append(r.deep, up)
		return nil
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		if err := r.empty(dir, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
		if err != unix.ENOTEMPTY {
			return err
		}
		// Deleting while reading may have passed over some.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

func (r *remover) empty(dir *os.File, depth int) error {
	fd := int(dir.Fd())
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := r.ctx.Err(); err != nil {
				return err
			}
			if err := r.remove(fd, name, depth); err != nil {
				return fmt.Errorf("remove %q: %w", name, err)
			}
		}
		if err == io.EOF || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// remove deletes the member name of the directory fd.
func (r *remover) remove(fd int, name string, depth int) error {
	err := unix.Unlinkat(fd, name, 0)
	if err == unix.EPERM {
		// A container with CAP_LINUX_IMMUTABLE may have left files that not even root deletes as they are.
		clearFlags(fd, ".")
		clearFlags(fd, name)
		err = unix.Unlinkat(fd, name, 0)
	}
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR:
		return r.removeDir(fd, name, depth+1)
	}
	return err
}

// linux/fs.h, inode flags.
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
)

// clearFlags takes the flags immutable and append-only from a file or directory; a device is not even opened. What goes
// wrong shows when it is deleted.
func clearFlags(at int, name string) {
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&(flagImmutable|flagAppend) == 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^(flagImmutable|flagAppend)))
}
