package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
)

var givenPorts sync.Map

// FreePort finds a TCP and UDP port of the host that nobody uses, and that no test of this process got before: a pod's port is not seen by listening.
// It is none that the kernel gives by itself, to a client or to who listens on any port, between this call and its use.
func FreePort(t testing.TB) int32 {
	t.Helper()
	const lowest = 1 << 10
	first := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		fmt.Sscan(string(text), &first)
	}
	if first < 2*lowest { // then there are none of the others
		first = 1 << 16
	}
	for range 1000 {
		port := lowest + rand.IntN(first-lowest)
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		if _, given := givenPorts.LoadOrStore(port, true); !given {
			return int32(port)
		}
	}
	t.Fatal("no free port")
	return 0
}
