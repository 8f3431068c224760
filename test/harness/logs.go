package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/wait"
)

// Line is one line of a container's log.
type Line struct {
	Time   time.Time
	Stream string
	Full   bool // F, not P
	Text   string
}

// ParseLog reads the CRI's log format: TIME STREAM TAG TEXT.
func ParseLog(text string) ([]Line, error) {
	var all []Line
	for line := range strings.Lines(text) {
		line, whole := strings.CutSuffix(line, "\n")
		f := strings.SplitN(line, " ", 4)
		if !whole || len(f) < 4 {
			return all, fmt.Errorf("not a whole log line: %.200q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			return all, fmt.Errorf("log line %.200q: %w", line, err)
		}
		if f[1] != "stdout" && f[1] != "stderr" || f[2] != "F" && f[2] != "P" {
			return all, fmt.Errorf("log line %.200q: stream %q, tag %q", line, f[1], f[2])
		}
		all = append(all, Line{Time: at, Stream: f[1], Full: f[2] == "F", Text: f[3]})
	}
	return all, nil
}

// LogFile is the container's log.
func (c *Container) LogFile() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Lines reads the container's log. A line that is just being written is waited for: a reader may see the part of a write that is on one page.
func (c *Container) Lines() (lines []Line) {
	c.T.Helper()
	var err error
	wait.Until(Patience, time.Millisecond, func() bool {
		text, readErr := os.ReadFile(c.LogFile())
		lines, err = ParseLog(string(text))
		err = errors.Join(readErr, err)
		return err == nil || readErr != nil || strings.HasSuffix(string(text), "\n")
	})
	if err != nil {
		c.T.Fatal(err)
	}
	return lines
}

// Output joins what the log says of both streams, with newlines where lines end.
func (c *Container) Output() string {
	c.T.Helper()
	var b strings.Builder
	for _, l := range c.Lines() {
		b.WriteString(l.Text)
		if l.Full {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// WaitOutput waits until the log contains a text.
func (c *Container) WaitOutput(text string) {
	c.T.Helper()
	c.Eventually(10*time.Second, fmt.Sprintf("log of %s contains %q", c.Config.Metadata.Name, text), func() bool {
		raw, err := os.ReadFile(c.LogFile())
		return err == nil && strings.Contains(string(raw), text)
	})
}

// InfoPID reads the PID from verbose information.
func InfoPID(t testing.TB, info map[string]string) int {
	t.Helper()
	var v struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &v); err != nil || v.PID == 0 {
		t.Fatalf("verbose information has no pid: %v %v", info, err)
	}
	return v.PID
}
