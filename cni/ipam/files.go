package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// create makes the reservation's file; it fails with EEXIST when the address is taken. Making an inode is what costs most, so the
// second address of an owner is a hard link to the first, whose contents are the same, and inodes of released ones are used again.
// Preconditions: locked.
func (s *Store) create(owner Owner, a netip.Addr) error {
	path, content := s.path(a.String()), owner.ContainerID+lineBreak+owner.IfName
	for _, other := range s.owned[owner] {
		err := unix.Link(s.path(other.String()), path)
		if err == unix.EEXIST {
			return err
		}
		if err == nil {
			s.note(owner, a)
			return nil
		}
	}
	for len(s.spare) > 0 {
		spare := s.spare[len(s.spare)-1]
		err := overwrite(spare, content)
		if err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		}
		if err == unix.EEXIST {
			return err
		}
		s.spare = s.spare[:len(s.spare)-1]
		if err == nil {
			s.note(owner, a)
			return nil
		}
	}
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(content))
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	s.note(owner, a)
	return nil
}

// remove takes a reservation's file away, and keeps its inode for later if it has no other name. Preconditions: locked.
func (s *Store) remove(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == nil && st.Nlink == 1 && st.Mode&unix.S_IFMT == unix.S_IFREG && len(s.spare) < maxSpare {
		s.spares++
		spare := s.path(sparePrefix + strconv.Itoa(s.spares))
		if overwrite(path, freed) == nil && unix.Rename(path, spare) == nil {
			s.spare = append(s.spare, spare)
			return nil
		}
	}
	return unix.Unlink(path)
}

// overwrite replaces a file's contents in place. Truncating it first would make ext4 start the write to the disk when the file is
// closed (auto_da_alloc), which takes longer than all else that a pod's network needs.
func overwrite(path, content string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	n, err := unix.Pwrite(fd, []byte(content), 0)
	if err == nil {
		err = unix.Ftruncate(fd, int64(n))
	}
	return errors.Join(err, unix.Close(fd))
}

// note remembers a reservation. Preconditions: locked.
func (s *Store) note(owner Owner, a netip.Addr) {
	for _, have := range s.owned[owner] {
		if have == a {
			return
		}
	}
	s.owned[owner] = append(s.owned[owner], a)
}

// holder is who has an address as far as this process knows, but for one owner. Preconditions: locked.
func (s *Store) holder(a netip.Addr, but Owner) (Owner, bool) {
	for o, held := range s.owned {
		if o != but && slices.Contains(held, a) {
			return o, true
		}
	}
	return Owner{}, false
}

// release removes those of addrs that belong to owner. Preconditions: locked.
func (s *Store) release(owner Owner, addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if holder, err := s.readOwner(a); err != nil || holder != owner {
			if err != nil && owner == (Owner{}) {
				err = os.RemoveAll(s.path(a.String()))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("release address %s: %w", a, err))
				continue
			}
		} else if err := s.remove(s.path(a.String())); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("release address %s: %w", a, err))
			continue
		}
		s.forget(owner, a)
	}
	return errors.Join(errs...)
}

// forget is the opposite of note. Preconditions: locked.
func (s *Store) forget(owner Owner, a netip.Addr) {
	var left []netip.Addr
	for _, have := range s.owned[owner] {
		if have != a {
			left = append(left, have)
		}
	}
	if left == nil {
		delete(s.owned, owner)
	} else {
		s.owned[owner] = left
	}
}

func (s *Store) path(name string) string { return s.dir + "/" + name }

func (s *Store) readOwner(a netip.Addr) (Owner, error) {
	b, err := readSmall(s.path(a.String()))
	if err != nil {
		return Owner{}, err
	}
	id, ifName, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return Owner{ContainerID: strings.TrimSpace(id), IfName: strings.TrimSpace(ifName)}, nil
}

// read returns all reservations of the directory.
func (s *Store) read() (map[netip.Addr]Owner, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read address reservations: %w", err)
	}
	m := make(map[netip.Addr]Owner, len(files))
	for _, f := range files {
		a, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue // lock, last_reserved_ip.N, free.N
		}
		owner, err := s.readOwner(a)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			owner = Owner{} // nobody's, and not free either: Sweep takes it away
		}
		m[a] = owner
	}
	return m, nil
}

func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, maxFile)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b[:n], nil
}
