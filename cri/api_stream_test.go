package cri

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/sandbox"
)

func streamWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "ready-pod", State: sandbox.PodReady}, {ID: "stopped-pod", State: sandbox.PodNotReady}}
	w.sandboxes.containers = []sandbox.Container{{ID: "running-container", State: sandbox.ContainerRunning}, {ID: "listening-container", State: sandbox.ContainerRunning, Config: &runtimeapi.ContainerConfig{Stdin: true}},
		{ID: "created-container", State: sandbox.ContainerCreated}, {ID: "exited-container", State: sandbox.ContainerExited}}
	return w
}

func TestExecAndAttachAnswerWithAURL(t *testing.T) {
	w := streamWorld(t)
	exec, err := w.runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "running", Cmd: []string{"a", "b"}, Stdout: true, Tty: true})
	if err != nil || exec.GetUrl() != "http://exec/running-container" {
		t.Errorf("Exec = %v, %v", exec, err)
	}
	if p := w.streaming.process; !slices.Equal(p.Cmd, []string{"a", "b"}) || !p.Stdout || p.Stdin || p.Stderr || !p.Terminal {
		t.Errorf("process = %+v", p)
	}
	attach, err := w.runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "running", Stdin: true, Stderr: true})
	if err != nil || attach.GetUrl() != "http://attach/running-container" {
		t.Errorf("Attach = %v, %v", attach, err)
	}
	if p := w.streaming.process; !p.Stdin || !p.Stderr || p.Stdout || p.Terminal || !p.Deaf {
		t.Errorf("process = %+v", p)
	}
	if _, err := w.runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "listening", Stdin: true}); err != nil || w.streaming.process.Deaf {
		t.Errorf("Attach to a container with stdin = %v, %+v", err, w.streaming.process)
	}
	forward, err := w.runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "ready", Port: []int32{1, 65535}})
	if err != nil || forward.GetUrl() != "http://forward/ready-pod" || !slices.Equal(w.streaming.ports, []uint16{1, 65535}) {
		t.Errorf("PortForward = %v, %v, %v", forward, err, w.streaming.ports)
	}
}

func TestStreamingRequestsAreChecked(t *testing.T) {
	w := streamWorld(t)
	exec := func(change func(*runtimeapi.ExecRequest)) func() error {
		r := &runtimeapi.ExecRequest{ContainerId: "running", Cmd: []string{"x"}, Stdout: true}
		change(r)
		return func() error { _, err := w.runtime.Exec(t.Context(), r); return err }
	}
	attach := func(change func(*runtimeapi.AttachRequest)) func() error {
		r := &runtimeapi.AttachRequest{ContainerId: "running", Stdout: true}
		change(r)
		return func() error { _, err := w.runtime.Attach(t.Context(), r); return err }
	}
	forward := func(id string, ports ...int32) func() error {
		return func() error {
			_, err := w.runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
			return err
		}
	}
	for _, tc := range []struct {
		name, says string
		call       func() error
		code       codes.Code
	}{
		{"no command", "cmd", exec(func(r *runtimeapi.ExecRequest) { r.Cmd = nil }), codes.InvalidArgument},
		{"a command that no kernel takes", "2097152", exec(func(r *runtimeapi.ExecRequest) { r.Cmd = []string{strings.Repeat("x", 3<<20)} }), codes.InvalidArgument},
		{"no stream", "one must be true", exec(func(r *runtimeapi.ExecRequest) { r.Stdout = false }), codes.InvalidArgument},
		{"tty and stderr", "a terminal has one output", exec(func(r *runtimeapi.ExecRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument},
		{"no container", "container_id", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = "" }), codes.InvalidArgument},
		{"unknown container", "nobody", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = "nobody" }), codes.NotFound},
		{"created container", "Created", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = "created" }), codes.FailedPrecondition},
		{"exited container", "Exited", exec(func(r *runtimeapi.ExecRequest) { r.ContainerId = "exited" }), codes.FailedPrecondition},
		{"attach to no stream", "one must be true", attach(func(r *runtimeapi.AttachRequest) { r.Stdout = false }), codes.InvalidArgument},
		{"attach with tty and stderr", "a terminal has one output", attach(func(r *runtimeapi.AttachRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument},
		{"attach to nothing", "container_id", attach(func(r *runtimeapi.AttachRequest) { r.ContainerId = "" }), codes.InvalidArgument},
		{"attach to an unknown container", "nobody", attach(func(r *runtimeapi.AttachRequest) { r.ContainerId = "nobody" }), codes.NotFound},
		{"attach to an exited container", "Exited", attach(func(r *runtimeapi.AttachRequest) { r.ContainerId = "exited" }), codes.FailedPrecondition},
		{"forward to nothing", "pod_sandbox_id", forward(""), codes.InvalidArgument},
		{"forward to an unknown pod", "nobody", forward("nobody"), codes.NotFound},
		{"forward to a stopped pod", "NotReady", forward("stopped"), codes.FailedPrecondition},
		{"port 0", "port[1]", forward("ready", 80, 0), codes.InvalidArgument},
		{"port 65536", "65536", forward("ready", 65536), codes.InvalidArgument},
		{"negative port", "-1", forward("ready", -1), codes.InvalidArgument},
		{"too many ports", "65 ports", forward("ready", make([]int32, 65)...), codes.InvalidArgument},
	} {
		if err := tc.call(); status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.says) {
			t.Errorf("%s: %v, want %s and %q", tc.name, err, tc.code, tc.says)
		}
	}
	w.streaming.err = fmt.Errorf("keep it: %w", streaming.ErrTooMany)
	if err := exec(func(*runtimeapi.ExecRequest) {})(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too many: %v", err)
	}
}
