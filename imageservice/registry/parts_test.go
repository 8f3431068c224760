package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/wait"
)

// chunked has chunks of half a MiB, and the patience of a machine that is busy.
var chunked = func() Config { c := patient; c.ChunkSize = 512 << 10; return c }()

const bigSize = 6<<20 + 12345

// bigBlob puts a blob of bigSize into the registry.
func bigBlob(t *testing.T, reg *registrytest.Registry) (Descriptor, []byte) {
	t.Helper()
	raw := noise(bigSize)
	return Descriptor{Digest: reg.PutBlob(raw), Size: int64(len(raw))}, raw
}

// atRest fails the test unless all of a source's budget was given back.
func atRest(t *testing.T, s *Source) {
	t.Helper()
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if n := len(s.budget.connections) + len(s.own); n != 0 || s.budget.bytes != s.config.MaxBuffered {
		t.Errorf("%d connections and %d of %d bytes were not given back", n, s.config.MaxBuffered-s.budget.bytes, s.config.MaxBuffered)
	}
}

// ranges counts the requests for parts of a blob.
func ranges(reg *registrytest.Registry, d digest.Digest) (n int) {
	for _, r := range reg.Requests() {
		if strings.HasSuffix(r.Path, d.String()) && r.Header.Get("Range") != "" {
			n++
		}
	}
	return n
}

func TestBigBlobsComeInChunks(t *testing.T) {
	const chunks = bigSize/(512<<10) + 1
	for _, tc := range []struct {
		name        string
		faults      []registrytest.Fault
		least, most int // Range requests
		again       bool
		stalls      bool
	}{
		{name: "all well", least: chunks, most: chunks},
		{name: "no ranges", faults: []registrytest.Fault{{Quirks: registrytest.IgnoreRange}}, least: 1, most: 1},
		{name: "no ranges from the third request on", faults: []registrytest.Fault{{Skip: 2, Quirks: registrytest.IgnoreRange}}, least: 3, most: 3 * chunks},
		{name: "refuses ranges", faults: []registrytest.Fault{{Times: 1, Status: 400}}, least: 1, most: 1},
		{name: "a range that starts early", faults: []registrytest.Fault{{Quirks: registrytest.WrongRange}}, least: 2, most: 3 * chunks},
		{name: "half of each range", faults: []registrytest.Fault{{Quirks: registrytest.ShortRange}}, least: chunks, most: 100 * chunks},
		{name: "all of the rest", faults: []registrytest.Fault{{Quirks: registrytest.LongRange}}, least: 1, most: chunks},
		{name: "resets", faults: []registrytest.Fault{
			{Cut: registrytest.Reset, At: 100_000, Times: 1}, {Cut: registrytest.Reset, At: 1_000_000, Times: 4}, {Cut: registrytest.Reset, At: 6 << 20, Times: 2},
		}, least: chunks, most: 3 * chunks},
		{name: "a stall", faults: []registrytest.Fault{{Cut: registrytest.Stall, At: 100_000, Times: 1}}, least: 3, most: 2 * chunks, stalls: true},
		{name: "without lengths", faults: []registrytest.Fault{{Quirks: registrytest.NoLength}}, least: chunks, most: chunks},
		{name: "too many requests", faults: []registrytest.Fault{{Skip: 2, Times: 3, Status: 429, Header: http.Header{"Retry-After": {"0"}}}}, least: 3, most: 3 * chunks},
		{name: "too many requests, for a second", faults: []registrytest.Fault{{Skip: 2, Times: 3, Status: 503, Header: http.Header{"Retry-After": {"1"}}}}, least: 3, most: 3 * chunks},
		{name: "errors", faults: []registrytest.Fault{{Skip: 1, Times: 3, Status: 500}}, least: 3, most: 3 * chunks},
		{name: "another ETag and the same bytes", faults: []registrytest.Fault{
			{Times: 2, Header: http.Header{"ETag": {`"a"`}}}, {Header: http.Header{"ETag": {`"b"`}}},
		}, least: 3, most: 2 * chunks},
		{name: "ranges with wrong bytes", faults: []registrytest.Fault{{Quirks: registrytest.SpoilRange}}, least: chunks, most: chunks, again: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, registrytest.Options{})
			desc, want := bigBlob(t, reg)
			for _, f := range tc.faults {
				f.Path = desc.Digest.String()
				reg.AddFault(f)
			}
			config := chunked
			if tc.stalls {
				config.StallTimeout = 2 * time.Second
			}
			s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
			r := s.Blob(t.Context(), desc)
			got, err := io.ReadAll(r)
			r.Close()
			if tc.again && (err == nil || !s.HasOther(desc, err)) {
				t.Fatalf("%v, want wrong bytes that may be asked for in one piece", err)
			}
			n := ranges(reg, desc.Digest)
			if tc.again {
				got, err = s.Fetch(t.Context(), desc)
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, error %v", len(got), err)
			}
			if n < tc.least || n > tc.most {
				t.Errorf("%d requests for ranges, want %d to %d", n, tc.least, tc.most)
			}
			atRest(t, s)
		})
	}
}

