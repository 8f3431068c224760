package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor/wire"
)

// A rotation that comes together with the exit.
func TestClosedLogStaysClosed(t *testing.T) {
	l, err := openLog(filepath.Join(t.TempDir(), "log"), 0)
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	if err := l.reopen(); !isExited(err) || l.fd != -1 {
		t.Errorf("reopen = %v, descriptor %d", err, l.fd)
	}
}

// What a container wrote before its exit is in its log, also when the end of the streams does not come.
func TestCopyTakesTheRestAtTheDeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20); err != nil { // as any container may
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
	defer r.Close()
	defer w.Close()
	const lines = 60000
	if _, err := w.WriteString(strings.Repeat("fifteen letters\n", lines)); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	(&stream{name: "stdout", from: r}).copy(l)
	b, err := os.ReadFile(path)
	if got := strings.Count(string(b), " stdout F fifteen letters\n"); err != nil || got != lines {
		t.Errorf("the log has %d lines, want %d; %v", got, lines, err)
	}
}

// Whatever a container writes stands in the log, byte by byte, in entries that are no longer than they may be.
func FuzzCopy(f *testing.F) {
	f.Add([]byte("a\n\nb"), uint16(1))
	f.Add([]byte("\x00\xff\r"), uint16(lineMax))
	f.Add([]byte("x"), uint16(lineMax))
	f.Add([]byte("x"), uint16(lineMax+1))
	f.Add([]byte(strings.Repeat("x", lineMax-1)+"\n"), uint16(3))
	f.Add([]byte(strings.Repeat("x", lineMax)+"\n"), uint16(3))
	f.Add([]byte(strings.Repeat("x", lineMax+1)+"\n"), uint16(3))
	f.Fuzz(func(t *testing.T, text []byte, times uint16) {
		if len(text)*int(times) > 1<<20 {
			return
		}
		content, dir := bytes.Repeat(text, int(times)), t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "out"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		from, err := os.Open(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		l, err := openLog(filepath.Join(dir, "log"), 0)
		if err != nil {
			t.Fatal(err)
		}
		(&stream{name: "stdout", from: from}).copy(l)
		l.close()
		b, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for entry := range bytes.Lines(b) {
			stamp, rest, _ := bytes.Cut(entry, []byte(" stdout "))
			if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil || len(rest) < 3 || len(rest) > lineMax+3 {
				t.Fatalf("entry %.80q: %v", entry, err)
			}
			switch tag, line := string(rest[:2]), rest[2:]; tag {
			case "F ":
				got = append(got, line...)
			case "P ":
				got = append(got, line[:len(line)-1]...)
			default:
				t.Fatalf("entry %.80q", entry)
			}
		}
		if len(content) > 0 && content[len(content)-1] != '\n' {
			content = append(content, '\n')
		}
		if !bytes.Equal(got, content) {
			t.Errorf("the log has %d bytes of %d", len(got), len(content))
		}
	})
}

// A container whose last lines found no place, and that then says nothing more.
func TestLostLinesAreToldAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := l.fd
	if l.fd, err = unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	l.lines(" stdout ", []byte("one\ntwo\n"))
	unix.Close(l.fd)
	l.fd = good
	l.close()
	b, err := os.ReadFile(path)
	if !strings.HasSuffix(string(b), " stderr F berth: 2 log entries were lost: the log could not be written\n") || strings.Count(string(b), "\n") != 1 {
		t.Errorf("the log is %q, %v", b, err)
	}
}

func isExited(err error) bool {
	f, ok := err.(*wire.Failure)
	return ok && f.Kind == wire.FailedExited
}
