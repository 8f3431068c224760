package streaming

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bounds of what waits for its client.
const (
	// tokenBytes of randomness are in a token: it cannot be guessed.
	tokenBytes = 32
	// tokenLife is how long a token may be used. The kubelet uses it at once.
	tokenLife = time.Minute
	// maxWaiting and maxWaitingBytes bound the requests whose clients have not come.
	maxWaiting      = 1000
	maxWaitingBytes = 64 << 20
	// requestOverhead is counted for each request besides its strings.
	requestOverhead = 512
)

// ErrTooMany means that too many clients have asked for a URL and not come. It passes by itself, within a minute.
var ErrTooMany = errors.New("too many streaming requests wait for their clients")

// kind is what a token is for; it is the first part of the URL's path too.
type kind string

const (
	kindExec        kind = "exec"
	kindAttach      kind = "attach"
	kindPortForward kind = "portforward"
)

// request is what a client may do with a token.
type request struct {
	kind    kind
	process Process  // of exec and attach
	sandbox string   // of a port forward
	ports   []uint16 // of a port forward by WebSocket's own channels
}

// size is about what a request takes of memory.
func (r request) size() int {
	n := requestOverhead + len(r.process.ContainerID) + len(r.sandbox) + 2*len(r.ports)
	for _, arg := range r.process.Cmd {
		n += len(arg) + 16
	}
	return n
}

// tokens are the requests whose clients have not come. Only the digest of a token is kept.
type tokens struct {
	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*list.Element
	queue  list.List // of *waiting, the oldest first
	bytes  int
	timer  *time.Timer // runs while there are any
	now    func() time.Time
}

// waiting is a request and what is known of its token.
type waiting struct {
	hash [sha256.Size]byte
	request
	ends time.Time
}

func newTokens() *tokens {
	return &tokens{byHash: make(map[[sha256.Size]byte]*list.Element), now: time.Now}
}

// issue makes a token for a request.
func (t *tokens) issue(r request) (string, error) {
	raw := make([]byte, tokenBytes)
	rand.Read(raw) //nolint:errcheck // it never fails
	token := base64.RawURLEncoding.EncodeToString(raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.queue.Len() >= maxWaiting || t.bytes+r.size() > maxWaitingBytes {
		return "", fmt.Errorf("keep the request for %s: %w", r.kind, ErrTooMany)
	}
	w := &waiting{hash: sha256.Sum256([]byte(token)), request: r, ends: t.now().Add(tokenLife)}
	t.byHash[w.hash] = t.queue.PushBack(w)
	t.bytes += r.size()
	if t.timer == nil {
		t.timer = time.AfterFunc(tokenLife, t.sweep)
	}
	return token, nil
}

// take uses a token up, whatever it is for: one that is shown at the wrong door is spent too.
func (t *tokens) take(token string, k kind) (request, bool) {
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	element, ok := t.byHash[hash]
	if !ok {
		return request{}, false
	}
	w := t.remove(element)
	if !t.now().Before(w.ends) || w.kind != k {
		return request{}, false
	}
	return w.request, true
}

// remove takes one out. Preconditions: t.mu held.
func (t *tokens) remove(element *list.Element) *waiting {
	w := t.queue.Remove(element).(*waiting)
	delete(t.byHash, w.hash)
	t.bytes -= w.size()
	return w
}

// expire forgets those whose time is over. Preconditions: t.mu held.
func (t *tokens) expire() {
	for e := t.queue.Front(); e != nil && !t.now().Before(e.Value.(*waiting).ends); e = t.queue.Front() {
		t.remove(e)
	}
}

// sweep forgets in the background, so that a request whose client never comes does not stay in memory.
func (t *tokens) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	t.timer = nil
	if e := t.queue.Front(); e != nil {
		t.timer = time.AfterFunc(max(e.Value.(*waiting).ends.Sub(t.now()), time.Second), t.sweep)
	}
}

// close forgets all.
func (t *tokens) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.byHash)
	t.queue.Init()
	t.bytes = 0
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}
