package imageservice

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// errWide means that a stream needs a larger zstd window than it may have.
var errWide = errors.New("the zstd window is too large")

// unpack finds out by its first bytes how a stream is packed, and unpacks it. What a media type says about it is often wrong.
func unpack(r *bufio.Reader, window uint64) (io.ReadCloser, error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	is := func(magic string) bool { return len(head) >= len(magic) && string(head[:len(magic)]) == magic }
	switch {
	case is("\x1f\x8b\x08"):
		return gzip.NewReader(r)
	case is("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return nil, fmt.Errorf("open zstd reader: %w", err)
		}
		return d.IOReadCloser(), nil
	case is("BZh"), is("\xfd7zXZ\x00"):
		return nil, errors.New("bzip2 and xz layers are not supported")
	}
	return io.NopCloser(r), nil
}

// turn bounds how many layers are unpacked at a time, so that many pulls do not take all processors from each other and from
// who shares them. Who waits for the network gives its place up meanwhile. It is for one goroutine at a time.
type turn struct {
	ctx   context.Context
	slots chan struct{} // nil: there is no bound
	mine  bool
}

func (t *turn) take() error {
	if t.slots == nil {
		return nil
	}
	select {
	case t.slots <- struct{}{}:
		t.mine = true
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

func (t *turn) give() {
	if t.mine {
		<-t.slots
		t.mine = false
	}
}

// waiting reads something that may have to be waited for, out of turn.
type waiting struct {
	r    io.Reader
	turn *turn
}

func (w waiting) Read(p []byte) (int, error) {
	if !w.turn.mine {
		return w.r.Read(p)
	}
	w.turn.give()
	n, err := w.r.Read(p)
	if takeErr := w.turn.take(); err == nil && takeErr != nil {
		err = takeErr
	}
	return n, err
}

// layerStream is a layer's tar, unpacked from a stream that checks itself (registry.Source.Blob): its io.EOF means that the
// whole of that was read, and was right.
type layerStream struct {
	packed *bufio.Reader
	tar    io.ReadCloser // nil before the first Read
	limit  int64         // bytes of tar
	window uint64        // bytes that a zstd window may have
	turn   turn

	size int64 // bytes of tar so far
	err  error // sticky
}

// newLayerStream reads a stream that may unpack to limit bytes.
func newLayerStream(packed io.Reader, limit int64, window uint64) *layerStream {
	s := &layerStream{limit: limit, window: window}
	s.packed = bufio.NewReaderSize(waiting{packed, &s.turn}, 64<<10)
	return s
}

func (s *layerStream) Read(p []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.err = s.turn.take(); s.err != nil {
		return 0, s.err
	}
	defer s.turn.give()
	n, s.err = guard(func() (int, error) { return s.read(p) })
	return n, s.err
}

func (s *layerStream) read(p []byte) (n int, err error) {
	if s.tar == nil {
		if s.tar, err = unpack(s.packed, s.window); err != nil {
			return 0, s.blame(err)
		}
	}
	n, err = s.tar.Read(p)
	if s.size += int64(n); s.size > s.limit {
		return 0, fmt.Errorf("%w: a layer unpacks to more than %d bytes", ErrTooLarge, s.limit)
	}
	if err != nil {
		err = s.blame(err)
	}
	return n, err
}

// blame finds out what the end of the unpacked stream means: wrong bytes from the registry, if they are; else a layer that is
// broken as it is. To know, the rest of the packed stream is read.
func (s *layerStream) blame(err error) error {
	if s.window < maxWindow && (errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)) {
		return errWide
	}
	n, packedErr := io.Copy(io.Discard, s.packed)
	switch {
	case packedErr != nil:
		return packedErr
	case err == io.EOF && n == 0:
		return io.EOF
	case err == io.EOF:
		return fmt.Errorf("unpack layer: %w: %w: %d bytes after its end", ErrInvalidImage, ErrDigestMismatch, n)
	case err == io.ErrUnexpectedEOF:
		return fmt.Errorf("unpack layer: %w: %w: it is truncated", ErrInvalidImage, ErrDigestMismatch)
	}
	return fmt.Errorf("unpack layer: %w: %w: %w", ErrInvalidImage, ErrDigestMismatch, err)
}

// verdict is the error of the stream after somebody stopped reading it with err of their own. Nobody may be reading it.
func (s *layerStream) verdict(err error) error {
	if s.err == nil {
		s.err = s.blame(io.EOF)
		if errors.Is(s.err, ErrInvalidImage) {
			s.err = io.EOF // there was more because the reader stopped early
		}
	}
	if s.err == io.EOF {
		return err
	}
	return s.err
}

func (s *layerStream) close() {
	if s.tar != nil {
		s.tar.Close() // gives memory back; there is nothing to learn from it
	}
}
