// Package registry is a client of container registries for pulling: the distribution-spec's GET half, with the
// authentication that registries really ask for.
//
// # Terms
//
// A Client knows the operator's settings. Client.Open reads the hosts.toml of one registry and gives a Source: the
// endpoints (mirrors in order, the registry itself last), the credentials of one pull, and the tokens that they bought.
// Source.Manifest follows an index to the manifest of this machine's platform. Source.Blob streams a blob, resumes it
// where the connection broke, and verifies size and digest on the bytes that it hands out. Source.Endpoints tells whom a
// pull may ask, why, and what came of it.
//
// # Chunks
//
// A blob of more than two chunks is fetched chunk by chunk; when its reader is short of bytes, by up to Connections at a
// time, and what is ahead waits in memory for its turn. The first answer tells whether the host knows ranges; a host that answers with everything, with another range, with another
// ETag or with an error to a chunk ahead gets no more of those, and the blob goes on over one connection. What has come
// of a chunk is kept when its connection breaks. Chunks that do not add up to the digest are fetched once more, in one
// piece, before the hosts are blamed. A pull has one connection of its own; all others, and the memory, come from the
// client's budget (MaxConnections, MaxBuffered).
//
// # Files
//
// DIR/HOST/hosts.toml, DIR/HOST_PORT_/hosts.toml and DIR/_default/hosts.toml in containerd's format, read at every
// Open; without a hosts.toml, Docker's *.crt, *.cert and *.key in the same folders. One key is berth's own:
// realms = ["https://auth.example"] names token servers outside the registry's own domain.
//
// # What a registry cannot do
//
// A registry's answers are hostile. Credentials, tokens, client certificates and configured headers go to the endpoint
// that they are for (scheme, host and port) and nowhere else, whatever redirects and realms say. A token server must be
// https and of the registry's own registrable domain, or be the very host and port of the registry, or be named by the
// operator. Plain HTTP is spoken with loopback addresses and where hosts.toml says http. A descriptor's urls are
// ignored. A manifest must be of one kind, without repeated or misspelt keys. All bodies are capped (limits.go).
//
// # Trouble
//
// Endpoints are tried in order; one that does not answer within Patience is asked again only after the others.
// Connections that break or stall (fewer than StallBytes in StallTimeout, counting only the time spent waiting) are
// resumed by Range, as long as each try makes progress. 429 and 503 wait as Retry-After says, at most a minute. Only
// HTTP/1.1 is spoken: over HTTP/2 all layers and chunks would share one connection.
//
// # Errors
//
// *Error says what was asked of which host and what came back; errors.Is tells ErrNotFound, ErrUnauthorized (other credentials are wanted), ErrDenied (the right is missing),
// ErrUnavailable, ErrDigestMismatch, ErrInvalidManifest and ErrNoPlatform apart. No error carries a token, a password or
// the query of a URL, nor bytes that another host answered.
//
// # Concurrency
//
// A Source can be used by many goroutines; a blob reader by one.
package registry
