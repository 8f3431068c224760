package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxExecBytes is what stdout and stderr of an ExecSync may have together, so that the answer fits into a message.
const maxExecBytes = maxMessageBytes - 1<<10

// execSync runs a command in a running container and answers with its output and exit code. Output beyond 16 MiB is dropped; the command
// does not notice.
func (s *runtimeService) execSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (answer any, err error) {
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
	if result.Stdout.Tail == nil && result.Stderr.Tail == nil {
		stdout, stderr := result.Stdout.Head, result.Stderr.Head
		keepOut, keepErr := share(len(stdout), len(stderr), maxExecBytes)
		return &runtimeapi.ExecSyncResponse{Stdout: stdout[:keepOut], Stderr: stderr[:keepErr], ExitCode: result.ExitCode}, nil
	}
	return newExecAnswer(ctx, result), nil
}

// share says how much of two outputs of a and b bytes is kept, most together. Each may have half, and what the other leaves.
func share(a, b, most int) (keepA, keepB int) {
	keepA = min(a, max(most/2, most-b))
	return keepA, min(b, most-keepA)
}

// runtimeServiceDesc is the CRI's, but for the answer of ExecSync, which may be an execAnswer.
func runtimeServiceDesc() *grpc.ServiceDesc {
	desc := runtimeapi.RuntimeService_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		if desc.Methods[i].MethodName == "ExecSync" {
			desc.Methods[i].Handler = handleExecSync
		}
	}
	return &desc
}

// handleExecSync stands in for the generated handler.
func handleExecSync(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	r := &runtimeapi.ExecSyncRequest{}
	if err := decode(r); err != nil {
		return nil, err
	}
	call := &grpc.UnaryServerInfo{Server: server, FullMethod: runtimeapi.RuntimeService_ExecSync_FullMethodName}
	return intercept(ctx, r, call, func(ctx context.Context, r any) (any, error) {
		return server.(*runtimeService).execSync(ctx, r.(*runtimeapi.ExecSyncRequest))
	})
}
