package imageservice

import (
	"io"
	"sync"
)

var pieces = sync.Pool{New: func() any { return new([readaheadSize]byte) }}

// readahead reads a stream in a goroutine of its own, some pieces ahead of its reader, so that the stages of a layer's way
// run at the same time.
type readahead struct {
	full chan piece
	stop chan struct{}
	done chan struct{}

	current piece // what is being read; used by the reader only
	rest    []byte
	err     error
}

// piece is a part of the stream; err comes after its bytes.
type piece struct {
	buf *[readaheadSize]byte
	n   int
	err error
}

func newReadahead(r io.Reader) *readahead {
	a := &readahead{full: make(chan piece, readaheadCount), stop: make(chan struct{}), done: make(chan struct{})}
	go a.run(r)
	return a
}

func (a *readahead) run(r io.Reader) {
	defer close(a.done)
	for {
		p := piece{buf: pieces.Get().(*[readaheadSize]byte)}
		p.n, p.err = guard(func() (int, error) { return fill(r, p.buf[:]) })
		select {
		case a.full <- p:
		case <-a.stop:
			pieces.Put(p.buf)
			return
		}
		if p.err != nil {
			return
		}
	}
}

// fill reads until buf is at least half full: small reads of the network are joined, but nothing waits for long.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf)/2 && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read hands out what is ahead.
func (a *readahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		a.recycle()
		if a.err != nil {
			return 0, a.err
		}
		a.current = <-a.full
		a.rest, a.err = a.current.buf[:a.current.n], a.current.err
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *readahead) recycle() {
	if a.current.buf != nil {
		pieces.Put(a.current.buf)
		a.current.buf = nil
	}
}

// Close waits until nobody reads the stream any more. If a read of it may block the caller must end that first.
func (a *readahead) Close() error {
	select {
	case <-a.stop:
		return nil
	default:
	}
	close(a.stop)
	<-a.done
	a.rest = nil
	if a.err == nil {
		a.err = io.ErrClosedPipe
	}
	a.recycle()
	for {
		select {
		case p := <-a.full:
			pieces.Put(p.buf)
		default:
			return nil
		}
	}
}
