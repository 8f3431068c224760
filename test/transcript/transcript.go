// Package transcript keeps what is written while a test reads it.
package transcript

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/test/wait"
)

// limit is how long a text is waited for.
const limit = 30 * time.Second

// Transcript is a writer that may be read meanwhile. Its zero value is empty. Its methods may be called at once.
type Transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write never fails.
func (s *Transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// String is what was written until now.
func (s *Transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Wait waits until it holds a text, and ends the test when that does not come about.
func (s *Transcript) Wait(t testing.TB, text string) {
	t.Helper()
	if !wait.Until(limit, 5*time.Millisecond, func() bool { return strings.Contains(s.String(), text) }) {
		t.Fatalf("after %v it is %q, and does not hold %q", limit, s, text)
	}
}
