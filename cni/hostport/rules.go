package hostport

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg returns the n-th 32-bit register, NFT_REG32_00 + n.
func reg(n int) uint32 { return uint32(8 + n) }

// fam is what differs between the two families.
type fam struct {
	suffix    string // of the names of sets
	proto     byte   // NFPROTO_*
	addr      nftables.SetDatatype
	words     int    // 32-bit registers of an address
	saddr     uint32 // offsets in the IP header
	daddr     uint32
	multicast netip.Prefix
	loopback  netip.Prefix
}

var (
	four = fam{"4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 1, 12, 16,
		netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("127.0.0.0/8")}
	six = fam{"6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 4, 8, 24,
		netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("::1/128")}
)

func famOf(a netip.Addr) fam {
	if a.Is4() {
		return four
	}
	return six
}

func (t *Table) table() *nftables.Table {
	return &nftables.Table{Name: t.cfg.Table, Family: nftables.TableFamilyINet}
}

// The three sets of a family; their names say what they hold.
func (t *Table) anyMap(f fam) *nftables.Set {
	return &nftables.Set{
		Table: t.table(), Name: "any" + f.suffix, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(f.addr, nftables.TypeInetService),
	}
}

func (t *Table) hostMap(f fam) *nftables.Set {
	return &nftables.Set{
		Table: t.table(), Name: "host" + f.suffix, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(f.addr, nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(f.addr, nftables.TypeInetService),
	}
}

func (t *Table) publishedSet(f fam) *nftables.Set {
	return &nftables.Set{
		Table: t.table(), Name: "published" + f.suffix, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, f.addr, nftables.TypeInetService),
	}
}

// elements adds or deletes what stands for mappings.
func (t *Table) elements(c *nftables.Conn, mappings []Mapping,
	do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error,
) error {
	type batch struct {
		set  *nftables.Set
		list []nftables.SetElement
	}
	batches := make(map[string]*batch)
	seen := make(map[string]bool)
	add := func(set *nftables.Set, e nftables.SetElement) {
		if id := set.Name + string(e.Key); seen[id] {
			return // one port under several addresses of the host is published once
		} else {
			seen[id] = true
		}
		if batches[set.Name] == nil {
			batches[set.Name] = &batch{set: set}
		}
		batches[set.Name].list = append(batches[set.Name].list, e)
	}
	for _, m := range mappings {
		f := famOf(m.Pod.Addr())
		pod := append(m.Pod.Addr().AsSlice(), port(m.Pod.Port())...)
		hostKey := append([]byte{m.Protocol, 0, 0, 0}, port(m.HostPort)...)
		if m.HostIP.IsValid() {
			add(t.hostMap(f), nftables.SetElement{Key: append(m.HostIP.AsSlice(), hostKey...), Val: pod})
		} else {
			add(t.anyMap(f), nftables.SetElement{Key: hostKey, Val: pod})
		}
		add(t.publishedSet(f), nftables.SetElement{Key: append(hostKey[:len(hostKey):len(hostKey)], pod...)})
	}
	for _, name := range []string{"any4", "host4", "published4", "any6", "host6", "published6"} {
		if b := batches[name]; b != nil {
			if err := do(c, b.set, b.list); err != nil {
				return err
			}
		}
	}
	return nil
}

// port is a port as a register holds it: network order, padded to 32 bits.
func port(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

// write queues the table without mappings, in place of one that is there.
func (t *Table) write(c *nftables.Conn) {
	table := t.table()
	c.AddTable(table) // so that the deletion finds one
	c.DelTable(table)
	c.AddTable(table)
	for _, f := range []fam{four, six} {
		for _, set := range []*nftables.Set{t.anyMap(f), t.hostMap(f), t.publishedSet(f)} {
			_ = c.AddSet(set, nil) // fails only for anonymous sets
		}
	}
	ports := c.AddChain(&nftables.Chain{Name: "hostports", Table: table})
	toPorts := append(localDestination(), &expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name})
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput,
	} {
		chain := c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: toPorts})
	}
	// The kernel routes nothing from ::1, so [::1]:PORT is left to the host: refused at once, instead of lost.
	c.AddRule(&nftables.Rule{Table: table, Chain: ports, Exprs: concat(
		family(six), inPrefix(six, six.daddr, six.loopback, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})})
	for _, f := range []fam{four, six} {
		c.AddRule(&nftables.Rule{Table: table, Chain: ports, Exprs: t.toHostIP(f)})
		c.AddRule(&nftables.Rule{Table: table, Chain: ports, Exprs: t.toAny(f)})
	}
	t.writeSource(c, table)
	guard := c.AddChain(&nftables.Chain{
		Name: "guard", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	for _, offset := range []uint32{four.daddr, four.saddr} {
		c.AddRule(&nftables.Rule{Table: table, Chain: guard, Exprs: concat(
			interfaceIs(expr.MetaKeyIIFNAME, t.cfg.Bridge), family(four),
			inPrefix(four, offset, four.loopback, expr.CmpOpEq),
			[]expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})})
	}
}

// writeSource queues the chain that rewrites source addresses.
func (t *Table) writeSource(c *nftables.Conn, table *nftables.Table) {
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	masquerade := []expr.Any{&expr.Masq{}}
	toBridge := interfaceIs(expr.MetaKeyOIFNAME, t.cfg.Bridge)
	c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: concat(
		toBridge, family(four), inPrefix(four, four.saddr, four.loopback, expr.CmpOpEq), masquerade)})
	for _, subnet := range t.cfg.Subnets {
		f := famOf(subnet.Addr())
		for _, rule := range [][]expr.Any{
			concat(toBridge, family(f), inPrefix(f, f.saddr, subnet, expr.CmpOpEq), t.isPublished(f), masquerade),
			concat(family(f), inPrefix(f, f.saddr, subnet, expr.CmpOpEq), inPrefix(f, f.daddr, subnet, expr.CmpOpNeq),
				inPrefix(f, f.daddr, f.multicast, expr.CmpOpNeq), masquerade),
		} {
			c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: rule})
		}
	}
}

func concat(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// localDestination is "fib daddr type local".
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func family(f fam) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{f.proto}},
	}
}

func interfaceIs(k expr.MetaKey, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{
		&expr.Meta{Key: k, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b},
	}
}

// inPrefix compares an address of the IP header with a prefix.
func inPrefix(f fam, offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	size := uint32(4 * f.words)
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// protocolAndPort loads "meta l4proto . th dport" into two registers from n on.
func protocolAndPort(n int) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(n)},
		&expr.Payload{DestRegister: reg(n + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func destination(f fam, n int) expr.Any {
	return &expr.Payload{DestRegister: reg(n), Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: uint32(4 * f.words)}
}

// translate looks the registers up in a map and rewrites the destination to what it finds.
func translate(f fam, set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(0), IsDestRegSet: true, SetName: set.Name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg(0), RegProtoMin: reg(f.words), Specified: true},
	}
}

func (t *Table) toAny(f fam) []expr.Any {
	return concat(family(f), protocolAndPort(0), translate(f, t.anyMap(f)))
}

func (t *Table) toHostIP(f fam) []expr.Any {
	return concat(family(f), []expr.Any{destination(f, 0)}, protocolAndPort(f.words), translate(f, t.hostMap(f)))
}

// isPublished matches a connection that this table has led to a pod.
func (t *Table) isPublished(f fam) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg(1), Direction: 0},
		destination(f, 2),
		&expr.Payload{DestRegister: reg(2 + f.words), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg(0), SetName: t.publishedSet(f).Name},
	}
}
