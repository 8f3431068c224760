package streaming

import (
	"errors"
	"io"
	"net"
	"testing"
)

// pipes is a listener whose clients are in this process.
type pipes struct {
	net.Listener
	clients []net.Conn
}

func (p *pipes) Accept() (net.Conn, error) {
	client, server := net.Pipe()
	p.clients = append(p.clients, client)
	return server, nil
}

// TestStrangersAreBounded: each that is one too many ends the oldest, not only the time that a request may take.
func TestStrangersAreBounded(t *testing.T) {
	p := &pipes{}
	d := &door{Listener: p}
	const more = 10
	for range maxStrangers + more {
		if _, err := d.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.strangers.Len(); n > 512 {
		t.Errorf("%d strangers, want at most 512", n)
	}
	for i := range more {
		if _, err := p.clients[i].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("stranger %d: %v, want the end", i, err)
		}
	}
}
