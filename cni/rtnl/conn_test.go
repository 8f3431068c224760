package rtnl

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Conn that lost answers waits for none of them later: it is closed.
func TestCutOffExchangeClosesConn(t *testing.T) {
	for _, tc := range []struct {
		name string
		cut  func(*Conn) error
		want error
	}{
		{"answers do not fit into the socket", func(c *Conn) error {
			if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil { // the least that there is
				t.Fatal(err)
			}
			var requests []Request
			for range maxBatch {
				requests = append(requests, Del("nowhere0"))
			}
			return c.Do(requests...)
		}, unix.ENOBUFS},
		{"answer is longer than the buffer", func(c *Conn) error {
			c.in = make([]byte, 64)
			_, err := c.Link("lo")
			return err
		}, errShort},
		{"list is given up half-way", func(c *Conn) error {
			c.in = make([]byte, 64)
			_, err := c.dump(Request{What: "list links", Type: unix.RTM_GETLINK, Body: linkHeader(unix.AF_UNSPEC, 0, 0, 0)})
			return err
		}, errShort},
		{"request is longer than the socket takes", func(c *Conn) error {
			return c.Do(Request{What: "ask", Type: unix.RTM_GETLINK, Body: make([]byte, 8<<20)})
		}, unix.EMSGSIZE},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Do(Request{What: "ask", Type: 0xffff}); !errors.Is(err, unix.EOPNOTSUPP) || c.Closed() {
				t.Fatalf("Do of no known type = %v, closed %v; want EOPNOTSUPP, false", err, c.Closed())
			}
			if err := tc.cut(c); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if !c.Closed() {
				t.Error("Conn is open")
			}
			started := time.Now()
			if err := c.Do(Del("nowhere0")); !errors.Is(err, os.ErrClosed) {
				t.Errorf("the next Do = %v, want os.ErrClosed", err)
			}
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("the next Do took %v", took)
			}
		})
	}
}
