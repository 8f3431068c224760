package cri

import (
	"context"
	"os"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox"
)

// codec is that of protobuf, but for an execAnswer.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal serializes an answer.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(*execAnswer); ok {
		return a.pieces, nil
	}
	return c.CodecV2.Marshal(v)
}

// execAnswer is an ExecSyncResponse whose output is read from the disk as the connection takes it: however many are asked for at once, and
// however slow their clients, each is a piece of memory. It becomes gRPC's, which frees the pieces.
type execAnswer struct {
	result sandbox.ExecResult
	logger klog.Logger
	pieces mem.BufferSlice
	left   atomic.Int32 // pieces that are not freed yet
	broken atomic.Bool  // the disk failed
}

// newExecAnswer takes over what a command gave. Threat B5.
func newExecAnswer(ctx context.Context, result sandbox.ExecResult) *execAnswer {
	a := &execAnswer{result: result, logger: klog.FromContext(ctx)}
	stdout, stderr := share(result.Stdout.Len(), result.Stderr.Len(), maxExecBytes)
	a.addOutput(1, result.Stdout, stdout)
	a.addOutput(2, result.Stderr, stderr)
	code := protowire.AppendTag(nil, 3, protowire.VarintType)
	a.add(&piece{data: protowire.AppendVarint(code, uint64(int64(result.ExitCode)))}) //nolint:gosec // as protobuf has negative numbers
	return a
}

// addOutput adds a field with the first keep bytes of an output.
func (a *execAnswer) addOutput(field protowire.Number, o sandbox.Output, keep int) {
	head := protowire.AppendTag(nil, field, protowire.BytesType)
	a.add(&piece{data: protowire.AppendVarint(head, uint64(keep))}) //nolint:gosec // not negative
	inHead := min(keep, len(o.Head))
	a.add(&piece{data: o.Head[:inHead]})
	for offset := 0; offset < keep-inHead; offset += pieceSize {
		a.add(&piece{file: o.Tail, offset: offset, size: min(pieceSize, keep-inHead-offset)})
	}
}

func (a *execAnswer) add(p *piece) {
	if p.file == nil {
		p.size = len(p.data)
	}
	if p.size == 0 {
		return
	}
	p.of = a
	p.refs.Store(1)
	a.left.Add(1)
	a.pieces = append(a.pieces, p)
}

// pieceSize is how much of a file is read at once.
const pieceSize = 32 << 10

var pieceMemory = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// piece is a part of an answer.
type piece struct {
	mem.Buffer // nil: its other methods are for messages that are received
	of         *execAnswer
	refs       atomic.Int32
	data       []byte
	size       int
	// Of one that is on the disk. It has memory from its first use until it is freed.
	file   *os.File
	offset int
	memory *[pieceSize]byte
}

// ReadOnlyData is what is to be sent. When the disk fails it is nothing, and nothing of the answer is sent any more: gRPC finds it too
// short and closes the connection. Wrong output, or the output of another command, is worse than none.
func (p *piece) ReadOnlyData() []byte {
	if p.data == nil && !p.of.broken.Load() {
		p.memory = pieceMemory.Get().(*[pieceSize]byte)
		if _, err := p.file.ReadAt(p.memory[:p.size], int64(p.offset)); err != nil {
			p.of.broken.Store(true)
			p.of.logger.Error(err, "Could not read the output of a command back, closed the connection")
		} else {
			p.data = p.memory[:p.size]
		}
	}
	if p.of.broken.Load() {
		return nil
	}
	return p.data
}

// Len is the piece's size.
func (p *piece) Len() int { return p.size }

// Ref is another that has to free the piece.
func (p *piece) Ref() { p.refs.Add(1) }

// Free lets go of the piece's memory, and with the last piece of the disk.
func (p *piece) Free() {
	if p.refs.Add(-1) > 0 {
		return
	}
	if p.memory != nil {
		pieceMemory.Put(p.memory)
	}
	p.data, p.memory = nil, nil
	if p.of.left.Add(-1) == 0 {
		p.of.result.Close()
	}
}
