package hostport

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Errors that a caller may decide on.
var (
	ErrNotSupported = errors.New("kernel has no nftables NAT")
	ErrInUse        = errors.New("host port is in use")
)

// How long the kernel's answer to one transaction, and to the question whether it has nftables at all, is waited for.
const (
	answerTimeout = 20 * time.Second
	probeTimeout  = 2 * time.Second
)

// Mapping leads one port of the host to a port of a pod.
type Mapping struct {
	Protocol uint8          // unix.IPPROTO_TCP, UDP or SCTP
	HostIP   netip.Addr     // zero: every address of the host of Pod's family
	HostPort uint16         // not 0
	Pod      netip.AddrPort // of HostIP's family
}

func (m Mapping) String() string {
	host := ":" + strconv.Itoa(int(m.HostPort))
	if m.HostIP.IsValid() {
		host = netip.AddrPortFrom(m.HostIP, m.HostPort).String()
	}
	return host + "/" + protocolName(m.Protocol)
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// key is what may occur only once: the left side of a map's element.
type key struct {
	protocol uint8
	ip       netip.Addr // the unspecified address of the family for "every address"
	port     uint16
}

func (m Mapping) key() key {
	k := key{m.Protocol, m.HostIP, m.HostPort}
	if !k.ip.IsValid() {
		k.ip = netip.IPv4Unspecified()
		if m.Pod.Addr().Is6() {
			k.ip = netip.IPv6Unspecified()
		}
	}
	return k
}

// Config names a table and the bridge that it serves.
type Config struct {
	Table   string
	Bridge  string
	Subnets []netip.Prefix // at most one of each family
}

// Table is one nftables table and what is wanted in it.
type Table struct {
	cfg Config

	mu     sync.Mutex
	wanted map[string][]Mapping // by owner
	taken  map[key]string       // owner of each key
	conn   *nftables.Conn       // nil: not connected
	socket *mdnetlink.Conn      // conn's
}

// New makes the description of a table; the kernel is not touched.
func New(cfg Config) *Table {
	return &Table{cfg: cfg, wanted: make(map[string][]Mapping), taken: make(map[key]string)}
}

// Is reports whether name is this table's.
func (t *Table) Is(name string) bool { return name == t.cfg.Table }

// Install writes the whole table with all mappings, in place of one that is there.
func (t *Table) Install() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.install()
}

// install is Install. Preconditions: t.mu held.
func (t *Table) install() error {
	c, err := t.connect(answerTimeout)
	if err != nil {
		return err
	}
	t.write(c)
	for _, owner := range slices.Sorted(maps.Keys(t.wanted)) {
		if err := t.elements(c, t.wanted[owner], (*nftables.Conn).SetAddElements); err != nil {
			return err
		}
	}
	return t.flushTable()
}

// Ensure writes the table if it is not there.
func (t *Table) Ensure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if there, err := t.there(); err != nil || there {
		return err
	}
	return t.install()
}

// Add leads the ports of mappings to owner's pod. It is idempotent for the same mappings; others of the same owner are replaced.
// ErrInUse names who has the port; nothing is changed then. After another error the caller calls Remove.
func (t *Table) Add(owner string, mappings []Mapping) error {
	if len(mappings) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.Equal(t.wanted[owner], mappings) {
		return nil
	}
	for _, m := range mappings {
		if holder, ok := t.taken[m.key()]; ok && holder != owner {
			return fmt.Errorf("map host port %s: %w by %s", m, ErrInUse, holder)
		}
	}
	old := t.wanted[owner]
	if err := t.change(old, mappings); errors.Is(err, fs.ErrNotExist) {
		// Somebody has removed the table: write it again, with what was in it.
		t.set(owner, mappings)
		if err := t.install(); err != nil {
			t.set(owner, old)
			return err
		}
	} else if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("map host ports %v: %w by an unknown pod", mappings, ErrInUse)
	} else if err != nil {
		return err
	}
	t.set(owner, mappings)
	return forgetFlowsToHost(mappings)
}

// Check returns an error unless owner has these mappings.
func (t *Table) Check(owner string, mappings []Mapping) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range mappings {
		if !slices.Contains(t.wanted[owner], m) {
			return fmt.Errorf("host port %s is not mapped", m)
		}
	}
	return nil
}

// Owner returns who has the host port of m, or "".
func (t *Table) Owner(m Mapping) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken[m.key()]
}

// Remove takes owner's mappings away, and those of mappings, which the process that made them may not have lived to tell. It is
// idempotent.
func (t *Table) Remove(owner string, mappings []Mapping) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := slices.Clone(t.wanted[owner])
	for _, m := range mappings {
		if !slices.Contains(gone, m) && t.taken[m.key()] == "" {
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	err := t.change(gone, nil)
	if errors.Is(err, fs.ErrNotExist) {
		// An element, or the table, is not there: each on its own, then.
		err = nil
		for _, m := range gone {
			if e := t.change([]Mapping{m}, nil); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	if err != nil && !errors.Is(err, ErrNotSupported) {
		return err
	}
	t.set(owner, nil)
	return forgetFlowsToPod(gone)
}

// Keep makes wanted, by owner, all that is in the table, but for owners that busy names: those keep what they have. The table is
// written whole, in one transaction. Of two owners of one port the first by name keeps it.
func (t *Table) Keep(wanted map[string][]Mapping, busy func(owner string) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, owner := range slices.Collect(maps.Keys(t.wanted)) {
		if !busy(owner) {
			t.set(owner, nil)
		}
	}
	for _, owner := range slices.Sorted(maps.Keys(wanted)) {
		if !busy(owner) {
			t.set(owner, slices.DeleteFunc(slices.Clone(wanted[owner]), func(m Mapping) bool { return t.taken[m.key()] != "" }))
		}
	}
	return t.install()
}

// Delete removes the table. A table that is not there is no error.
func (t *Table) Delete() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if there, err := t.there(); err != nil || !there {
		if errors.Is(err, ErrNotSupported) {
			return nil
		}
		return err
	}
	c, err := t.connect(answerTimeout)
	if err != nil {
		return err
	}
	c.DelTable(t.table())
	if err := t.flush(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete nftables table %s: %w", t.cfg.Table, err)
	}
	return nil
}

// set remembers what owner has. Preconditions: t.mu held.
func (t *Table) set(owner string, mappings []Mapping) {
	for _, m := range t.wanted[owner] {
		delete(t.taken, m.key())
	}
	delete(t.wanted, owner)
	if len(mappings) == 0 {
		return
	}
	t.wanted[owner] = slices.Clone(mappings)
	for _, m := range mappings {
		t.taken[m.key()] = owner
	}
}

// change takes old out of the maps and puts fresh in, in one transaction.
func (t *Table) change(old, fresh []Mapping) error {
	c, err := t.connect(answerTimeout)
	if err != nil {
		return err
	}
	if err := t.elements(c, old, (*nftables.Conn).SetDeleteElements); err != nil {
		return err
	}
	if err := t.elements(c, fresh, (*nftables.Conn).SetAddElements); err != nil {
		return err
	}
	if err := t.flush(); err != nil {
		return fmt.Errorf("change nftables table %s: %w", t.cfg.Table, supported(err))
	}
	return nil
}