// TestRefusedChunkIsLeftAlone: a host that wants a pause when it is asked for a chunk ahead is not asked again before that is over.
func TestRefusedChunkIsLeftAlone(t *testing.T) {
	t.Parallel()
	reg := start(t, registrytest.Options{})
	desc, want := bigBlob(t, reg)
	path := desc.Digest.String()
	reg.AddFault(registrytest.Fault{Path: path, Times: 1, Pace: registrytest.Pace{Size: 64 << 10, Every: 50 * time.Millisecond}}) // so that there is a second one
	reg.AddFault(registrytest.Fault{Path: path, Times: 1, Status: 503, Header: http.Header{"Retry-After": {"2"}}})
	s := open(t, chunked, reg.Host()+"/a/b:1", Credentials{})
	if got, err := s.Fetch(t.Context(), desc); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	first := func(r registrytest.Request) string { // the byte that it asks for first
		first, _, _ := strings.Cut(r.Header.Get("Range"), "-")
		return first
	}
	refused := reg.Requests()[1]
	for _, r := range reg.Requests()[2:] {
		if after := r.Time.Sub(refused.Time); first(r) == first(refused) && after < 2*time.Second {
			t.Errorf("%s is asked for %v after it was refused", r.Header.Get("Range"), after)
		}
	}
	atRest(t, s)
}

func TestChunksThatAreWrongAreNeverTaken(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
		want  error
	}{
		{"flipped byte", registrytest.Fault{Cut: registrytest.Corrupt, At: 3_000_000}, ErrDigestMismatch},
		{"short", registrytest.Fault{Cut: registrytest.Truncate, At: 3_000_000}, ErrDigestMismatch},
		{"endless", registrytest.Fault{Quirks: registrytest.Endless | registrytest.IgnoreRange}, ErrDigestMismatch},
		{"gone", registrytest.Fault{Status: 404}, ErrNotFound},
		{"gone after some", registrytest.Fault{Skip: 3, Status: 404}, ErrNotFound},
		{"down after some", registrytest.Fault{Skip: 3, Status: 503}, ErrUnavailable},
		{"drips", registrytest.Fault{Skip: 2, Pace: registrytest.Pace{Size: 1, Every: 20 * time.Millisecond}}, ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, registrytest.Options{})
			desc, _ := bigBlob(t, reg)
			f := tc.fault
			f.Path = desc.Digest.String()
			reg.AddFault(f)
			config := chunked
			if tc.fault.Pace.Size > 0 {
				config.StallTimeout = 400 * time.Millisecond
			}
			s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
			if _, err := s.Fetch(t.Context(), desc); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			atRest(t, s)
		})
	}
}

