package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/imageservice/reference"
)

const userAgent = "berth"

// errRefused is what berth itself would not do.
var errRefused = errors.New("refused")

// errStalled is the cause of a context that a watchdog ended.
var errStalled = errors.New("no progress")

// endpoint is one place to ask for one repository, for the time of one pull.
type endpoint struct {
	spec       hostSpec
	repository string
	query      string // ns=HOST for mirrors, as containerd tells them
	tr         transports
	auth       *authorizer
	stall      stallRule

	guess sync.Mutex // held while the scheme is found out; before mu, which nobody holds over the network

	mu       sync.Mutex
	base     *url.URL // guarded by mu while guessing
	guessing bool     // guarded by mu: the scheme of a loopback registry is not known yet
	slow     bool     // guarded by mu: it let its turn pass; ask it last
	use      use      // guarded by mu
}

// stallRule is when a connection counts as dead: fewer than bytes in window, counting only the time spent waiting.
type stallRule struct {
	window time.Duration
	bytes  int64
}

func (e *endpoint) host() string { return e.url().Host }

func (e *endpoint) url() *url.URL {
	base, _ := e.place()
	return base
}

// get is one GET.
type get struct {
	op     string        // for errors
	path   string        // below the repository: manifests/TAG, blobs/DIGEST
	header http.Header   // Accept, Range
	wait   time.Duration // for the headers
}

// answer is a 2xx answer. Its body must be closed.
type answer struct {
	*http.Response
	foreign bool // it came from somewhere else than the endpoint
}

// open sends a GET, with authentication and redirects as they come, and returns the answer if it is 200 or 206. Errors
// are *Error, or ctx's.
func (e *endpoint) open(ctx context.Context, g get) (answer, error) {
	a, err := e.try(ctx, g)
	if err == nil || ctx.Err() != nil {
		return a, err
	}
	var re *Error
	if !errors.As(err, &re) {
		re = &Error{Host: e.host(), Err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
	}
	if re.Op == "" || re.Op == g.op {
		re.Op = g.op
	} else {
		re = &Error{Op: g.op, Host: e.host(), Err: re, status: re.status, retry: re.retry, after: re.after}
	}
	return answer{}, re
}

func (e *endpoint) try(ctx context.Context, g get) (answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(g.wait, func() { cancel(errStalled) })
	a, err := e.authorized(ctx, g)
	timer.Stop()
	if err != nil {
		if context.Cause(ctx) == errStalled {
			err = &Error{Host: e.host(), Detail: fmt.Sprintf("no answer in %v", g.wait),
				Err: fmt.Errorf("%w: %w", ErrUnavailable, errStalled), retry: true}
		}
		cancel(nil)
		return answer{}, err
	}
	a.Body = &watchedBody{body: a.Body, ctx: ctx, cancel: cancel, rule: e.stall}
	if encoding := a.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		a.Body.Close()
		return answer{}, &Error{Host: e.host(), Detail: "Content-Encoding on content that is named by its digest", Err: ErrUnavailable}
	}
	return a, nil
}

// authorized answers one challenge, when there is one.
func (e *endpoint) authorized(ctx context.Context, g get) (answer, error) {
	for attempt := 0; ; attempt++ {
		header, number, err := e.auth.current(ctx)
		if err != nil {
			return answer{}, err
		}
		a, err := e.guessed(ctx, g, header)
		if err != nil {
			return answer{}, err
		}
		switch {
		case a.StatusCode == http.StatusOK || a.StatusCode == http.StatusPartialContent:
			return a, nil
		case a.foreign:
			return answer{}, foreignError(a.Response)
		case a.StatusCode != http.StatusUnauthorized || attempt > 0:
			return answer{}, statusError(a.Response, func(text string) bool { return e.repeatsSecret(text, header) })
		}
		challenges := a.Header.Values("WWW-Authenticate")
		discard(a.Response)
		if err := e.renew(ctx, challenges, number); err != nil {
			return answer{}, err
		}
	}
}

// repeatsSecret says whether a registry's words hold something that it should keep to itself.
func (e *endpoint) repeatsSecret(text, header string) bool {
	secrets := []string{header}
	if c := e.auth.cred; c != nil {
		secrets = append(secrets, c.Password, c.IdentityToken, c.RegistryToken, c.pair())
	}
	for _, values := range e.spec.header {
		secrets = append(secrets, values...)
	}
	return slices.ContainsFunc(secrets, func(s string) bool {
		s = strings.TrimPrefix(strings.TrimPrefix(s, "Bearer "), "Basic ")
		return s != "" && strings.Contains(text, s)
	})
}

