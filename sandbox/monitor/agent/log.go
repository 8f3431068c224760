package agent

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor/wire"
)

// lineMax is the longest piece of a line in a log entry, in bytes: longer lines are cut into partial entries
// (the CRI's log format, "P" and "F").
const lineMax = 16 << 10

// logFile is a container's log. Its streams write to it in turns.
type logFile struct {
	path    string // "" keeps no log
	resolve uint64 // how the path is (openat2(2), RESOLVE_*)

	mu     sync.Mutex
	fd     int
	closed bool
	lost   uint64 // entries that could not be written since the last that could
}

// openLog opens the log at path for appending.
func openLog(path string, resolve uint64) (*logFile, error) {
	l := &logFile{path: path, resolve: resolve, fd: -1}
	return l, l.reopen()
}

// reopen opens the path anew and lets go of the old file. Its folder is the kubelet's, but a pod may be able to write
// there: what is followed is no symbolic link, what is written to is no other file's second name, and a FIFO holds
// nobody up (CVE class of ReopenContainerLog).
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat2(unix.AT_FDCWD, l.path, &unix.OpenHow{Flags: flags, Mode: 0o640, Resolve: l.resolve})
	if err != nil {
		return fmt.Errorf("open log %s: %w", l.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		unix.Close(fd)
		return fmt.Errorf("open log %s: not a regular file of its own", l.path)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		unix.Close(fd)
		return &wire.Failure{Kind: wire.FailedExited}
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd = fd
	return nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.lost > 0 { // nothing was written since: that some is missing is told now, if there is place again
		w := newBatch()
		l.flush(w)
		spareBatch.Store(w)
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// lines writes the whole lines of b, and what is too long to wait for its end, and returns the rest.
func (l *logFile) lines(prefix string, b []byte) []byte {
	if end := bytes.LastIndexByte(b, '\n') + 1; end > 0 {
		l.entries(prefix, b[:end])
		b = b[end:]
	}
	if len(b) > lineMax {
		l.write(prefix, [][]byte{b[:lineMax]}, "P ")
		b = b[lineMax:]
	}
	return b
}

// batch is entries that are written at once. One is kept for all logs: a monitor logs for months, and must not grow by it.
type batch struct {
	stamp   [30]byte // the time of all entries
	entries uint64
	len     int
	text    [2*lineMax - 64]byte // the whole is a size that nothing is wasted by
}

var spareBatch atomic.Pointer[batch]

// newBatch takes the spare batch, unless another log has it. Its user gives it back.
func newBatch() *batch {
	w := spareBatch.Swap(nil)
	if w == nil {
		w = new(batch)
	}
	w.entries, w.len = 0, 0
	time.Now().UTC().AppendFormat(w.stamp[:0], "2006-01-02T15:04:05.000000000Z")
	return w
}

// entries appends one entry a line of b, which ends with the last one's end.
func (l *logFile) entries(prefix string, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := newBatch()
	defer spareBatch.Store(w)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		l.add(w, prefix, "F ", b[:end])
		b = b[end+1:]
	}
	l.flush(w)
}

// write appends one entry a line.
func (l *logFile) write(prefix string, lines [][]byte, tag string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := newBatch()
	defer spareBatch.Store(w)
	for _, line := range lines {
		l.add(w, prefix, tag, line)
	}
	l.flush(w)
}

// add puts an entry of at most lineMax bytes into the batch, which is written first if it is full. The caller holds mu.
func (l *logFile) add(w *batch, prefix, tag string, line []byte) {
	if w.len+len(w.stamp)+len(prefix)+len(tag)+len(line)+1 > len(w.text) {
		l.flush(w)
	}
	b := append(w.text[:w.len], w.stamp[:]...)
	b = append(b, prefix...)
	b = append(b, tag...)
	b = append(b, line...)
	b = append(b, '\n')
	w.len, w.entries = len(b), w.entries+1
}

// flush appends the batch whole or not at all: on a full disk a part of it would tear the entry that follows. The caller holds mu.
func (l *logFile) flush(w *batch) {
	b, entries := w.text[:w.len], w.entries
	w.len, w.entries = 0, 0
	if l.fd < 0 || len(b) == 0 && l.lost == 0 {
		return
	}
	if l.lost > 0 {
		note := fmt.Appendf(nil, "%s stderr F berth: %d log entries were lost: the log could not be written\n",
			time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), l.lost)
		b = append(note, b...)
	}
	written := 0
	for written < len(b) {
		n, err := unix.Write(l.fd, b[written:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		written += n
	}
	if written == len(b) {
		l.lost = 0
		return
	}
	l.lost += entries
	if written > 0 {
		var st unix.Stat_t
		if unix.Fstat(l.fd, &st) == nil {
			unix.Ftruncate(l.fd, st.Size-int64(written))
		}
	}
}
