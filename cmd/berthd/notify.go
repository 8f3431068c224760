package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

// notifyTimeout is how long a service manager that does not listen holds the daemon up.
const notifyTimeout = time.Second

// notify tells the service manager about the daemon's state (sd_notify(3)). Without NOTIFY_SOCKET nobody wants to know.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// A name that begins with @ is an abstract socket; the net package takes it as it is.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
