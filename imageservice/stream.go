package imageservice

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// unpack finds out by its first bytes how a stream is packed, and unpacks it. What a media type says about it is often wrong.
func unpack(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	is := func(magic string) bool { return len(head) >= len(magic) && string(head[:len(magic)]) == magic }
	switch {
	case is("\x1f\x8b\x08"):
		return gzip.NewReader(r)
	case is("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("open zstd reader: %w", err)
		}
		return d.IOReadCloser(), nil
	case is("BZh"), is("\xfd7zXZ\x00"):
		return nil, errors.New("bzip2 and xz layers are not supported")
	}
	return io.NopCloser(r), nil
}

// layerStream is a layer's tar, unpacked from a stream that checks itself (registry.Source.Blob): its io.EOF means that the
// whole of that was read, and was right.
type layerStream struct {
	packed *bufio.Reader
	tar    io.ReadCloser // nil before the first Read
	limit  int64         // bytes of tar

	size atomic.Int64 // bytes of tar so far
	err  error        // sticky
}

// newLayerStream reads a stream that may unpack to limit bytes.
func newLayerStream(packed io.Reader, limit int64) *layerStream {
	return &layerStream{packed: bufio.NewReaderSize(packed, 64<<10), limit: limit}
}

func (s *layerStream) Read(p []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.tar == nil {
		if s.tar, err = unpack(s.packed); err != nil {
			s.err = s.blame(err)
			return 0, s.err
		}
	}
	n, err = s.tar.Read(p)
	if s.size.Add(int64(n)) > s.limit {
		s.err = fmt.Errorf("%w: a layer unpacks to more than %d bytes", ErrTooLarge, s.limit)
		return 0, s.err
	}
	if err != nil {
		s.err = s.blame(err)
	}
	return n, s.err
}

// blame finds out what the end of the unpacked stream means: wrong bytes from the registry, if they are; else a layer that is
// broken as it is. To know, the rest of the packed stream is read.
func (s *layerStream) blame(err error) error {
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
