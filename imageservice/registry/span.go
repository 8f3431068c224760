package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errNoRange is why a part is not fetched ahead.
var errNoRange = errors.New("no range of the blob is to be had")

// span reads a blob from offset to end, across connections: one that breaks or stalls is resumed where it stood, from
// whoever has the blob. It is for one goroutine.
type span struct {
	blob        *blob
	ctx         context.Context
	offset, end int64
	ahead       bool   // nobody waits for it: it tries less, and takes nothing but the range that it asked for
	answered    func() // called after each answer; may be nil

	body    io.ReadCloser // nil between connections
	from    *endpoint     // of body
	start   int64         // offset at which body was opened
	idle    int           // connections in a row without progress
	toomuch bool          // body had more
	closed  bool
}

// Read gives bytes until end. What it gives is not checked.
func (s *span) Read(p []byte) (int, error) {
	for {
		switch {
		case s.closed:
			return 0, errors.New("read of a closed blob")
		case len(p) == 0:
			return 0, nil
		case s.body == nil && s.offset == s.end && s.end > 0:
			return 0, io.EOF
		case s.body == nil:
			if err := s.connect(); err != nil {
				return 0, err
			}
		}
		if s.offset == s.end {
			s.drain()
			if s.end == 0 {
				return 0, io.EOF
			}
			continue
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.end-s.offset)])
		s.offset += int64(n)
		s.from.count(n)
		if err != nil && s.offset < s.end {
			err = s.broken(err)
			if err != nil {
				return n, err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// surplus says whether the last host sent more than was its part.
func (s *span) surplus() bool { return s.toomuch }

// Close gives up what has not been read.
func (s *span) Close() error {
	s.closed = true
	s.drop()
	return nil
}

func (s *span) drop() {
	if s.body != nil {
		s.body.Close() // a connection that is not needed any more has no news
		s.body = nil
	}
}

// drain reads the end of a body, so that its connection can be used again.
func (s *span) drain() {
	var extra [1]byte
	n, err := s.body.Read(extra[:])
	for n == 0 && err == nil {
		n, err = s.body.Read(extra[:])
	}
	s.toomuch = n > 0
	s.drop()
}

// broken ends a connection that stopped short, and says whether another one may be tried.
func (s *span) broken(err error) error {
	s.drop()
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	s.from.note(netError(s.from.host(), err))
	if s.offset-s.start >= min(progressBytes, (s.end-s.start+1)/2) {
		s.idle = 0
		return nil
	}
	s.from.setSlow()
	if s.idle++; s.idle >= maxIdleAttempts {
		ne := netError(s.from.host(), err)
		ne.Op = s.blob.op()
		ne.Detail = fmt.Sprintf("%d of %d bytes after %d connections without progress", s.offset, s.blob.desc.Size, s.idle)
		return ne
	}
	return sleep(s.ctx, backoff(s.blob.source.config.Backoff, s.idle-1))
}

// connect opens the blob at s.offset, from whoever has it.
func (s *span) connect() error {
	src := s.blob.source
	q := question{need: canPull, without: src.verdict(s.blob.desc.Digest).blamed, rounds: maxRounds}
	if s.ahead {
		q.rounds = 1
	}
	return src.ask(s.ctx, q, func(e *endpoint, wait time.Duration) error {
		body, err := s.openAt(e, wait)
		if err == nil {
			s.body, s.from, s.start = body, e, s.offset
		}
		return err
	})
}

// openAt asks one endpoint for the rest of the span. Where Range is not understood the whole blob is asked for, and what
// was had of it is read and thrown away; should it differ from what was read before, the digest tells.
func (s *span) openAt(e *endpoint, wait time.Duration) (io.ReadCloser, error) {
	b := s.blob
	g := get{op: b.op(), path: "blobs/" + b.desc.Digest.String(), wait: wait}
	if (s.offset > 0 || s.end < b.desc.Size) && s.offset < b.desc.Size {
		last := ""
		if s.end < b.desc.Size {
			last = strconv.FormatInt(s.end-1, 10)
		}
		g.header = http.Header{"Range": {"bytes=" + strconv.FormatInt(s.offset, 10) + "-" + last}}
	}
	a, err := e.open(s.ctx, g)
	if err != nil && g.header != nil && s.offset == 0 && dislikesRange(err) {
		g.header = nil
		a, err = e.open(s.ctx, g)
	}
	if err != nil {
		return nil, s.shorter(e, err)
	}
	partial := a.StatusCode == http.StatusPartialContent && g.header != nil
	if partial && !s.takeRange(a.Header.Get("Content-Range")) {
		a.Body.Close()
		b.setRanges(rangesFail)
		if s.ahead {
			return nil, &Error{Op: g.op, Host: e.host(), Err: errNoRange}
		}
		g.header = nil
		if a, err = e.open(s.ctx, g); err != nil {
			return nil, s.shorter(e, err)
		}
		partial = false
	}
	b.opened(e, a)
	if s.answered != nil {
		s.answered()
	}
	if partial {
		return a.Body, nil
	}
	if err := s.takeWhole(e, a); err != nil {
		a.Body.Close()
		return nil, err
	}
	return a.Body, nil
}

// takeWhole prepares an answer with the whole blob for reading from s.offset; the span then goes to the blob's end.
func (s *span) takeWhole(e *endpoint, a answer) error {
	b := s.blob
	if a.StatusCode != http.StatusOK {
		return &Error{Op: b.op(), Host: e.host(), Detail: fmt.Sprintf("status %d to a request for everything", a.StatusCode), Err: ErrUnavailable}
	}
	if n := a.ContentLength; n >= 0 && n != b.desc.Size {
		b.source.blame(b.desc.Digest, e)
		return &Error{Op: b.op(), Host: e.host(), Detail: fmt.Sprintf("%d bytes instead of %d", n, b.desc.Size), Err: ErrDigestMismatch}
	}
	if s.ahead {
		return &Error{Op: b.op(), Host: e.host(), Err: errNoRange}
	}
	s.end = b.desc.Size
	n, err := io.CopyN(io.Discard, a.Body, s.offset)
	e.count(int(n))
	if err != nil {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		ne := netError(e.host(), err)
		ne.Op = b.op()
		return ne
	}
	return nil
}

// dislikesRange says whether an endpoint may answer a request that has no Range.
func dislikesRange(err error) bool {
	var re *Error
	return errors.As(err, &re) && slices.Contains([]int{
		http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented,
	}, re.status)
}

// shorter turns 416 into what it means here: the blob ends before its size.
func (s *span) shorter(e *endpoint, err error) error {
	var re *Error
	if !s.ahead && errors.As(err, &re) && re.status == http.StatusRequestedRangeNotSatisfiable {
		s.blob.source.blame(s.blob.desc.Digest, e)
		detail := fmt.Sprintf("it ends before byte %d of %d", s.offset, s.blob.desc.Size)
		return &Error{Op: s.blob.op(), Host: e.host(), Detail: detail, Err: ErrDigestMismatch}
	}
	return err
}

// takeRange checks a Content-Range against what was asked for. It may be less than that; or all of the rest, which is then
// the span, unless it is one ahead.
func (s *span) takeRange(contentRange string) bool {
	spec, ok := strings.CutPrefix(contentRange, "bytes ")
	rng, total, found := strings.Cut(spec, "/")
	from, to, both := strings.Cut(rng, "-")
	if !ok || !found || !both {
		return false
	}
	start, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	size := strconv.FormatInt(s.blob.desc.Size, 10)
	if err1 != nil || err2 != nil || start != s.offset || last < start || total != size && total != "*" {
		return false
	}
	if last == s.blob.desc.Size-1 && !s.ahead {
		s.end = s.blob.desc.Size
	}
	return last < s.end
}
