package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Blob streams the content of a descriptor, whose connection is opened by the first Read. io.EOF means that all of it
// was read and that size and digest are right; with any other error nothing of what was read may be used. Close ends
// all connections and waits for who reads them. ctx bounds all of it.
//
// A blob of more than two chunks comes over several connections, as long as the registry knows ranges and the client's
// budget allows it.
func (s *Source) Blob(ctx context.Context, desc Descriptor) io.ReadCloser {
	b := &blob{source: s, desc: desc, etags: map[*endpoint]string{}}
	r := &blobReader{blob: b, sum: desc.Digest.Algorithm().Hash()}
	c := s.config
	if c.Connections > 1 && desc.Size > 2*c.ChunkSize && !s.verdict(desc.Digest).whole {
		r.bytes = newParts(ctx, b)
	} else {
		r.bytes = &single{span: span{blob: b, ctx: ctx, end: desc.Size}}
	}
	return r
}

// Fetch reads all of a small blob. If a mirror serves wrong bytes the next one is asked.
func (s *Source) Fetch(ctx context.Context, desc Descriptor) ([]byte, error) {
	for {
		r := s.Blob(ctx, desc)
		raw, err := io.ReadAll(r)
		r.Close()
		if err == nil || !s.HasOther(desc, err) {
			return raw, err
		}
	}
}

// verdict is what wrong bytes of a blob have taught.
type verdict struct {
	blamed []*endpoint // who served wrong bytes; never changed in place
	whole  bool        // chunks did not add up to the blob: it is fetched in one piece from now on
	again  bool        // whole was set by the last reader
}

// HasOther says whether a blob whose reader ended with err is worth reading again from the beginning: the bytes were
// wrong, and there is a host that did not contribute to them, or another way to ask.
func (s *Source) HasOther(desc Descriptor, err error) bool {
	if !errors.Is(err, ErrDigestMismatch) {
		return false
	}
	s.mu.Lock()
	v := s.verdicts[desc.Digest]
	again := v.again
	v.again = false
	s.verdicts[desc.Digest] = v
	s.mu.Unlock()
	return again || len(v.blamed) > 0 && len(s.order(canPull, v.blamed)) > 0
}

func (s *Source) blame(d digest.Digest, who ...*endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.verdicts[d]
	v.blamed = slices.Concat(v.blamed, who)
	s.verdicts[d] = v
}

// distrust makes the blob come in one piece.
func (s *Source) distrust(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.verdicts[d]
	v.whole, v.again = true, true
	s.verdicts[d] = v
}

func (s *Source) verdict(d digest.Digest) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verdicts[d]
}

// blob is what all connections of one blob have in common.
type blob struct {
	source *Source
	desc   Descriptor

	mu      sync.Mutex
	sources []*endpoint          // that served a part; guarded by mu
	etags   map[*endpoint]string // of the first answer of each; guarded by mu
	ranges  rangeState           // guarded by mu
	chunks  int                  // parts that do not begin at the beginning; guarded by mu
}

// rangeState is what is known of how a blob's hosts answer requests for a part.
type rangeState int

const (
	rangesUnknown rangeState = iota
	rangesWork
	rangesFail // or are not worth it
)

func (b *blob) op() string { return "get blob " + b.desc.Digest.String() }

// opened notes an answer. An ETag that is not that of the host's first answer is a hint, not a verdict (hosts behind one
// name may have each their own), so the digest decides; but no more is fetched ahead.
func (b *blob) opened(e *endpoint, a answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.sources, e) {
		b.sources = append(b.sources, e)
	}
	etag := a.Header.Get("ETag")
	first, seen := b.etags[e]
	if !seen {
		b.etags[e] = etag
	}
	switch {
	case a.StatusCode != http.StatusPartialContent || seen && first != etag:
		b.ranges = rangesFail
	case b.ranges == rangesUnknown:
		b.ranges = rangesWork
	}
}

func (b *blob) setRanges(state rangeState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ranges = state
}

func (b *blob) rangeState() rangeState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ranges
}

// mismatch blames everybody that had a part in the wrong bytes; or, if it came in chunks, first the chunks.
func (b *blob) mismatch(format string, args ...any) error {
	b.mu.Lock()
	sources, chunks := slices.Clone(b.sources), b.chunks
	b.mu.Unlock()
	if chunks > 0 {
		b.source.distrust(b.desc.Digest)
	} else {
		b.source.blame(b.desc.Digest, sources...)
	}
	host := b.source.ref.Host
	if len(sources) > 0 {
		host = sources[len(sources)-1].host()
	}
	return &Error{Op: b.op(), Host: host, Detail: fmt.Sprintf(format, args...), Err: ErrDigestMismatch}
}

// byteSource gives a blob's bytes in order; io.EOF means that there were as many as the descriptor says.
type byteSource interface {
	io.ReadCloser
	// surplus says whether more than the blob has come.
	surplus() bool
}

// blobReader is the body of a blob, whose digest it checks.
type blobReader struct {
	blob  *blob
	bytes byteSource
	sum   hash.Hash
	err   error // sticky
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.bytes.Read(p)
	r.sum.Write(p[:n])
	if err == io.EOF {
		err = r.finish()
	}
	if r.err = err; err != nil {
		r.bytes.Close()
	}
	return n, err
}

// Close gives up what has not been read.
func (r *blobReader) Close() error {
	if r.err == nil {
		r.err = errors.New("read of a closed blob")
	}
	return r.bytes.Close()
}

// finish checks what is only known at the end.
func (r *blobReader) finish() error {
	if r.bytes.surplus() {
		return r.blob.mismatch("more than its %d bytes", r.blob.desc.Size)
	}
	if got := digest.NewDigest(r.blob.desc.Digest.Algorithm(), r.sum); got != r.blob.desc.Digest {
		return r.blob.mismatch("digest %s", got)
	}
	return io.EOF
}
