package registrytest

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// ServeHTTP is the pull half of the distribution-spec, and the token server.
func (reg *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := reg.serving.Add(1)
	defer reg.serving.Add(-1)
	reg.mu.Lock()
	reg.most.Store(max(reg.most.Load(), now))
	reg.requests = append(reg.requests, Request{
		Time: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Header: r.Header.Clone(),
	})
	reg.mu.Unlock()
	f := reg.fault(r)
	if !reg.pause(r, f.Wait) {
		return
	}
	if f.RedirectHost != "" {
		f.Redirect = f.RedirectHost + r.URL.RequestURI()
	}
	switch {
	case f.Redirect != "":
		setAll(w.Header(), f.Header)
		w.Header().Set("Location", f.Redirect)
		w.WriteHeader(http.StatusTemporaryRedirect)
	case f.Status != 0:
		setAll(w.Header(), f.Header)
		w.WriteHeader(f.Status)
		_, _ = w.Write(f.Body) // the client may have gone
	case r.URL.Path == "/token":
		reg.serveToken(w, r)
	case r.URL.Path == "/v2/" || r.URL.Path == "/v2":
		if reg.authorized(w, r, "") {
			setAll(w.Header(), f.Header)
		}
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		reg.serveContent(w, r, f)
	default:
		writeError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read only")
	}
}

func (reg *Registry) serveContent(w http.ResponseWriter, r *http.Request, f Fault) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if repo, ref, found := cutLast(path, "/manifests/"); ok && found {
		if !reg.authorized(w, r, repo) {
			return
		}
		reg.mu.Lock()
		m, ok := reg.manifests[repo+"/"+ref]
		reg.mu.Unlock()
		if !ok {
			writeError(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.raw).String())
		reg.serveBytes(w, r, m.raw, f)
		return
	}
	repo, ref, found := cutLast(path, "/blobs/")
	if !ok || !found {
		writeError(w, http.StatusNotFound, "NAME_UNKNOWN", "no such page")
		return
	}
	if !reg.authorized(w, r, repo) {
		return
	}
	reg.mu.Lock()
	blob, ok := reg.blobs[digest.Digest(ref)]
	reg.mu.Unlock()
	if !ok {
		writeError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	reg.serveBytes(w, r, blob, f)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// serveBytes answers with data, or the range asked for, as f says.
func (reg *Registry) serveBytes(w http.ResponseWriter, r *http.Request, data []byte, f Fault) {
	if f.Cut == Truncate && f.At < int64(len(data)) {
		data = data[:f.At]
	}
	if f.Cut == Corrupt && f.At < int64(len(data)) {
		data = append([]byte(nil), data...)
		data[f.At] ^= 0xff
	}
	start, status := int64(0), http.StatusOK
	w.Header().Set("Accept-Ranges", "bytes")
	if spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && f.Quirks&IgnoreRange == 0 {
		from, to, _ := strings.Cut(spec, "-")
		n, err := strconv.ParseInt(from, 10, 64)
		last, errLast := strconv.ParseInt(to, 10, 64)
		if to == "" || last >= int64(len(data)) {
			last, errLast = int64(len(data))-1, nil
		}
		if err != nil || errLast != nil || n < 0 || n > last {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if f.Quirks&WrongRange != 0 && n > 0 {
			n--
		}
		if f.Quirks&ShortRange != 0 {
			last = n + (last-n)/2
		}
		if f.Quirks&LongRange != 0 {
			last = int64(len(data)) - 1
		}
		start, status = n, http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, last, len(data)))
		data = data[:last+1]
		if f.Quirks&SpoilRange != 0 && n > 0 {
			data = append([]byte(nil), data...)
			data[n] ^= 0xff
		}
	}
	if f.Quirks&(NoLength|Endless) == 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(int64(len(data))-start, 10))
	}
	setAll(w.Header(), f.Header)
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if f.Quirks&(NoLength|Endless) != 0 {
		_ = http.NewResponseController(w).Flush() // net/http gives a short body its length otherwise
	}
	reg.sendBody(w, r, body{data: data, at: start}, f)
}

// body is data of which everything before at has been sent.
type body struct {
	data []byte
	at   int64
}

func (reg *Registry) sendBody(w http.ResponseWriter, r *http.Request, b body, f Fault) {
	stop := int64(len(b.data))
	if f.Cut == Reset || f.Cut == Stall {
		stop = min(stop, max(f.At, b.at))
	}
	if !reg.send(w, r, b.data[b.at:stop], f) {
		return
	}
	switch f.Cut {
	case Reset:
		if f.At >= b.at {
			resetConnection(w)
			return
		}
		stop = b.at
	case Stall:
		if f.At >= b.at {
			_ = http.NewResponseController(w).Flush()
			if f.Delay == 0 {
				f.Delay = 365 * 24 * time.Hour
			}
			if !reg.pause(r, f.Delay) {
				return
			}
		}
	}
	if !reg.send(w, r, b.data[stop:], f) {
		return
	}
	for zeros := make([]byte, 32<<10); f.Quirks&Endless != 0; {
		if _, err := w.Write(zeros); err != nil {
			return
		}
	}
}

// send writes data, in pieces if f says so, and reports whether the client is still there.
func (reg *Registry) send(w http.ResponseWriter, r *http.Request, data []byte, f Fault) bool {
	piece := len(data)
	if f.Pace.Size > 0 {
		piece = f.Pace.Size
	}
	for len(data) > 0 {
		n := min(piece, len(data))
		if _, err := w.Write(data[:n]); err != nil {
			return false
		}
		data = data[n:]
		if f.Pace.Every > 0 {
			_ = http.NewResponseController(w).Flush()
			if !reg.pause(r, f.Pace.Every) {
				return false
			}
		}
	}
	return true
}

// pause waits for d and reports whether client and registry are still there.
func (reg *Registry) pause(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
	case <-reg.closed:
	}
	return false
}

// resetConnection makes the kernel send RST instead of FIN.
func resetConnection(w http.ResponseWriter) {
	control := http.NewResponseController(w)
	_ = control.Flush() // the client may have gone
	conn, _, err := control.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	raw := conn
	if t, ok := conn.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // without it the close is an orderly one, which tests a little less
	}
	_ = raw.Close()
}

func setAll(dst, src http.Header) {
	for k, v := range src {
		dst[http.CanonicalHeaderKey(k)] = v
	}
}