// TestOthersAreFetchedWhileTheFirstChunkStalls: a blob comes over several connections at once, so one that never gets on holds up no other.
func TestOthersAreFetchedWhileTheFirstChunkStalls(t *testing.T) {
	reg := start(t, registrytest.Options{})
	desc, _ := bigBlob(t, reg)
	reg.AddFault(registrytest.Fault{Path: desc.Digest.String(), Times: 1, Cut: registrytest.Stall, At: 400_000})
	config := chunked
	config.StallTimeout = time.Hour
	s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Fetch(ctx, desc)
		done <- err
	}()
	// Three others are under way beside it, and when they are there three more, as memory allows.
	eventually(t, "more chunks are asked for", func() bool { return ranges(reg, desc.Digest) >= 7 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	atRest(t, s)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !wait.Until(20*time.Second, 5*time.Millisecond, ok) {
		t.Fatalf("%s: not in 20 s", what)
	}
}

func TestMemoryOfChunksIsBounded(t *testing.T) {
	reg := start(t, registrytest.Options{})
	desc, want := bigBlob(t, reg)
	// The reader waits long for each piece: more would be fetched ahead than there is memory for.
	reg.AddFault(registrytest.Fault{Path: "/blobs/", Pace: registrytest.Pace{Size: 250_000, Every: 2 * longWait}})
	config := chunked
	config.MaxBuffered = 1 << 20 // two chunks
	s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
	r := s.Blob(t.Context(), desc)
	defer r.Close()
	var got bytes.Buffer
	least := config.MaxBuffered
	for {
		n, err := io.CopyN(&got, r, 300_000)
		s.budget.mu.Lock()
		least = min(least, s.budget.bytes)
		s.budget.mu.Unlock()
		if err == io.EOF {
			break
		}
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, not those that were put there", got.Len())
	}
	if least != 0 {
		t.Errorf("%d bytes were left of the budget, want all used and no more", least)
	}
	r.Close()
	atRest(t, s)
}

func TestConnectionsOfAllPullsAreBounded(t *testing.T) {
	reg := start(t, registrytest.Options{})
	desc, _ := bigBlob(t, reg)
	reg.AddFault(registrytest.Fault{Path: "/blobs/", Pace: registrytest.Pace{Size: 100_000, Every: time.Millisecond}})
	config := chunked
	config.MaxConnections, config.StallTimeout = 2, time.Minute
	client := New(config)
	const pulls = 3
	errs := make(chan error, 2*pulls)
	for i := range pulls {
		s, err := client.Open(parseRef(t, fmt.Sprintf("%s/a/b%d:1", reg.Host(), i)), Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 2 {
			go func() {
				_, err := s.Fetch(t.Context(), desc)
				errs <- err
			}()
		}
	}
	for range 2 * pulls {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// The registry may still be at the end of an answer that was read. Without a bound there would be 24.
	if most := reg.MostAtOnce(); most > 2*(pulls+2) {
		t.Errorf("%d requests at once from at most %d connections", most, pulls+2)
	}
}

func TestBudget(t *testing.T) {
	b := newBudget(Config{MaxConnections: 1, MaxBuffered: 10})
	if !b.takeAhead(4) || b.takeAhead(4) {
		t.Error("one connection is not one")
	}
	b.giveConnection()
	if b.takeAhead(7) || !b.takeAhead(6) {
		t.Error("10 bytes are not 10")
	}
	b.giveConnection()
	b.giveBytes(6)
	if !b.takeAhead(6) {
		t.Error("what is given back is not had again")
	}
}

// TestASlowPullLeavesConnectionsToOthers: a pull that has all connections of the budget, and gets nowhere, keeps no other pull from its own.
func TestASlowPullLeavesConnectionsToOthers(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/a/slow/", Cut: registrytest.Stall, At: 1000})
	config := patient
	config.MaxConnections, config.StallTimeout = 1, time.Hour
	client := New(config)
	desc := Descriptor{Digest: p.Layers[0].Digest, Size: p.Layers[0].Size}
	open := func(repository string) *Source {
		s, err := client.Open(parseRef(t, reg.Host()+"/"+repository+":1"), Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, errs := open("a/slow"), make(chan error, 2)
	for range cap(errs) {
		go func() {
			_, err := slow.Fetch(ctx, desc)
			errs <- err
		}()
	}
	eventually(t, "the slow pull to have its own connection and that of the budget", func() bool { return reg.Count("GET", "/a/slow/") == 2 })
	quick, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := pullAll(quick, open("a/b")); err != nil {
		t.Errorf("another pull: %v", err)
	}
	cancel()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the slow pull: %v", err)
		}
	}
}

func TestBrokenChunksGoOnAtTheNextHost(t *testing.T) {
	mirror, reg := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	desc, want := bigBlob(t, reg)
	bigBlob(t, mirror)
	mirror.AddFault(registrytest.Fault{Path: "/blobs/", Times: 3})
	mirror.AddFault(registrytest.Fault{Path: "/blobs/", Times: 3, Cut: registrytest.Reset, At: 2_300_000})
	mirror.AddFault(registrytest.Fault{Path: "/blobs/", Status: 503})
	config := chunked
	config.HostsDir = hostsDir(t, map[string]string{
		strings.Replace(reg.Host(), ":", "_", 1) + "_/hosts.toml": "server = \"" + reg.URL + "\"\n[host.\"" + mirror.URL + "\"]\n",
	})
	s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
	got, err := s.Fetch(t.Context(), desc)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	all := s.Endpoints()
	if len(all) != 2 || all[0].Bytes == 0 || all[1].Bytes == 0 || all[0].Bytes+all[1].Bytes != bigSize {
		t.Errorf("%+v, want bytes of both, %d in sum", all, bigSize)
	}
	if all[0].Failures == 0 || all[0].Failure == "" || all[1].Failures != 0 {
		t.Errorf("%+v, want failures of the first", all)
	}
	atRest(t, s)
}

func TestCancelEndsAllChunks(t *testing.T) {
	reg := start(t, registrytest.Options{})
	desc, _ := bigBlob(t, reg)
	reg.AddFault(registrytest.Fault{Path: desc.Digest.String(), Skip: 1, Cut: registrytest.Stall, At: 1_000_000})
	config := chunked
	config.StallTimeout = time.Hour
	s := open(t, config, reg.Host()+"/a/b:1", Credentials{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.Fetch(ctx, desc)
		done <- err
	}()
	eventually(t, "chunks are asked for", func() bool { return ranges(reg, desc.Digest) >= 4 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	atRest(t, s)
	if n := reg.Serving(); n != 0 {
		eventually(t, "no connection is left", func() bool { return reg.Serving() == 0 })
	}
}
