package streaming

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"
)

func issue(t *testing.T, k *tokens, r request) string {
	t.Helper()
	token, err := k.issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Fails when take leaves the request in the table.
func TestTokenIsGoodOnce(t *testing.T) {
	k := newTokens()
	defer k.close()
	token := issue(t, k, request{kind: kindExec, process: Process{ContainerID: "c"}})
	if r, ok := k.take(token, kindExec); !ok || r.process.ContainerID != "c" {
		t.Fatalf("take = %+v, %v", r, ok)
	}
	if _, ok := k.take(token, kindExec); ok {
		t.Error("a token was good twice")
	}
}

// Fails when take does not look at the kind, and when a token that was shown at the wrong door stays good.
func TestTokenIsGoodForItsKindAlone(t *testing.T) {
	k := newTokens()
	defer k.close()
	for _, made := range []kind{kindExec, kindAttach, kindPortForward} {
		for _, shown := range []kind{kindExec, kindAttach, kindPortForward, "", "Exec"} {
			token := issue(t, k, request{kind: made})
			if _, ok := k.take(token, shown); ok != (made == shown) {
				t.Errorf("a token for %s at %q: %v", made, shown, ok)
			}
			if _, ok := k.take(token, made); ok {
				t.Errorf("a token for %s is good after it was shown at %q", made, shown)
			}
		}
	}
}

// Fails when take does not look at the time, also when the wall clock is turned back: times here have a monotonic part.
func TestTokenIsGoodForAMinute(t *testing.T) {
	k := newTokens()
	defer k.close()
	now := time.Now()
	k.now = func() time.Time { return now }
	early, late := issue(t, k, request{kind: kindExec}), issue(t, k, request{kind: kindExec})
	now = now.Add(tokenLife - time.Millisecond)
	if _, ok := k.take(early, kindExec); !ok {
		t.Error("a token is not good for a minute")
	}
	now = now.Add(time.Millisecond)
	if _, ok := k.take(late, kindExec); ok {
		t.Error("a token is good for more than a minute")
	}
	if tokenLife > time.Minute {
		t.Errorf("tokens live for %v", tokenLife)
	}
}

// Fails when the number or the size of what waits has no bound, and when what is over is not forgotten.
func TestWaitingRequestsAreBounded(t *testing.T) {
	k := newTokens()
	defer k.close()
	now := time.Now()
	k.now = func() time.Time { return now }
	for range maxWaiting {
		issue(t, k, request{kind: kindExec})
	}
	if _, err := k.issue(request{kind: kindExec}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
	now = now.Add(tokenLife)
	big := request{kind: kindExec, process: Process{Cmd: []string{strings.Repeat("x", maxWaitingBytes/2-2*requestOverhead)}}}
	first := issue(t, k, big)
	if len(k.byHash) != 1 || k.queue.Len() != 1 {
		t.Errorf("%d requests are kept after a minute", len(k.byHash))
	}
	issue(t, k, big)
	if _, err := k.issue(big); !errors.Is(err, ErrTooMany) {
		t.Errorf("a third of half the bytes: %v", err)
	}
	if _, ok := k.take(first, kindExec); !ok {
		t.Error("a request that waits was lost")
	}
	issue(t, k, big)
	now = now.Add(tokenLife)
	k.sweep()
	if len(k.byHash) != 0 || k.queue.Len() != 0 || k.bytes != 0 || k.timer != nil {
		t.Errorf("after the last: %d, %d, %d bytes", len(k.byHash), k.queue.Len(), k.bytes)
	}
}

// Fails when a token is shorter than 128 bits, or repeats.
func TestTokensCannotBeGuessed(t *testing.T) {
	k := newTokens()
	defer k.close()
	now := time.Now()
	k.now = func() time.Time { return now } // guessing may take longer than a token lives
	seen := map[string]bool{}
	var bits [256]int
	for range 900 {
		token := issue(t, k, request{kind: kindExec})
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(raw) < 16 || seen[token] {
			t.Fatalf("token %q: %v, %d bytes, seen %v", token, err, len(raw), seen[token])
		}
		seen[token] = true
		for i := range bits {
			bits[i] += int(raw[i/8]>>(i%8)) & 1
		}
	}
	for i, n := range bits { // a fair coin is outside once in 10^14
		if n < 330 || n > 570 {
			t.Errorf("bit %d is set in %d of 900 tokens", i, n)
		}
	}
	raw := make([]byte, tokenBytes)
	for range 1_000_000 {
		rand.Read(raw)
		if _, ok := k.take(base64.RawURLEncoding.EncodeToString(raw), kindExec); ok {
			t.Fatal("a token was guessed")
		}
	}
	if len(k.byHash) != 900 {
		t.Errorf("guessing used up %d requests", 900-len(k.byHash))
	}
}
