package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/hostport"
	"github.com/berthd/berth/cni/rtnl"
)

// conditionTTL is how long conditions believes who drops forwarded packets, which other programs set up at any time, and that the
// kernel does not answer, which takes seconds to find out.
const conditionTTL = time.Minute

// probe is what natProbe and conditions found out.
type probe struct {
	answered bool  // nat is what the kernel can do: not asked again
	nat      error // why there is no NAT
	asked    time.Time
	blocked  []string // chains that drop forwarded packets
}

// ready is Network.Status. It sets the bridge and the table up again when somebody has removed them; a bridge that no pod has needed
// yet is not made.
func (b *bridge) ready() error {
	var link rtnl.Link
	err := b.withConn(func(c *rtnl.Conn) (err error) {
		link, err = c.Link(b.cfg.Name)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if err == nil && link.Kind != bridgeKind {
		return fmt.Errorf("%w: link %s is not a bridge", ErrNotReady, b.cfg.Name)
	}
	b.mu.Lock()
	facts := b.facts
	b.mu.Unlock()
	if facts == nil {
		return nil
	}
	if err != nil || link.Index != facts.index {
		b.forget(facts)
		if _, err := b.setUp(); err != nil {
			return fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
	if facts.nat == nil {
		if err := b.ports.Ensure(); err != nil {
			return fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
	return nil
}

// natProblem returns why the kernel cannot translate addresses, or nil.
func (b *bridge) natProblem() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.natProbe()
	return b.probe.nat
}

// natProbe asks the kernel until it has answered: other errors, as a lack of descriptors, say nothing about what it can do.
// Preconditions: b.mu held.
func (b *bridge) natProbe() {
	p := &b.probe
	if !p.answered {
		p.nat = b.ports.Probe()
		p.answered = p.nat == nil || errors.Is(p.nat, ErrNotSupported)
	}
}

// conditions is Dispatcher.Conditions.
func (b *bridge) conditions() []Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.probe
	again := time.Since(p.asked) > conditionTTL
	if again || !errors.Is(p.nat, os.ErrDeadlineExceeded) {
		b.natProbe()
	}
	if again {
		p.asked = time.Now()
		p.blocked = append(droppingChains(b.ports), legacyDrops()...)
	}
	var list []Condition
	if p.nat != nil {
		list = append(list, Condition{"NoAddressTranslation", fmt.Sprintf(
			"Pods reach only this host and each other, and host ports cannot be mapped: %v", p.nat)})
	}
	if len(p.blocked) > 0 {
		list = append(list, Condition{"ForwardingBlocked", fmt.Sprintf(
			"Packets of pods may be dropped by the policy of %s: accept those from and to %s there", strings.Join(p.blocked, ", "), b.cfg.Name)})
	}
	if slices.ContainsFunc(b.cfg.Subnets, is6) && !hasIPv6() {
		list = append(list, Condition{"NoIPv6", "Pods get no IPv6 address: the kernel has no IPv6, or disable_ipv6 is set"})
	}
	return list
}

// droppingChains lists the nftables chains that drop what they do not accept on its way through the host.
func droppingChains(own *hostport.Table) []string {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil // no nftables: nothing that drops
	}
	var list []string
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if family := familyNames[ch.Table.Family]; family != "" && !own.Is(ch.Table.Name) {
			list = append(list, fmt.Sprintf("nftables chain %s %s %s", family, ch.Table.Name, ch.Name))
		}
	}
	return list
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// Of include/uapi/linux/netfilter_ipv4/ip_tables.h and its IPv6 twin: struct ipt_getinfo, ipt_get_entries, ipt_entry.
const (
	iptGetInfo    = 64 // socket options
	iptGetEntries = 65
	iptInfoSize   = 32 + 4 + 5*4 + 5*4 + 4 + 4
	iptForward    = 2 // hook number
	iptDrop       = -1
	iptTarget     = 32 // struct xt_entry_target, before the verdict
)

// legacyDrops looks at the filter tables of iptables-legacy, which nftables does not show.
func legacyDrops() []string {
	var list []string
	for _, f := range []struct {
		names, command string
		family, level  int
		entry          int // size of struct ipt_entry
	}{
		{"/proc/thread-self/net/ip_tables_names", "iptables", unix.AF_INET, unix.SOL_IP, 112},
		{"/proc/thread-self/net/ip6_tables_names", "ip6tables", unix.AF_INET6, unix.SOL_IPV6, 168},
	} {
		// Asking for a table that is not there would load its module.
		b, err := os.ReadFile(f.names)
		if err != nil || !slices.Contains(strings.Fields(string(b)), "filter") {
			continue
		}
		if dropped, err := legacyPolicyDrops(f.family, f.level, f.entry); err == nil && dropped {
			list = append(list, "legacy "+f.command+" chain FORWARD")
		}
	}
	return list
}

// legacyPolicyDrops reads the verdict of the rule that is the policy of FORWARD.
func legacyPolicyDrops(family, level, entrySize int) (bool, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	info := make([]byte, iptInfoSize)
	copy(info, "filter")
	if err := getsockopt(fd, level, iptGetInfo, info); err != nil {
		return false, err
	}
	underflow := int(binary.NativeEndian.Uint32(info[32+4+5*4+4*iptForward:]))
	size := int(binary.NativeEndian.Uint32(info[iptInfoSize-4:]))
	const header = 32 + 4 + 4 // name, size, padding to 8 bytes
	entries := make([]byte, header+size)
	copy(entries, "filter")
	binary.NativeEndian.PutUint32(entries[32:], uint32(size))
	if err := getsockopt(fd, level, iptGetEntries, entries); err != nil {
		return false, err
	}
	at := header + underflow + entrySize + iptTarget
	if at+4 > len(entries) {
		return false, unix.EINVAL
	}
	return int32(binary.NativeEndian.Uint32(entries[at:])) == iptDrop, nil
}

// getsockopt fills b. There is no such call in x/sys/unix for an option of any size.
func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
