package cri

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/wait"
)

// onDisk is an output of which all but head is in a file.
func onDisk(t *testing.T, head, tail string) sandbox.Output {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tail"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(tail); err != nil {
		t.Fatal(err)
	}
	return sandbox.Output{Head: []byte(head), Tail: f, TailSize: len(tail)}
}

// closes waits until an output's file is closed.
func closes(t *testing.T, name string, o sandbox.Output) {
	t.Helper()
	if !wait.Until(time.Minute, time.Millisecond, func() bool {
		_, err := o.Tail.Stat()
		return errors.Is(err, os.ErrClosed)
	}) {
		t.Fatalf("%s: the file is open a minute after the answer", name)
	}
}

// text is n bytes that differ from place to place.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(time.Duration(i).String())
	}
	return b.String()[:n]
}

func TestExecSyncSendsWhatIsOnDisk(t *testing.T) {
	w := newWorld(t)
	const most = maxExecBytes
	for _, tc := range []struct {
		name               string
		head, tail         int
		stderr, stderrTail int
		code               int32
		wantOut, wantErr   int
	}{
		{name: "stdout", head: 64 << 10, tail: 1, wantOut: 64<<10 + 1},
		{name: "stderr", stderr: 10, stderrTail: pieceSize, code: 3, wantErr: 10 + pieceSize},
		{name: "both, and a code below zero", head: 70000, tail: pieceSize + 1, stderr: 5, stderrTail: 3*pieceSize - 1, code: -1,
			wantOut: 70001 + pieceSize, wantErr: 3*pieceSize + 4},
		{name: "both too much", head: 1, tail: most, stderr: 2, stderrTail: most, wantOut: most / 2, wantErr: most / 2},
		{name: "cut within the head", head: most, tail: 1, stderrTail: most / 2, wantOut: most / 2, wantErr: most / 2},
	} {
		out, errs := text(tc.head+tc.tail), text(tc.stderr + tc.stderrTail + 1)[1:]
		result := sandbox.ExecResult{Stdout: onDisk(t, out[:tc.head], out[tc.head:]), Stderr: onDisk(t, errs[:tc.stderr], errs[tc.stderr:]), ExitCode: tc.code}
		w.sandboxes.exec = result
		r, err := w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}})
		if err != nil || r.GetExitCode() != tc.code || string(r.GetStdout()) != out[:tc.wantOut] || string(r.GetStderr()) != errs[:tc.wantErr] {
			t.Errorf("%s: %d and %d bytes, want %d and %d of what was printed; code %d, %v", tc.name, len(r.GetStdout()), len(r.GetStderr()),
				tc.wantOut, tc.wantErr, r.GetExitCode(), err)
		}
		closes(t, tc.name, result.Stdout)
		closes(t, tc.name, result.Stderr)
	}
}

// TestExecSyncOfASlowClient: one that does not take its answer and gives up, or is gone, keeps nothing; others are answered meanwhile.
func TestExecSyncOfASlowClient(t *testing.T) {
	w := newWorld(t)
	tail := text(4 << 20)
	ask := &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}}
	w.sandboxes.exec = sandbox.ExecResult{Stdout: onDisk(t, "", tail)}
	slow := w.sandboxes.exec.Stdout
	// A stream whose messages nobody asks for takes no more than its window, which stays as it is when it is named.
	conn, err := grpc.NewClient("unix:"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, runtimeapi.RuntimeService_ExecSync_FullMethodName)
	if err == nil {
		err = errors.Join(stream.SendMsg(ask), stream.CloseSend())
	}
	if err == nil {
		_, err = stream.Header() // the answer is on its way
	}
	if err != nil {
		t.Fatal(err)
	}
	w.sandboxes.exec = sandbox.ExecResult{Stdout: onDisk(t, "", tail)}
	if r, err := runtimeapi.NewRuntimeServiceClient(conn).ExecSync(t.Context(), ask); err != nil || string(r.GetStdout()) != tail {
		t.Errorf("beside a slow client: %d bytes, %v", len(r.GetStdout()), err)
	}
	if _, err := slow.Tail.Stat(); err != nil {
		t.Errorf("the answer that nobody takes: %v, want that it waits", err)
	}
	giveUp()
	closes(t, "given up", slow)
}

// TestExecSyncWhenTheDiskFails: then there is an error, not other bytes.
func TestExecSyncWhenTheDiskFails(t *testing.T) {
	w := newWorld(t)
	o := onDisk(t, "head", text(10*pieceSize))
	if err := o.Tail.Truncate(5 * pieceSize); err != nil {
		t.Fatal(err)
	}
	w.sandboxes.exec = sandbox.ExecResult{Stdout: o, Stderr: sandbox.Output{Head: []byte("err")}}
	ask := &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}}
	if r, err := w.runtime.ExecSync(t.Context(), ask); status.Code(err) != codes.Unavailable {
		t.Errorf("ExecSync = %d bytes, %v, want Unavailable", len(r.GetStdout()), err)
	}
	w.sandboxes.exec = sandbox.ExecResult{Stdout: onDisk(t, "a", "b")}
	if r, err := w.runtime.ExecSync(t.Context(), ask, grpc.WaitForReady(true)); err != nil || string(r.GetStdout()) != "ab" {
		t.Errorf("the next: %q, %v", r.GetStdout(), err)
	}
}
