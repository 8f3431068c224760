// Package streaming serves the clients of Exec, Attach and PortForward: the RPC answers with a URL, and a client that comes to the URL is
// given a process's streams, or connections to a pod's ports.
//
// # Terms
//
// A token is the random part of a URL; who shows it may do what was asked for in the RPC. A session is one client that has shown a token,
// until nothing of it is left. A stream is one of a client's: standard input, a forwarded connection's data. A slot is the place of a stream of a process.
//
// # Who gets in
//
// The listener is on loopback unless the configuration says otherwise. Everybody who reaches it may knock, pods with the host's network too:
// a token has 256 random bits, is good once, for a minute and for the one kind of URL that it was made for; of a token only the digest is
// kept. Every request without a good token gets the same 404. Requests wait for their clients in bounded number and size; heads of requests are
// bounded in size and time, and among connections that have shown nothing the oldest goes when there are too many.
//
// Headers of origin are not looked at: no page can know a token, and the kubelet passes on what a browser has sent to the API server.
//
// # Protocols
//
//	SPDY/3.1    v4, v3, v2.channel.k8s.io; portforward.k8s.io
//	WebSocket   v5, v4, v4.base64, none, base64.channel.k8s.io; for ports v4, v4.base64, and SPDY/3.1 in messages
//
// SPDY's frames are read by one goroutine and passed on in pieces, with no queue between; WebSocket's messages too. So what a client sends
// takes no memory, and a process or connection that does not read holds up what the same client sends after. k8s.io/cri-streaming
// is not used: it knows neither v5 nor SPDY in messages, which the newest clients speak alone; it leaves goroutines behind when a client opens
// streams that it did not announce, allocates as much as a frame's head says, and does not tell a runtime that its client is gone.
//
// # Clients that go or stall
//
// Who reads from a client finds out that it is gone. While nobody reads, because a process does not take its input, the kernel is asked
// once a second, and the client is sent something to ignore: one that has gone with much unread cannot say so, but its kernel answers by a
// reset. Then the session's context ends: a command is killed, an attached client is detached, connections are closed. A client that stalls
// holds up its own session, no container; after the idle timeout (no byte in either direction) it is let go.
//
// A session that ends tells its client, and closes after the client has, or when it is idle: a client that takes the output late goes on to
// say something meanwhile, which would reset a connection that is closed, and the end of the output with it.
//
// # Concurrency
//
// A session has the goroutine of its request and one that reads; a forwarded connection has two. Shutdown ends all and waits for them.
//
// # Errors
//
// What went wrong before a session is said in HTTP; after that on the error stream, as Kubernetes' Status in JSON (since v4) or in words.
// ErrTooMany is for the RPC. Nothing that a client asked for is logged but the IDs.
package streaming
