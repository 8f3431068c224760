package streaming_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/wait"
)

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Fails when anything of a session stays after its client: a goroutine that waits for a stream which is not read, a connection that nobody closes.
func TestDisconnectsLeaveNothing(t *testing.T) {
	const clients, atOnce = 1500, 8
	fake := streamingtest.NewFake()
	s := serve(t, streaming.Config{Runtime: fake})
	chaos := streamclient.Chaos{Longest: 30 * time.Millisecond,
		Exec: func(_ context.Context, cmd []string, p streamclient.Process) (string, error) {
			return s.Exec(streaming.Process{ContainerID: "c", Cmd: cmd, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal})
		},
		Attach: func(_ context.Context, p streamclient.Process) (string, error) {
			return s.Attach(streaming.Process{ContainerID: "c", Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal})
		}}
	crowd := func(n int) {
		var wg sync.WaitGroup
		for i := range atOnce {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(n), uint64(i)))
				for range n / atOnce {
					if err := chaos.Once(t.Context(), r); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	crowd(80)
	// A client that has left without a word is noticed within a second or two, and one that has begun a request within ten.
	settle := func() (all string, goroutines, files int) {
		last := time.Now()
		for end := time.Now().Add(streamingtest.Limit); time.Now().Before(end) && time.Since(last) < 3*time.Second; time.Sleep(50 * time.Millisecond) {
			text, g := serving()
			if f := descriptors(t); g != goroutines || f != files {
				all, goroutines, files, last = text, g, f, time.Now()
			}
		}
		return all, goroutines, files
	}
	_, goroutines, files := settle()
	begin := time.Now()
	crowd(clients)
	t.Logf("%d clients in %v", clients, time.Since(begin))
	var text string
	var g, f int
	if !wait.Until(2*streamingtest.Limit, 50*time.Millisecond, func() bool {
		text, g = serving()
		f = descriptors(t)
		return g <= goroutines && f <= files+2 && fake.Attached() == 0
	}) {
		t.Errorf("%d goroutines, %d descriptors and %d attached after %d clients; %d and %d before\n%s", g, f, fake.Attached(), clients, goroutines, files, text)
	}
}

// serving are the goroutines that serve clients. Those of the clients are left out: spdystream leaves some behind.
func serving() (text string, n int) {
	var all bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&all, 1)
	for _, stack := range strings.Split(all.String(), "\n\n") {
		if strings.Contains(stack, "berth/cri/streaming.") || strings.Contains(stack, "berth/cri/streaming/streamingtest.") || strings.Contains(stack, "net/http.") {
			_, rest, _ := strings.Cut(stack, "goroutine profile")
			if _, after, ok := strings.Cut(rest, "\n"); ok {
				stack = after
			}
			count, _, _ := strings.Cut(strings.TrimSpace(stack), " ")
			i, _ := strconv.Atoi(count)
			n, text = n+i, text+stack+"\n\n"
		}
	}
	return text, n
}
