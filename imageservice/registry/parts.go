package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// pieces are what chunks are kept in between the network and the reader.
var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// parts fetches a blob chunk by chunk over several connections and gives the bytes in order. Chunks ahead of the reader are
// kept in memory, as far as the client's budget goes; what of one was had before it broke is kept as well, and the rest is
// fetched when the reader gets there. It is for one goroutine.
type parts struct {
	blob   *blob
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	running []*part // in order; the first is the one that is read
	next    int64   // first byte that no part has
	offset  int64   // bytes handed out
	waits   int     // for how many pieces in a row the reader has waited
	changed chan struct{}

	piece piece
	rest  []byte // of piece
	more  bool   // the last host sent more than the blob
	err   error  // sticky
}

// chunk says what a part is to fetch.
type chunk struct {
	start, end int64
	ahead      bool      // nobody waits for it yet
	hold       int64     // bytes of the budget, when it is ahead
	from       time.Time // a host asked for a pause until then; zero = it did not
}

// part is one chunk on its way. The fields below pieces are the goroutine's until that is closed.
type part struct {
	chunk
	cancel context.CancelFunc
	over   atomic.Bool // it needs no connection any more
	pieces chan piece

	span *span
	err  error     // why it ended early
	at   time.Time // when it did
}

type piece struct {
	buf *[pieceSize]byte
	n   int
}

func newParts(ctx context.Context, b *blob) *parts {
	p := &parts{blob: b, changed: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// notify wakes a reader that waits for a piece: there may be something to begin.
func (p *parts) notify() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func (p *parts) Read(buf []byte) (int, error) {
	for len(p.rest) == 0 && p.err == nil {
		p.recycle()
		p.err = p.advance()
	}
	if len(p.rest) == 0 {
		p.end()
		return 0, p.err
	}
	n := copy(buf, p.rest)
	p.rest = p.rest[n:]
	p.offset += int64(n)
	return n, nil
}

// advance gets the next piece, or does a step on the way there.
func (p *parts) advance() error {
	if p.offset == p.blob.desc.Size {
		if len(p.running) > 0 { // the last part, which may find that there is more
			for range p.running[0].pieces {
			}
			p.more = p.running[0].span.surplus()
		}
		return io.EOF
	}
	p.begin()
	head := p.running[0]
	piece, ok := piece{}, false
	select {
	case piece, ok = <-head.pieces:
		p.waits = 0
	default:
		if p.waits >= enoughWaits {
			p.beginAhead()
		}
		select {
		case piece, ok = <-head.pieces:
			p.waits++
		case <-p.changed:
			return nil
		case <-time.After(longWait):
			p.waits = max(p.waits, enoughWaits)
			return nil
		}
	}
	if ok {
		p.piece, p.rest = piece, piece.buf[:piece.n]
		return nil
	}
	p.running = p.running[1:]
	p.blob.source.budget.giveBytes(head.hold)
	switch {
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case head.err != nil && !head.ahead:
		return head.err
	case head.err != nil: // nobody had waited for it; now somebody does
		c := chunk{start: p.offset, end: head.end}
		if _, after := retryable(head.err); after > 0 {
			c.from = head.at.Add(after)
		}
		if len(p.running) == 0 {
			c.end = p.blob.desc.Size // nothing is fetched ahead any more
			p.next = c.end
		}
		p.running = append([]*part{p.start(c)}, p.running...)
	case head.span.end > head.end: // it took all the rest
		p.drop()
		p.next = head.span.end
	}
	p.more = head.span.surplus()
	return nil
}

// begin starts the part that the reader needs, if nobody has.
func (p *parts) begin() {
	if len(p.running) > 0 {
		return
	}
	size := p.blob.desc.Size
	p.next = min(p.offset+p.blob.source.config.ChunkSize, size)
	if p.blob.rangeState() == rangesFail {
		p.next = size
	}
	p.running = append(p.running, p.start(chunk{start: p.offset, end: p.next}))
}

// beginAhead starts one more part, while all is well and the budget allows. It is called when the reader waits again and again:
// where the network is quicker than who reads, more connections bring nothing and fill the memory.
func (p *parts) beginAhead() {
	c, size := p.blob.source.config, p.blob.desc.Size
	if p.next == size || p.blob.rangeState() != rangesWork || p.connections() >= c.Connections {
		return
	}
	end := min(p.next+c.ChunkSize, size)
	if p.blob.source.budget.takeAhead(end - p.next) {
		p.running = append(p.running, p.start(chunk{start: p.next, end: end, hold: end - p.next, ahead: true}))
		p.next = end
	}
}

// connections counts the parts that are still being fetched.
func (p *parts) connections() (n int) {
	for _, r := range p.running {
		if !r.over.Load() {
			n++
		}
	}
	return n
}

// start begins a part.
func (p *parts) start(c chunk) *part {
	ctx, cancel := context.WithCancel(p.ctx)
	room := headPieces
	if c.ahead {
		room = int((c.end-c.start)/pieceSize) + 1 // it never waits for the reader
	}
	if c.start > 0 {
		p.blob.mu.Lock()
		p.blob.chunks++
		p.blob.mu.Unlock()
	}
	r := &part{
		chunk: c, cancel: cancel, pieces: make(chan piece, room),
		span: &span{blob: p.blob, ctx: ctx, offset: c.start, end: c.end, ahead: c.ahead, answered: p.notify},
	}
	p.wait.Go(func() {
		defer cancel()
		r.err, r.at = r.fetch(ctx), time.Now()
		r.over.Store(true)
		close(r.pieces)
		p.notify()
	})
	return r
}

// fetch reads the part's bytes.
func (r *part) fetch(ctx context.Context) error {
	src := r.span.blob.source
	defer r.span.Close()
	if r.ahead {
		defer src.budget.giveConnection()
	} else {
		if err := sleep(ctx, time.Until(r.from)); err != nil { // at once, for a time that has gone by
			return err
		}
		give, err := src.connection(ctx)
		if err != nil {
			return err
		}
		defer give()
	}
	for {
		p := piece{buf: pieces.Get().(*[pieceSize]byte)}
		var err error
		for p.n < pieceSize && err == nil {
			var n int
			n, err = r.span.Read(p.buf[p.n:])
			p.n += n
		}
		if p.n == 0 {
			pieces.Put(p.buf)
		} else {
			select {
			case r.pieces <- p:
			case <-ctx.Done():
				pieces.Put(p.buf)
				return context.Cause(ctx)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if r.ahead && ctx.Err() == nil {
				r.span.blob.setRanges(rangesFail)
			}
			return err
		}
	}
}

func (p *parts) recycle() {
	if p.piece.buf != nil {
		pieces.Put(p.piece.buf)
		p.piece.buf = nil
	}
}

// drop ends all parts and waits for them.
func (p *parts) drop() {
	for _, r := range p.running {
		r.cancel()
	}
	for _, r := range p.running {
		for piece := range r.pieces {
			pieces.Put(piece.buf)
		}
		p.blob.source.budget.giveBytes(r.hold)
	}
	p.running = nil
}

// surplus says whether the host that sent the blob's end sent more.
func (p *parts) surplus() bool { return p.more }

func (p *parts) end() {
	p.cancel()
	p.drop()
	p.wait.Wait()
	p.rest = nil
	p.recycle()
}

// Close ends all connections and waits for who reads them.
func (p *parts) Close() error {
	if p.err == nil {
		p.err = errors.New("read of a closed blob")
	}
	p.end()
	return nil
}
