package streaming_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/test/streamclient"
)

// Fails when a client that takes the output late, and says something meanwhile (as kubectl does, every five seconds), loses the end of it, or does
// not hear how the command ended.
func TestClientThatTakesTheOutputLate(t *testing.T) {
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			const size = 3000000 // more than a client and its kernel take unasked, and less than both kernels do
			s := serve(t, streaming.Config{})
			ended := filepath.Join(t.TempDir(), "ended")
			u, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero; touch %s; exit 7", size, ended)}, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			session, err := streamclient.Open(t.Context(), u, transport, streamclient.Process{Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(5 * time.Millisecond) { // kernels that take less let it run on
				if _, err := os.Stat(ended); err == nil {
					break
				}
			}
			<-time.After(6 * time.Second)      // longer than anybody waits for a client that has everything
			io.WriteString(session.Stdin, "x") //nolint:errcheck // seen below
			<-time.After(200 * time.Millisecond)
			code := make(chan error, 1)
			go func() {
				c, err := session.Wait()
				if err == nil && c != 7 {
					err = fmt.Errorf("exit code %d", c)
				}
				code <- err
			}()
			if n, err := io.Copy(io.Discard, session.Stdout); n != size || err != nil {
				t.Errorf("%d bytes came, %v; want %d", n, err, size)
			}
			if err := <-code; err != nil {
				t.Errorf("the end of the command: %v", err)
			}
		})
	}
}
