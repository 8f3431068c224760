package registrytest

import (
	"net/http"
	"strings"
	"time"
)

// Cut says how a body ends before its time.
type Cut int

// The ways to end a body at Fault.At.
const (
	NoCut    Cut = iota
	Reset        // TCP RST
	Stall        // nothing more, until the client goes or Fault.Delay has passed, then the rest
	Truncate     // an orderly end, with a Content-Length that fits: a short body
	Corrupt      // the byte at At is flipped, the length stays
)

// Fault is one way to misbehave, for the requests that it matches. Zero fields change nothing.
type Fault struct {
	Method string // "" = any
	Path   string // part of the URL path, for example "/blobs/sha256:ab" or "/manifests/latest"; "" = any
	Skip   int    // leave the first N matching requests alone
	Times  int    // apply to N requests; 0 = all

	Wait   time.Duration // before the headers
	Status int           // answer with this status, Header and Body, without the content
	Header http.Header   // added to (in place of) the headers of any answer
	Body   []byte

	Redirect     string // 307 to this URL
	RedirectHost string // 307 to this base URL, followed by the path of the request

	Cut   Cut
	At    int64         // byte of the whole blob (not of the range) at which Cut happens
	Delay time.Duration // length of a Stall; 0 = until the client goes

	Pace   Pace
	Quirks Quirk
}

// Pace serves a body in pieces, with a pause after each. The zero value is full speed.
type Pace struct {
	Size  int // bytes
	Every time.Duration
}

// Quirk is a set of small lies, to be combined with |.
type Quirk int

// The quirks.
const (
	IgnoreRange Quirk = 1 << iota // answer 200 with the whole blob to a Range request
	WrongRange                    // answer 206 with a range that starts one byte early
	ShortRange                    // answer 206 with half of what was asked for
	LongRange                     // answer 206 with all of the rest
	SpoilRange                    // answer 206 with the range that was asked for and a wrong first byte, but not at the beginning
	NoLength                      // no Content-Length: chunked
	Endless                       // after the blob, zeros without end; also no length
)

func (f *Fault) matches(r *http.Request) bool {
	return (f.Method == "" || f.Method == r.Method) && (f.Path == "" || strings.Contains(r.URL.Path, f.Path))
}

// scripted is a Fault with its counters.
type scripted struct {
	Fault
	seen, done int
}

// AddFault adds a fault. The first added fault that matches a request and is not used up applies.
func (reg *Registry) AddFault(f Fault) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.faults = append(reg.faults, &scripted{Fault: f})
}

// ClearFaults makes the registry behave again.
func (reg *Registry) ClearFaults() {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.faults = nil
}

func (reg *Registry) fault(r *http.Request) Fault {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, s := range reg.faults {
		if !s.matches(r) {
			continue
		}
		s.seen++
		if s.seen <= s.Skip || s.Times > 0 && s.done >= s.Times {
			continue
		}
		s.done++
		return s.Fault
	}
	return Fault{}
}
