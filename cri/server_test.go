package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAPanicIsOneCallsTrouble(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.panics["StartContainer"] = true
	_, err := w.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: "x"})
	if status.Code(err) != codes.Internal {
		t.Errorf("code = %v, want Internal", status.Code(err))
	}
	if strings.Contains(err.Error(), "fake") {
		t.Errorf("error %q tells what the panic said", err)
	}
	if _, err := w.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("Version after a panic = %v", err)
	}
}

func TestShutdownBeforeServe(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{})
	s.Shutdown(t.Context())
	if err := s.Serve(l); err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the socket still takes connections: %v", err)
	}
}

func TestShutdownCancelsWhatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	w.images.block = make(chan struct{})
	w.images.entered = make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := w.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x"}})
		done <- err
	}()
	<-w.images.entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w.server.Shutdown(ctx)
	if err := <-done; err == nil {
		t.Error("the call did not end")
	}
	if _, err := net.Dial("unix", w.socket); err == nil {
		t.Error("the socket is still served")
	}
}

func TestADeadlineIsNotTheRegistrysFault(t *testing.T) {
	w := newWorld(t)
	w.images.block = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := w.image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "x"}})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("code = %v, want DeadlineExceeded", status.Code(err))
	}
}

// Threat B29.
func TestRequestsThatAreTooBig(t *testing.T) {
	w := newWorld(t)
	_, err := w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{strings.Repeat("x", 100<<20)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("100 MiB: code = %v, want ResourceExhausted", status.Code(err))
	}
	config := podConfig()
	config.Labels = make(map[string]string, 1_000_000)
	for i := range 1_000_000 {
		config.Labels[fmt.Sprint(i)] = ""
	}
	_, err = w.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("1e6 labels: code = %v, want InvalidArgument", status.Code(err))
	}
	for _, id := range []string{"", strings.Repeat("a", 300)} {
		_, err = w.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("ID of %d bytes: code = %v, want InvalidArgument", len(id), status.Code(err))
		}
	}
	if len(w.sandboxes.calls) != 0 {
		t.Errorf("calls went through: %q", w.sandboxes.calls)
	}
}

// Threat B29: a path without its slash must not go around the interceptor, and bytes that are no UTF-8 are refused.
func TestRawRequests(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, path string
		body       []byte
		want       codes.Code
	}{
		{"path without slash", "runtime.v1.RuntimeService/Version", []byte{}, codes.Unimplemented},
		{"unknown method", "/runtime.v1.RuntimeService/Nothing", []byte{}, codes.Unimplemented},
		{"unknown service", "/a/b/c", []byte{}, codes.Unimplemented},
		{"invalid UTF-8", "/runtime.v1.RuntimeService/StartContainer", []byte{0x0a, 1, 0xff}, codes.Internal},
		{"good", "/runtime.v1.RuntimeService/Version", []byte{}, codes.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := rawCall(t, w.dial(t), tc.path, tc.body); got != fmt.Sprint(int(tc.want)) {
				t.Errorf("grpc-status = %q, want %d", got, tc.want)
			}
		})
	}
}

// rawCall writes one request in HTTP/2 and answers with grpc-status.
func rawCall(t *testing.T, conn net.Conn, path string, body []byte) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{
		{":method", http.MethodPost}, {":scheme", "http"}, {":path", path}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	message := append([]byte{0, 0, 0, 0, byte(len(body))}, body...)
	if err := errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		f.WriteData(1, true, message)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok {
			for _, field := range h.Fields {
				if field.Name == "grpc-status" {
					return field.Value
				}
			}
		}
	}
}

// Threat B29, CVE-2023-44487.
func TestRapidResetIsBounded(t *testing.T) {
	w := newWorld(t)
	conn := w.dial(t)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	go io.Copy(io.Discard, conn) //nolint:errcheck // what comes back is of no interest
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range 20_000 {
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", "/runtime.v1.RuntimeService/Status"}, {":authority", "x"},
			{"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil ||
			f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // the server may close a connection that behaves like this
		}
	}
	if _, err := w.runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("Version = %v", err)
	}
}
