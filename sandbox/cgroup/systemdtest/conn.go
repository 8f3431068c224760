package systemdtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/godbus/dbus/v5"
)

// accept does the server's part of the handshake (D-Bus specification, "Authentication Protocol"), which godbus has the client's part of alone.
// Nothing is read of what the client asks then before ready is closed.
func accept(conn net.Conn, ready <-chan struct{}) (*dbus.Conn, error) {
	in := bufio.NewReader(conn)
	if _, err := in.ReadByte(); err != nil {
		return nil, err
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		answer := "ERROR\r\n"
		switch words := strings.Fields(line); {
		case len(words) == 1 && words[0] == "BEGIN":
			return serve(&channel{Reader: in, conn: conn, ready: ready})
		case len(words) == 1 && words[0] == "AUTH":
			answer = "REJECTED EXTERNAL\r\n"
		case len(words) > 1 && words[0] == "AUTH":
			answer = "OK 1234deadbeef\r\n"
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return nil, err
		}
	}
}

// channel is a connection behind its handshake. godbus begins each with a client's, which is answered here.
type channel struct {
	io.Reader
	conn    net.Conn
	ready   <-chan struct{}
	begun   bool
	answers *bytes.Reader
}

func (c *channel) Read(b []byte) (int, error) {
	if c.answers == nil {
		c.answers = bytes.NewReader([]byte("REJECTED EXTERNAL\r\nOK 1234deadbeef\r\n"))
	}
	if c.answers.Len() > 0 {
		return c.answers.Read(b)
	}
	<-c.ready
	return c.Reader.Read(b)
}

func (c *channel) Write(b []byte) (int, error) {
	if c.begun {
		return c.conn.Write(b)
	}
	c.begun = bytes.HasPrefix(b, []byte("BEGIN"))
	return len(b), nil
}

func (c *channel) Close() error { return c.conn.Close() }

func serve(c *channel) (*dbus.Conn, error) {
	conn, err := dbus.NewConn(c)
	if err == nil {
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal("0")})
	}
	if err != nil {
		return nil, fmt.Errorf("begin a connection: %w", err)
	}
	return conn, nil
}
