package registry

import (
	"context"
	"errors"
)

// use is what came of asking an endpoint during one pull.
type use struct {
	answers, failures int
	bytes             int64  // of blobs
	failure           string // the last one
}

// Endpoint tells of one place that a pull may ask, and what came of it.
type Endpoint struct {
	URL          string   `json:"url"`
	Source       string   `json:"source"` // the file that names it, or why there is none
	Capabilities []string `json:"capabilities"`
	Credentials  string   `json:"credentials"` // none were given, "if asked", or withheld: they are not meant for it
	TLS          []string `json:"tls,omitempty"`
	Answers      int      `json:"answers"`
	Failures     int      `json:"failures"`
	Bytes        int64    `json:"bytes"`
	Failure      string   `json:"failure,omitempty"` // the last one
	Slow         bool     `json:"slow,omitempty"`    // it let its turn pass, and is asked last
}

// Endpoints tells of all places of the repository, in the order in which they are asked.
func (s *Source) Endpoints() []Endpoint {
	out := make([]Endpoint, 0, len(s.endpoints))
	for _, e := range s.endpoints {
		e.mu.Lock()
		out = append(out, Endpoint{
			URL: redactURL(e.base.String()), Source: e.spec.source, Capabilities: e.spec.caps.names(), TLS: e.spec.tlsFacts(),
			Credentials: s.showing(e), Answers: e.use.answers, Failures: e.use.failures, Bytes: e.use.bytes, Failure: e.use.failure, Slow: e.slow,
		})
		e.mu.Unlock()
	}
	return out
}

// showing says whether an endpoint gets to see the pull's credentials if it asks.
func (s *Source) showing(e *endpoint) string {
	switch {
	case e.auth.cred != nil:
		return "if asked"
	case s.anonymous:
		return "none"
	}
	return "withheld"
}

func (c capability) names() (names []string) {
	if c&canPull != 0 {
		names = append(names, "pull")
	}
	if c&canResolve != 0 {
		names = append(names, "resolve")
	}
	return names
}

// tlsFacts are what a hosts.toml says beyond the address.
func (spec hostSpec) tlsFacts() (facts []string) {
	if len(spec.ca) > 0 {
		facts = append(facts, "ca")
	}
	if len(spec.client) > 0 {
		facts = append(facts, "client certificate")
	}
	if spec.skipVerify {
		facts = append(facts, "not verified")
	}
	return facts
}

func (e *endpoint) isSlow() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.slow
}

func (e *endpoint) setSlow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slow = true
}

// asked notes how a request ended.
func (e *endpoint) asked(err error) error {
	switch {
	case err == nil:
		e.mu.Lock()
		defer e.mu.Unlock()
		e.use.answers++
	case !errors.Is(err, context.Canceled) && !errors.Is(err, errNoRange):
		e.note(err)
	}
	return err
}

// note notes that a request, or the connection of an answer, failed.
func (e *endpoint) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.use.failures++
	e.use.failure = err.Error()
}

// count notes bytes of blobs.
func (e *endpoint) count(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.use.bytes += int64(n)
}
