// Package streamclient is a client of the URLs that Exec, Attach and PortForward of the CRI answer with, for tests. It speaks SPDY/3.1 by
// moby/spdystream, as Kubernetes' own client does, and the channel protocols over WebSocket.
//
// Run and Forward behave as a good client does; a Session can also be left in any way that a bad one finds: Abort resets the connection.
package streamclient
