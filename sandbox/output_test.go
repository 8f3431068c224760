package sandbox

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// TestCapture: what is kept is the beginning, in the order in which it came, wherever it is; little is memory where there is a disk.
func TestCapture(t *testing.T) {
	for _, tc := range []struct {
		name, folder string
		chunks       int // of a KiB
		wantHead     int
		wantTail     int
	}{
		{"little", t.TempDir(), 64, maxExecHead, 0},
		{"more", t.TempDir(), 65, maxExecHead, 1 << 10},
		{"too much", t.TempDir(), 17 << 10, maxExecHead, maxExecOutput - maxExecHead},
		{"no disk", t.TempDir() + "/none", 17 << 10, maxExecOutput, 0},
	} {
		c := capture{folder: tc.folder}
		var all strings.Builder
		for i := range tc.chunks {
			chunk := strings.Repeat(string(rune('a'+i%26)), 1<<10)
			if n, err := io.WriteString(&c, chunk); n != len(chunk) || err != nil {
				t.Fatalf("%s: Write = %d, %v", tc.name, n, err)
			}
			all.WriteString(chunk)
		}
		o := c.output()
		got := string(o.Head)
		if o.Tail != nil {
			tail := make([]byte, o.TailSize)
			if _, err := o.Tail.ReadAt(tail, 0); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			got += string(tail)
		}
		if len(o.Head) != tc.wantHead || o.TailSize != tc.wantTail || o.Len() != len(got) || got != all.String()[:len(got)] {
			t.Errorf("%s: %d bytes in memory and %d on disk, want %d and %d of what was written", tc.name, len(o.Head), o.TailSize, tc.wantHead, tc.wantTail)
		}
		if _, err := c.Write([]byte("late")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: Write after output = %v", tc.name, err)
		}
		o.Close()
		o.Close()
		if names, err := os.ReadDir(tc.folder); len(names) > 0 {
			t.Errorf("%s: left %v, %v", tc.name, names, err)
		}
	}
}
