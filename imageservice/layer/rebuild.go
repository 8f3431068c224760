package layer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"strings"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Source is an applied layer to be read back.
type Source struct {
	Folder string    // as Apply made it
	Kept   string    // what Options.Kept was; "" if Moves is empty
	Moves  []Move    // of Apply's Result
	Split  io.Reader // what Apply wrote to split
}

// Rebuild writes the layer's exact tar to w. Content that is no longer what it was is an error, found by its checksum
// or its length; to compare the whole with the diffID is the caller's part.
func Rebuild(ctx context.Context, w io.Writer, src Source) error {
	root, err := unix.Open(src.Folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open layer folder %s: %w", src.Folder, err)
	}
	defer unix.Close(root)
	r := &splitReader{ctx: ctx, dec: json.NewDecoder(src.Split), root: root, kept: -1, moves: indexMoves(src.Moves)}
	if len(src.Moves) > 0 {
		if r.kept, err = unix.Open(src.Kept, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open replaced content %s: %w", src.Kept, err)
		}
		defer unix.Close(r.kept)
	}
	if err := asm.WriteOutputTarStream(r, r, w); err != nil {
		return fmt.Errorf("rebuild tar of %s: %w", src.Folder, err)
	}
	return nil
}

// indexMoves sorts the moves by what they moved; within one path they stand in the order in which they happened.
func indexMoves(moves []Move) map[string][]Move {
	index := make(map[string][]Move, len(moves))
	for _, m := range moves {
		index[string(m.From)] = append(index[string(m.From)], m)
	}
	return index
}

// splitReader gives tar-split's assembler the records (it is its Unpacker) and the contents (its FileGetter). It goes by
// the record's place, not by its name: a name may stand for several entries.
type splitReader struct {
	ctx   context.Context
	dec   *json.Decoder
	root  int
	kept  int
	moves map[string][]Move
	entry storage.Entry // that Next gave last
}

// Next implements storage.Unpacker.
func (r *splitReader) Next() (*storage.Entry, error) {
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	r.entry = storage.Entry{}
	if err := r.dec.Decode(&r.entry); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("split is truncated: %w", err)
		}
		return nil, err
	}
	if r.entry.Type == storage.FileType && r.entry.Size == 0 && len(r.entry.Payload) > 0 {
		if err := r.checkSparse(); err != nil {
			return nil, err
		}
	}
	return &r.entry, nil
}

// Get implements storage.FileGetter for the entry that Next gave last.
func (r *splitReader) Get(string) (io.ReadCloser, error) {
	f, st, err := r.open()
	if err != nil {
		return nil, err
	}
	if st.Size != r.entry.Size {
		f.Close()
		return nil, fmt.Errorf("content of %q has %d bytes, want %d", r.entry.GetName(), st.Size, r.entry.Size)
	}
	return f, nil
}

// checkSparse compares a sparse file with its checksum; the tar is not made from it.
func (r *splitReader) checkSparse() error {
	f, _, err := r.open()
	if err != nil {
		return err
	}
	defer f.Close()
	sum := crc64.New(storage.CRCTable)
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), r.entry.Payload) {
		return fmt.Errorf("content of %q has changed", r.entry.GetName())
	}
	return nil
}

func (r *splitReader) open() (*os.File, *unix.Stat_t, error) {
	at, name := r.locate()
	fd, err := beneath(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("open content of %q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || !isType(&st, unix.S_IFREG) {
		f.Close()
		return nil, nil, errors.Join(err, fmt.Errorf("content of %q is not a regular file", name))
	}
	return f, &st, nil
}

// locate says where the content of the entry is now: at the first move after its record that took it or a directory
// above it away, or still in its place.
func (r *splitReader) locate() (at int, name string) {
	name = r.entry.GetName()
	if len(r.moves) == 0 {
		return r.root, name
	}
	var first *Move
	for end := len(name); end > 0; end = strings.LastIndexByte(name[:end], '/') {
		for _, m := range r.moves[name[:end]] {
			if m.Position > r.entry.Position {
				if first == nil || m.Position < first.Position {
					first = &m
				}
				break
			}
		}
	}
	if first == nil {
		return r.root, name
	}
	return r.kept, first.To + name[len(first.From):]
}
