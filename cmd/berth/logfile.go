package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	// pollInterval is how often a log that is followed is looked at.
	pollInterval = 100 * time.Millisecond
	// tailBlock is how much is read at a time from a log's end.
	tailBlock = 64 << 10
	// maxLine bounds a line of a log: the runtime cuts them at 16 KiB, so what is longer is none of its lines.
	maxLine = 1 << 20
)

// logPrinter prints a log in the CRI's format: "TIME stdout|stderr P|F TEXT", P being the part of a line
// (k8s.io/cri-api, LogTag).
type logPrinter struct {
	stdout, stderr io.Writer
	tail           int
	timestamps     bool
	poll           time.Duration // how often a log that is followed is looked at; 0 is pollInterval
	// partial says whether the line that is being printed has its time already, for each stream.
	partial map[string]bool
}

// print prints the log at path. At its end it asks whether the container has ended; while it has not, it waits for more, also in the
// file that takes the log's name when it is rotated.
func (p *logPrinter) print(ctx context.Context, path string, ended func(context.Context) (bool, error)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	p.partial = map[string]bool{}
	if err := seekTail(f, p.tail); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r := bufio.NewReaderSize(f, tailBlock)
	var line []byte
	var next *os.File // has taken the log's name
	defer func() { next.Close() }()
	last := false
	for {
		part, err := r.ReadBytes('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return fmt.Errorf("read log %s: a line has more than %d bytes", path, maxLine)
		}
		switch {
		case err == nil:
			if err := p.printLine(bytes.TrimSuffix(line, []byte{'\n'})); err != nil {
				return err
			}
			line = line[:0]
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read log: %w", err)
		default:
			if next != nil { // and what was written before it came is printed
				f.Close()
				f, next, line, last = next, nil, line[:0], false
				r.Reset(f)
				continue
			}
			if next, err = reopen(f, path); err != nil {
				return err
			}
			if next != nil {
				continue
			}
			if last {
				return nil
			}
			if last, err = ended(ctx); err != nil {
				return err
			}
			if !last {
				if err := pause(ctx, cmp.Or(p.poll, pollInterval)); err != nil {
					return err
				}
			}
		}
	}
}

// pause waits until it is time to look again.
func pause(ctx context.Context, poll time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(poll):
		return nil
	}
}

// reopen opens the file that has taken a log's name; nil: none has.
func reopen(f *os.File, path string) (*os.File, error) {
	now, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between the rename and the new file
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if os.SameFile(now, mine) {
		return nil, nil
	}
	next, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return next, nil
}

// printLine prints one line of the file. What is not in the format is printed as it is.
func (p *logPrinter) printLine(line []byte) error {
	when, rest, ok1 := bytes.Cut(line, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, text, ok3 := bytes.Cut(rest, []byte{' '})
	w := p.stdout
	switch {
	case !ok1 || !ok2 || !ok3:
		_, err := fmt.Fprintf(w, "%s\n", line)
		return err
	case string(stream) == "stderr":
		w = p.stderr
	}
	out := make([]byte, 0, len(line)+1)
	if p.timestamps && !p.partial[string(stream)] {
		out = append(append(out, when...), ' ')
	}
	out = append(out, text...)
	tag, _, _ := strings.Cut(string(tags), ":")
	p.partial[string(stream)] = tag == "P"
	if tag != "P" {
		out = append(out, '\n')
	}
	_, err := w.Write(out)
	return err
}

// seekTail moves to where the last n lines begin; a negative n leaves the file at its start.
func seekTail(f *os.File, n int) error {
	if n < 0 {
		return nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	buf := make([]byte, tailBlock)
	// The newline at the very end closes the last line.
	newlines := -1
	for pos := end; pos > 0; {
		block := min(pos, tailBlock)
		pos -= block
		if _, err := f.ReadAt(buf[:block], pos); err != nil {
			return err
		}
		for i := block - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				newlines = max(newlines, 0)
				continue
			}
			if newlines++; newlines == n {
				_, err := f.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
