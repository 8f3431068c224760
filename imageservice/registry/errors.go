package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What can go wrong, for errors.Is.
var (
	ErrNotFound        = errors.New("not found")
	ErrUnauthorized    = errors.New("unauthorized")
	ErrDenied          = errors.New("denied")
	ErrUnavailable     = errors.New("registry unavailable")
	ErrDigestMismatch  = errors.New("content does not match its digest")
	ErrInvalidManifest = errors.New("invalid manifest")
	ErrNoPlatform      = errors.New("no image for this platform")
	ErrConfig          = errors.New("invalid registry configuration")
)

// Error is one thing asked of one host, and why it was not had.
type Error struct {
	Op     string // get manifest a/b:1
	Host   string // host:port that answered, or did not
	Detail string // for people; no secrets
	Err    error  // a sentinel of this package, or what it wraps

	status int           // of the answer; 0 = there was none
	retry  bool          // asking again may help
	after  time.Duration // the host asked for this pause
}

func (e *Error) Error() string {
	s := e.Host
	if e.Op != "" {
		s = e.Op + " from " + e.Host
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// retryable says whether err may go away, and how long its host wants to be left alone (0 = it did not say).
func retryable(err error) (bool, time.Duration) {
	var e *Error
	if errors.As(err, &e) {
		return e.retry, e.after
	}
	return false, 0
}

// statusError makes an error of an answer, and reads and closes its body. What the registry says is left out if secret finds a secret in it.
func statusError(resp *http.Response, secret func(text string) bool) *Error {
	defer resp.Body.Close()
	e := &Error{Host: resp.Request.URL.Host, status: resp.StatusCode, Detail: fmt.Sprintf("status %d", resp.StatusCode), Err: ErrUnavailable}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil {
		// The whole text is looked at: cut short, it may show the beginning of a secret that is then no longer found.
		if text := specError(raw); text != "" && !secret(text) {
			e.Detail += ", " + printable(text)
		}
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		e.Err = ErrNotFound
	case code == http.StatusUnauthorized:
		e.Err = ErrUnauthorized
	case code == http.StatusForbidden:
		e.Err = ErrDenied
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		e.retry = code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported
		e.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return e
}

// foreignError makes an error of an answer that came from somewhere else than the endpoint, after a redirect. Nothing of
// its body is shown: it may be of a service that only this machine can reach. It says nothing about the image either, and a
// new redirect may lead to a better place or carry a signature that is still good.
func foreignError(resp *http.Response) *Error {
	discard(resp)
	return &Error{
		Host: resp.Request.URL.Host, Detail: fmt.Sprintf("status %d after a redirect", resp.StatusCode), Err: ErrUnavailable,
		status: resp.StatusCode, retry: true, after: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
}

// specError reads the distribution-spec's error body: its first code and message, which are hostile.
func specError(raw []byte) string {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &body) != nil || len(body.Errors) == 0 {
		return ""
	}
	return strings.TrimSpace(body.Errors[0].Code + " " + body.Errors[0].Message)
}

// printable keeps the printable ASCII of a hostile text, without what looks like the query of a URL or a key's value.
func printable(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s)
	words := strings.Fields(s)
	for i, w := range words {
		if strings.Contains(w, "://") {
			w = redactURL(w)
		}
		w, _, _ = strings.Cut(w, "?")
		if key, _, ok := strings.Cut(w, "="); ok {
			w = key + "=..."
		}
		if i > 0 && (strings.EqualFold(words[i-1], "bearer") || strings.EqualFold(words[i-1], "basic")) {
			w = "..."
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

// redactURL leaves scheme, host and path.
func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		before, _, _ := strings.Cut(s, "://")
		return before + "://..."
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// netError makes an error of a request that got no answer. The URL of the request, and with it its query, is not in it.
func netError(host string, err error) *Error {
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return &Error{Host: host, Err: fmt.Errorf("%w: %w", ErrUnavailable, err), retry: transient(err)}
}

// hostsError is what all endpoints said. The last one, the registry itself, decides what the error is.
type hostsError struct {
	all []error
}

func (e *hostsError) Error() string {
	texts := make([]string, 0, len(e.all))
	for _, err := range e.all {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (e *hostsError) Unwrap() error { return e.all[len(e.all)-1] }