// guessed finds out the scheme of a loopback registry with the first request: plain HTTP, or HTTPS where that does not
// work. No credentials have been sent by then.
func (e *endpoint) guessed(ctx context.Context, g get, header string) (answer, error) {
	base, guessing := e.place()
	if guessing {
		e.guess.Lock()
		defer e.guess.Unlock()
		base, guessing = e.place() // another one may have been quicker
	}
	if !guessing {
		return e.follow(ctx, base, g, header)
	}
	a, err := e.follow(ctx, base, g, header)
	var op *net.OpError
	if ctx.Err() != nil || errors.As(err, &op) && op.Op == "dial" {
		return a, err
	}
	if err == nil && a.StatusCode != http.StatusBadRequest {
		e.settle(base)
		return a, nil
	}
	secure := *base
	secure.Scheme = "https"
	b, errTLS := e.follow(ctx, &secure, g, header)
	var certificate *tls.CertificateVerificationError
	if errTLS != nil && !errors.As(errTLS, &certificate) {
		e.settle(base)
		return a, err // it does not speak TLS either
	}
	if err == nil {
		discard(a.Response)
	}
	e.settle(&secure)
	return b, errTLS
}

func (e *endpoint) place() (base *url.URL, guessing bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.base, e.guessing
}

// settle ends the guessing.
func (e *endpoint) settle(base *url.URL) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.base, e.guessing = base, false
}

// follow sends the request to base and to wherever it is redirected, at most maxRedirects times.
func (e *endpoint) follow(ctx context.Context, base *url.URL, g get, header string) (answer, error) {
	u := *base
	u.Path += "/" + e.repository + "/" + g.path
	u.RawQuery = e.query
	home := origin(base)
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return answer{}, &Error{Host: u.Host, Err: fmt.Errorf("%w: malformed address", errRefused)}
		}
		for k, v := range g.header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", userAgent)
		foreign := origin(&u) != home
		transport := e.tr.foreign
		if !foreign {
			transport = e.tr.own
			for k, v := range e.spec.header {
				req.Header[k] = v
			}
			if header != "" {
				req.Header.Set("Authorization", header)
			}
		}
		resp, err := send(transport, req)
		if err != nil {
			return answer{}, netError(u.Host, err)
		}
		location := resp.Header.Get("Location")
		if !isRedirect(resp.StatusCode) || location == "" {
			return answer{Response: resp, foreign: foreign}, nil
		}
		discard(resp)
		next, err := u.Parse(location)
		if err != nil {
			return answer{}, &Error{Host: u.Host, Detail: "malformed redirect", Err: ErrUnavailable}
		}
		if err := e.mayFollow(&u, next); err != nil {
			return answer{}, err
		}
		u = *next
	}
	return answer{}, &Error{Host: e.spec.base.Host, Detail: fmt.Sprintf("more than %d redirects", maxRedirects), Err: ErrUnavailable}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// mayFollow says whether a redirect is one that berth goes after. Plain HTTP is not, unless the endpoint itself was
// written down as plain HTTP, or everything happens on loopback.
func (e *endpoint) mayFollow(from, to *url.URL) error {
	refuse := func(why string) error {
		return &Error{Host: from.Host, Detail: "redirect to " + printable(to.Scheme+"://"+to.Host) + ": " + why,
			Err: fmt.Errorf("%w: %w", ErrUnavailable, errRefused)}
	}
	switch {
	case to.User != nil:
		return refuse("it has a user part")
	case to.Scheme == "https":
		return nil
	case to.Scheme != "http":
		return refuse("it is not http or https")
	case from.Scheme == "https":
		return refuse("it leaves https")
	case e.spec.guess && !reference.IsLoopback(to.Host):
		return refuse("plain http to another host needs a hosts.toml")
	}
	return nil
}

// discard reads a little of a body that nobody wants, so that its connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // an error here is one of a connection that is given up anyway
	resp.Body.Close()
}

// watchedBody ends a body that makes no progress. Only the time inside Read counts: a slow disk is not the registry's
// fault.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	rule   stallRule

	waited time.Duration
	got    int64
	timer  *time.Timer
}

func (b *watchedBody) Read(p []byte) (int, error) {
	left := b.rule.window - b.waited
	if b.timer == nil {
		b.timer = time.AfterFunc(left, func() { b.cancel(errStalled) })
	} else {
		b.timer.Reset(left)
	}
	start := time.Now()
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.waited += time.Since(start)
	if b.got += int64(n); b.got >= b.rule.bytes {
		b.got, b.waited = 0, 0
	}
	if err != nil && err != io.EOF && context.Cause(b.ctx) == errStalled {
		err = fmt.Errorf("fewer than %d bytes in %v: %w", b.rule.bytes, b.rule.window, errStalled)
	} else if err != nil && err != io.EOF && b.ctx.Err() == nil {
		err = unquoted(err) // of a chunk or a trailer
	}
	return n, err
}

func (b *watchedBody) Close() error {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.cancel(nil) // first: Close of an HTTP/1 body would otherwise wait for more of it
	return b.body.Close()
}
