package streaming_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
)

// counted counts the commands that run.
type counted struct {
	*streamingtest.Fake
	running atomic.Int32
}

func (c *counted) Exec(ctx context.Context, containerID string, args []string, s sandbox.Streams) (int32, error) {
	c.running.Add(1)
	defer c.running.Add(-1)
	return c.Fake.Exec(ctx, containerID, args, s)
}

// TestClientLeavesBehindFullBuffers: a client that has sent more than the command and the kernel take, and leaves. Its kernel cannot say that it
// is gone as long as there is no room for what it has sent.
func TestClientLeavesBehindFullBuffers(t *testing.T) {
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket, streamclient.Base64} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			runtime := &counted{Fake: streamingtest.NewFake()}
			s := serve(t, streaming.Config{Runtime: runtime})
			p := streaming.Process{ContainerID: "c", Cmd: []string{"sleep", "600"}, Stdin: true, Stdout: true}
			url, err := s.Exec(p)
			if err != nil {
				t.Fatal(err)
			}
			session, err := streamclient.Open(t.Context(), url, transport, streamclient.Process{Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			var sent atomic.Int64
			go func() {
				for {
					n, err := session.Stdin.Write(make([]byte, 30000))
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
			for last := int64(-1); last != sent.Load(); time.Sleep(500 * time.Millisecond) {
				last = sent.Load()
			}
			t.Logf("%d KiB fit", sent.Load()>>10)
			session.Vanish()
			streamingtest.Eventually(t, func() bool { return runtime.running.Load() == 0 }, "the command runs on without its client")
		})
	}
}

// TestOutputWhileTheInputIsStuck: what is sent to a client whose input nobody reads, to find out whether it is there, does not disturb it.
func TestOutputWhileTheInputIsStuck(t *testing.T) {
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket, streamclient.V4, streamclient.Base64} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			s := serve(t, streaming.Config{})
			url, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: []string{"sh", "-c", "sleep 4; echo here; exit 7"}, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			session, err := streamclient.Open(t.Context(), url, transport, streamclient.Process{Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			go func() {
				for {
					if _, err := session.Stdin.Write(make([]byte, 30000)); err != nil {
						return
					}
				}
			}()
			out := make([]byte, 100)
			if n, err := session.Stdout.Read(out); err != nil || string(out[:n]) != "here\n" {
				t.Errorf("read %q, %v", out[:n], err)
			}
			if code, err := session.Wait(); code != 7 || err != nil {
				t.Errorf("exit code %d, %v", code, err)
			}
		})
	}
}
