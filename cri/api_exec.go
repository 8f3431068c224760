package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxExecBytes is what stdout and stderr of an ExecSync may have together, so that the answer fits into a message.
const maxExecBytes = maxMessageBytes - 1<<10

// ExecSync runs a command in a running container and answers with its output and exit code. Output beyond 16 MiB is dropped; the command
// does not notice.
func (s *runtimeService) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, invalid("cmd", "", "must name a command")
	}
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	result, err := s.containers.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr := share(result.Stdout, result.Stderr, maxExecBytes)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

// share cuts two outputs to most bytes together. Each may have half, and what the other leaves.
func share(a, b []byte, most int) ([]byte, []byte) {
	keepA := min(len(a), max(most/2, most-len(b)))
	return a[:keepA], b[:min(len(b), most-keepA)]
}
