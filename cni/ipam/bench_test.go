package ipam

import (
	"fmt"
	"net/netip"
	"testing"
)

func BenchmarkReserve(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	wide := []Range{{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("10.0.0.1")}, dual[1]}

	for i := range b.N {
		if _, err := s.Reserve(b.Context(), Owner{fmt.Sprint(i), "eth0"}, wide); err != nil {
			b.Fatal(err)
		}
	}
}
