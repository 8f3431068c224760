package ipam

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller may decide on.
var (
	ErrExhausted = errors.New("no free address")
	ErrTaken     = errors.New("address is taken")
)

const (
	lockName     = "lock"
	lastPrefix   = "last_reserved_ip."
	lineBreak    = "\r\n" // as host-local writes it, on Linux too
	maxFile      = 4096   // bytes of a reservation that are read
	lockInterval = time.Millisecond
	sparePrefix  = "free."
	freed        = "free" // contents of a file that is kept for later
	maxSpare     = 64
	maxTries     = 1 << 17 // addresses tried in one range before it counts as full
)

// Owner is who holds a reservation.
type Owner struct{ ContainerID, IfName string }

// Range is a subnet that addresses are handed out from. Gateway is never handed out, nor are the subnet's first address and, in
// IPv4, its last.
type Range struct {
	Subnet  netip.Prefix
	Gateway netip.Addr
}

// Store is the directory of one network.
type Store struct {
	dir string

	gate  chan struct{}          // a mutex that a context can give up waiting for; guards owned and the directory
	owned map[Owner][]netip.Addr // what is on disk, as far as this process knows

	spare  []string // paths of files that are kept for later
	spares int      // number of the last one
}

// Open makes the directory if it is missing and reads the reservations that are there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open address reservations: %w", err)
	}
	s := &Store{dir: dir, gate: make(chan struct{}, 1), owned: make(map[Owner][]netip.Addr)}
	entries, err := s.read()
	if err != nil {
		return nil, err
	}
	for a, o := range entries {
		s.owned[o] = append(s.owned[o], a)
	}
	old, _ := filepath.Glob(filepath.Join(dir, sparePrefix+"*")) // of a former process
	for _, path := range old {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open address reservations: %w", err)
		}
	}
	return s, nil
}

// Reserve gives owner one address of every range, or those that it holds already, in the order of ranges. Nothing is reserved
// when an error is returned, but for what owner had before.
func (s *Store) Reserve(ctx context.Context, owner Owner, ranges []Range) (_ []netip.Prefix, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var made []netip.Addr
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release(owner, made))
		}
	}()
	list := make([]netip.Prefix, 0, len(ranges))
	for i, r := range ranges {
		a, ok := s.held(owner, r)
		if !ok {
			if a, err = s.next(owner, i, r); err != nil {
				return nil, err
			}
			made = append(made, a)
		}
		list = append(list, netip.PrefixFrom(a, r.Subnet.Bits()))
	}
	return list, nil
}

// ReserveExact gives owner one address by name. It is idempotent; ErrTaken when somebody else has it.
func (s *Store) ReserveExact(ctx context.Context, owner Owner, a netip.Addr) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if holder, err := s.readOwner(a); err == nil {
		if holder != owner {
			return fmt.Errorf("reserve address %s: %w by container %s", a, ErrTaken, holder.ContainerID)
		}
		s.note(owner, a)
		return nil
	}
	if err := s.create(owner, a); err != nil {
		return fmt.Errorf("reserve address %s: %w", a, err)
	}
	return nil
}

// Release frees everything that owner holds, and those of addrs that are its own. It is idempotent.
func (s *Store) Release(ctx context.Context, owner Owner, addrs ...netip.Addr) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return s.release(owner, append(s.owned[owner][:len(s.owned[owner]):len(s.owned[owner])], addrs...))
}

// Owned returns what owner holds.
func (s *Store) Owned(owner Owner) []netip.Addr {
	s.gate <- struct{}{}
	defer func() { <-s.gate }()
	return append([]netip.Addr(nil), s.owned[owner]...)
}

// Sweep frees every reservation for which keep answers false, and those that name no owner. It reads the directory, so it sees
// what other processes reserved.
func (s *Store) Sweep(ctx context.Context, keep func(Owner, netip.Addr) bool) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := s.read()
	if err != nil {
		return err
	}
	var errs []error
	for a, o := range entries {
		if o.ContainerID == "" || !keep(o, a) {
			errs = append(errs, s.release(o, []netip.Addr{a}))
		}
	}
	return errors.Join(errs...)
}

// List returns all reservations on disk.
func (s *Store) List() (map[netip.Addr]Owner, error) { return s.read() }

// lock takes the process's and the directory's lock; the function that it returns gives both back.
func (s *Store) lock(ctx context.Context) (func(), error) {
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("lock address reservations: %w", context.Cause(ctx))
	}
	path := filepath.Join(s.dir, lockName)
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == unix.ENOENT { // somebody removed the directory
		if err = os.MkdirAll(s.dir, 0o700); err == nil {
			fd, err = unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		}
	}
	for err == nil {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() {
				unix.Close(fd)
				<-s.gate
			}, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			unix.Close(fd)
			break
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			err = context.Cause(ctx)
		case <-time.After(lockInterval):
			err = nil
		}
	}
	<-s.gate
	return nil, fmt.Errorf("lock address reservations %s: %w", path, err)
}

// held returns the address of r that owner has already. Preconditions: locked.
func (s *Store) held(owner Owner, r Range) (netip.Addr, bool) {
	for _, a := range s.owned[owner] {
		if !r.Subnet.Contains(a) {
			continue
		}
		if o, err := s.readOwner(a); err == nil && o == owner {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// next reserves the first free address behind the one that was handed out last. Preconditions: locked.
func (s *Store) next(owner Owner, index int, r Range) (netip.Addr, error) {
	first, last := bounds(r.Subnet)
	start := first
	if b, err := readSmall(s.path(lastPrefix + fmt.Sprint(index))); err == nil {
		if a, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil && a.Compare(first) >= 0 && a.Compare(last) < 0 {
			start = a.Next()
		}
	}
	a := start
	for range maxTries {
		if a != r.Gateway {
			err := s.create(owner, a)
			other, lost := s.holder(a, owner)
			if err == nil && lost { // its file was taken away
				s.forget(owner, a)
				err = errors.Join(unix.Unlink(s.path(a.String())), s.create(other, a), fs.ErrExist)
			}
			if err == nil {
				// The search start is a hint: without it an address is used again sooner, nothing else.
				_ = overwrite(s.path(lastPrefix+fmt.Sprint(index)), a.String())
				return a, nil
			}
			if !errors.Is(err, fs.ErrExist) {
				return netip.Addr{}, fmt.Errorf("reserve address %s: %w", a, err)
			}
		}
		if a == last {
			a = first
		} else {
			a = a.Next()
		}
		if a == start {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("reserve address: %w in %s", ErrExhausted, r.Subnet)
}

// bounds returns the first and the last address that may be handed out.
func bounds(p netip.Prefix) (first, last netip.Addr) {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ = netip.AddrFromSlice(b)
	first = p.Masked().Addr()
	if p.Bits() < len(b)*8-1 {
		first = first.Next()
		if p.Addr().Is4() {
			last = last.Prev()
		}
	}
	return first, last
}
