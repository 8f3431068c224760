package registry

import "time"

// What is read from a registry, at most.
const (
	MaxManifest   = 4 << 20  // bytes of a manifest, an index or a config
	maxTokenBody  = 1 << 20  // bytes of a token server's answer
	maxToken      = 64 << 10 // bytes of one token
	maxErrorBody  = 64 << 10 // bytes of an error answer that are read
	maxErrorText  = 256      // bytes of a registry's message that are shown
	maxHeader     = 64 << 10 // bytes of the headers of one answer
	maxRedirects  = 10
	maxIndexDepth = 2   // an index in an index
	MaxLayers     = 500 // overlayfs stacks no more (OVL_MAX_STACK)
	maxManifests  = 2000
	maxHostsFile  = 1 << 20        // bytes of a hosts.toml or a certificate
	maxBlob       = int64(1) << 44 // bytes of a blob: 16 TiB
	maxRetryAfter = 60 * time.Second
	maxDepth      = 32 // nesting of JSON
)

// Tries.
const (
	maxRounds       = 4        // how often all endpoints are asked, when they are down
	maxIdleAttempts = 5        // connections in a row for one blob without progress
	progressBytes   = 64 << 10 // what counts as progress of a connection
)

// Memory of chunks.
const (
	pieceSize  = 256 << 10
	headPieces = 4 // of a chunk that is read while it comes, at most

	// A reader is short of bytes when it waits for so many pieces in a row, or for so long for one.
	enoughWaits = 3
	longWait    = 50 * time.Millisecond
)
