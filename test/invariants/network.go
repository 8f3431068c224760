package invariants

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// gone tells whether an error says that something went while we looked at it.
func gone(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ESRCH)
}

// takeLinks collects the bridge, its ports, the links that limit what pods send, and host ends of pods' links that belong to no bridge.
func takeLinks(d Daemon, items Items) error {
	links, err := listLinks()
	if err != nil {
		return err
	}
	bridge := 0
	for _, l := range links {
		if l.Attrs().Name == d.Bridge && d.Bridge != "" {
			bridge = l.Attrs().Index
		}
	}
	for _, l := range links {
		a := l.Attrs()
		port := bridge != 0 && a.MasterIndex == bridge
		orphan := a.MasterIndex == 0 && l.Type() == "veth" && strings.HasPrefix(a.Name, "vb")
		ifb := l.Type() == "ifb" && a.HardwareAddr.String() == d.IfbMAC()
		if a.Index == bridge && bridge != 0 || port || ifb || orphan && d.Instance() == "" {
			items[Item{Link, a.Name}] = 1
		}
	}
	return nil
}

// listLinks asks again when the kernel's answer was disturbed by a change.
func listLinks() (links []netlink.Link, err error) {
	for range 100 {
		if links, err = netlink.LinkList(); err == nil {
			return links, nil
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("list links: %w", err)
}

// takeFirewall collects the nftables tables of the bridge, and the number of rules and elements in them. It asks again
// when somebody's change came between.
func takeFirewall(d Daemon, items Items) (err error) {
	if d.Bridge == "" {
		return nil
	}
	for range 100 {
		found := Items{}
		if err = readFirewall(d, found); err == nil {
			maps.Copy(items, found)
			return nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

func readFirewall(d Daemon, items Items) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name != d.Table() {
			continue
		}
		name := fmt.Sprintf("table %d %s", t.Family, t.Name)
		items[Item{Firewall, name}] = 1
		sets, err := conn.GetSets(t)
		if err != nil && !gone(err) {
			return fmt.Errorf("list sets of %s: %w", name, err)
		}
		for _, s := range sets {
			elements, err := conn.GetSetElements(s)
			if err != nil && !gone(err) {
				return fmt.Errorf("list elements of %s: %w", s.Name, err)
			}
			if len(elements) > 0 && !s.Anonymous {
				items[Item{Firewall, name + " set " + s.Name}] = len(elements)
			}
		}
	}
	return takeRules(d, items)
}

// takeRules counts the rules of each chain. It looks at their tables and chains only: what a rule does may be newer than the library.
func takeRules(d Daemon, items Items) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE)
	if err != nil && !gone(err) {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return fmt.Errorf("read rule: %w", err)
		}
		names := map[uint16]string{}
		for _, a := range attributes {
			names[a.Attr.Type] = strings.TrimRight(string(a.Value), "\x00")
		}
		if table := names[unix.NFTA_RULE_TABLE]; table == d.Table() {
			items[Item{Firewall, fmt.Sprintf("table %d %s chain %s rules", m[0], table, names[unix.NFTA_RULE_CHAIN])}]++
		}
	}
	return nil
}
