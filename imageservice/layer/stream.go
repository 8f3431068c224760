package layer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"
)

const (
	blockSize  = 256 << 10 // bytes read at once; a block stays in the second-level cache from hashing to writing
	blocksHeld = 4         // blocks between the two goroutines
	recordMax  = 1 << 20   // bytes recorded before they are handed on
)

var blockPool = sync.Pool{New: func() any { return new([blockSize]byte) }}

type block struct {
	buf *[blockSize]byte
	n   int
	err error
}

// stream reads ahead in a goroutine of its own: decompression on one processor, SHA-256, the tar and the file system on another.
// It keeps a record of all bytes that are not file content.
type stream struct {
	blocks chan block
	quit   chan struct{}
	ended  chan struct{} // closed when the goroutine no longer uses the reader
	sum    hash.Hash     // of the blocks taken

	cur     block
	rest    []byte // of cur
	total   int64  // bytes taken
	max     int64
	skipped int64 // bytes that the tar reader still believes to be ahead
	failed  error // of the reader, the limit or the record

	record []byte
	emit   func([]byte) error // takes the record away
}

func newStream(ctx context.Context, r io.Reader, max int64) *stream {
	s := &stream{
		blocks: make(chan block, blocksHeld),
		quit:   make(chan struct{}),
		ended:  make(chan struct{}),
		sum:    sha256.New(),
		max:    max,
	}
	go s.readAhead(ctx, r)
	return s
}

func (s *stream) readAhead(ctx context.Context, r io.Reader) {
	defer close(s.ended)
	for {
		b := block{buf: blockPool.Get().(*[blockSize]byte)}
		for b.n < blockSize && b.err == nil {
			var n int
			n, b.err = r.Read(b.buf[b.n:])
			b.n += n
			if b.err == nil {
				b.err = ctx.Err()
			}
			select {
			case <-s.quit:
				return
			default:
			}
		}
		select {
		case s.blocks <- b:
		case <-s.quit:
			return
		}
		if b.err != nil {
			return
		}
	}
}

// stop ends the goroutine and waits for it. It returns when the reader's Read has.
func (s *stream) stop() {
	close(s.quit)
	<-s.ended
}

// next gives up to max bytes without copying them, valid until the next call. At the end it returns io.EOF.
func (s *stream) next(max int64) ([]byte, error) {
	for len(s.rest) == 0 {
		if s.cur.err == io.EOF {
			return nil, io.EOF
		}
		if s.cur.err != nil {
			return nil, s.fail(s.cur.err)
		}
		if s.cur.buf != nil {
			blockPool.Put(s.cur.buf)
		}
		s.cur = <-s.blocks
		s.rest = s.cur.buf[:s.cur.n]
		s.sum.Write(s.rest)
	}
	p := s.rest[:min(int64(len(s.rest)), max)]
	s.rest = s.rest[len(p):]
	s.total += int64(len(p))
	if s.total > s.max {
		return nil, s.fail(fmt.Errorf("%w: more than %d bytes", ErrLimit, s.max))
	}
	return p, nil
}

// fail keeps an error that is not the tar's.
func (s *stream) fail(err error) error {
	s.failed = err
	return err
}

// Read is for the tar reader: what it takes is recorded. Bytes that take gave away are passed over here, unread, so that
// the reader's own count is right.
func (s *stream) Read(p []byte) (int, error) {
	if s.skipped > 0 {
		n := int(min(int64(len(p)), s.skipped))
		s.skipped -= int64(n)
		return n, nil
	}
	b, err := s.next(int64(len(p)))
	if err != nil {
		return 0, err
	}
	s.record = append(s.record, b...)
	if len(s.record) >= recordMax {
		if err := s.flush(); err != nil {
			return 0, s.fail(err)
		}
	}
	return copy(p, b), nil
}

// take gives up to max bytes of the current entry's content past the tar reader, neither copied nor recorded.
func (s *stream) take(max int64) ([]byte, error) {
	p, err := s.next(max)
	s.skipped += int64(len(p))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

// flush hands the record on.
func (s *stream) flush() error {
	if len(s.record) == 0 {
		return nil
	}
	err := s.emit(s.record)
	s.record = s.record[:0]
	return err
}

// drain records what follows the tar's end, to the end of the stream.
func (s *stream) drain() error {
	buf := make([]byte, 32<<10)
	for {
		if _, err := s.Read(buf); err == io.EOF {
			return s.flush()
		} else if err != nil {
			return err
		}
	}
}
