package sandbox

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestAddressesOfTheFamilyComeFirst(t *testing.T) {
	addresses := func() []netip.Addr {
		var all []netip.Addr
		for _, a := range []string{"fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"} {
			all = append(all, netip.MustParseAddr(a))
		}
		return all
	}
	for family, want := range map[IPFamily]string{"": "[fd00::1 10.0.0.1 fd00::2 10.0.0.2]", IPv4: "[10.0.0.1 10.0.0.2 fd00::1 fd00::2]", IPv6: "[fd00::1 fd00::2 10.0.0.1 10.0.0.2]"} {
		ips := addresses()
		family.order(ips)
		if got := fmt.Sprint(ips); got != want {
			t.Errorf("%q: %s, want %s", family, got, want)
		}
	}
}
