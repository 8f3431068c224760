package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Blob streams the content of a descriptor, whose connection is opened by the first Read. io.EOF means that all of it
// was read and that size and digest are right; with any other error nothing of what was read may be used. Close gives
// the connection back. ctx bounds all of it.
func (s *Source) Blob(ctx context.Context, desc Descriptor) io.ReadCloser {
	return &blobReader{source: s, ctx: ctx, desc: desc, sum: desc.Digest.Algorithm().Hash()}
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

// HasOther says whether a blob whose reader ended with err is worth reading again from the beginning: the bytes were
// wrong, and there is a host that did not contribute to them.
func (s *Source) HasOther(desc Descriptor, err error) bool {
	blamed := s.blamed(desc.Digest)
	return errors.Is(err, ErrDigestMismatch) && len(blamed) > 0 && len(s.order(canPull, blamed)) > 0
}

func (s *Source) blame(d digest.Digest, who []*endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[d] = append(s.bad[d], who...)
}

func (s *Source) blamed(d digest.Digest) []*endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bad[d])
}

// blobReader is the body of a blob across connections.
type blobReader struct {
	source *Source
	ctx    context.Context
	desc   Descriptor
	sum    hash.Hash

	body    io.ReadCloser // nil between connections
	from    *endpoint     // of body
	sources []*endpoint   // that served a part
	offset  int64         // bytes handed out
	start   int64         // offset at which body was opened
	idle    int           // connections in a row without progress
	err     error         // sticky
}

func (r *blobReader) op() string { return "get blob " + r.desc.Digest.String() }

func (r *blobReader) Read(p []byte) (int, error) {
	for r.err == nil {
		if len(p) == 0 {
			return 0, nil
		}
		if r.body == nil {
			if r.err = r.connect(); r.err != nil {
				break
			}
		}
		if r.offset == r.desc.Size {
			r.err = r.finish()
			break
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.desc.Size-r.offset)])
		r.offset += int64(n)
		r.sum.Write(p[:n])
		if err != nil && r.offset < r.desc.Size {
			r.err = r.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	r.drop()
	return 0, r.err
}

// Close gives up what has not been read.
func (r *blobReader) Close() error {
	r.drop()
	if r.err == nil {
		r.err = errors.New("read of a closed blob")
	}
	return nil
}

func (r *blobReader) drop() {
	if r.body != nil {
		r.body.Close() // a connection that is not needed any more has no news
		r.body = nil
	}
}

// broken ends a connection that stopped short, and says whether another one may be tried.
func (r *blobReader) broken(err error) error {
	r.drop()
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if r.offset-r.start >= progressBytes {
		r.idle = 0
		return nil
	}
	r.from.setSlow()
	if r.idle++; r.idle >= maxIdleAttempts {
		ne := netError(r.from.host(), err)
		ne.Op, ne.Detail = r.op(), fmt.Sprintf("%d of %d bytes after %d connections without progress", r.offset, r.desc.Size, r.idle)
		return ne
	}
	return sleep(r.ctx, backoff(r.source.config.Backoff, r.idle-1))
}

// finish checks what is only known at the end.
func (r *blobReader) finish() error {
	var extra [1]byte
	n, err := r.body.Read(extra[:])
	for n == 0 && err == nil {
		n, err = r.body.Read(extra[:])
	}
	if n > 0 {
		return r.mismatch("more than its %d bytes", r.desc.Size)
	}
	if got := digest.NewDigest(r.desc.Digest.Algorithm(), r.sum); got != r.desc.Digest {
		return r.mismatch("digest %s", got)
	}
	return io.EOF
}

// mismatch blames everybody that had a part in the wrong bytes.
func (r *blobReader) mismatch(format string, args ...any) error {
	r.source.blame(r.desc.Digest, r.sources)
	return &Error{Op: r.op(), Host: r.from.host(), Detail: fmt.Sprintf(format, args...), Err: ErrDigestMismatch}
}

// connect opens the blob at r.offset, from whoever has it.
func (r *blobReader) connect() error {
	err := r.source.ask(r.ctx, canPull, r.source.blamed(r.desc.Digest), func(e *endpoint, wait time.Duration) error {
		body, err := r.openAt(e, wait)
		if err == nil {
			r.body, r.from = body, e
		}
		return err
	})
	if err != nil {
		return err
	}
	r.start = r.offset
	if !slices.Contains(r.sources, r.from) {
		r.sources = append(r.sources, r.from)
	}
	return nil
}

// openAt asks one endpoint for the rest of the blob. Where Range is not understood the beginning is read and thrown
// away; should it differ from what was read before, the digest tells.
func (r *blobReader) openAt(e *endpoint, wait time.Duration) (io.ReadCloser, error) {
	g := get{op: r.op(), path: "blobs/" + r.desc.Digest.String(), wait: wait}
	if r.offset > 0 && r.offset < r.desc.Size {
		g.header = http.Header{"Range": {"bytes=" + strconv.FormatInt(r.offset, 10) + "-"}}
	}
	a, err := e.open(r.ctx, g)
	if err != nil {
		return nil, r.shorter(e, err)
	}
	if a.StatusCode == http.StatusPartialContent && !r.fits(a.Header.Get("Content-Range")) {
		a.Body.Close()
		g.header = nil
		if a, err = e.open(r.ctx, g); err != nil {
			return nil, r.shorter(e, err)
		}
	}
	if a.StatusCode == http.StatusPartialContent && g.header != nil {
		return a.Body, nil
	}
	if err := r.whole(e, a); err != nil {
		a.Body.Close()
		return nil, err
	}
	return a.Body, nil
}

// whole prepares an answer with the whole blob for reading from r.offset.
func (r *blobReader) whole(e *endpoint, a answer) error {
	if a.StatusCode != http.StatusOK {
		return &Error{Op: r.op(), Host: e.host(), Detail: fmt.Sprintf("status %d to a request for everything", a.StatusCode), Err: ErrUnavailable}
	}
	if n := a.ContentLength; n >= 0 && n != r.desc.Size {
		r.source.blame(r.desc.Digest, []*endpoint{e})
		return &Error{Op: r.op(), Host: e.host(), Detail: fmt.Sprintf("%d bytes instead of %d", n, r.desc.Size), Err: ErrDigestMismatch}
	}
	if _, err := io.CopyN(io.Discard, a.Body, r.offset); err != nil {
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		ne := netError(e.host(), err)
		ne.Op = r.op()
		return ne
	}
	return nil
}

// shorter turns 416 into what it means here: the blob ends before its size.
func (r *blobReader) shorter(e *endpoint, err error) error {
	var re *Error
	if errors.As(err, &re) && strings.HasPrefix(re.Detail, "status 416") {
		r.source.blame(r.desc.Digest, []*endpoint{e})
		return &Error{Op: r.op(), Host: e.host(), Detail: fmt.Sprintf("it ends before byte %d of %d", r.offset, r.desc.Size), Err: ErrDigestMismatch}
	}
	return err
}

// fits checks a Content-Range against what was asked for.
func (r *blobReader) fits(contentRange string) bool {
	spec, ok := strings.CutPrefix(contentRange, "bytes ")
	rng, total, found := strings.Cut(spec, "/")
	from, to, both := strings.Cut(rng, "-")
	if !ok || !found || !both {
		return false
	}
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	size := strconv.FormatInt(r.desc.Size, 10)
	return err1 == nil && err2 == nil && start == r.offset && end < r.desc.Size && (total == size || total == "*")
}
