package cri

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/imageservice"
)

// interceptor stands before every call.
type interceptor struct {
	logger  klog.Logger
	observe func(method, code string, took time.Duration) // may be nil
}

// unary logs a call with its objects and outcome, and turns its error into a status.
func (i interceptor) unary(ctx context.Context, request any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
	start := time.Now()
	method := methodName(call.FullMethod)
	logger := i.logger.WithValues(callValues(method, request)...)
	ctx = klog.NewContext(ctx, logger)
	defer func() {
		if cause := recover(); cause != nil {
			answer, err = nil, recovered(logger, cause, method)
		}
		err = statusOf(ctx, err)
		i.finished(logger, method, time.Since(start), err)
	}()
	if sentence, ok := unimplemented[method]; ok {
		return nil, status.Error(codes.Unimplemented, sentence)
	}
	return next(ctx, request)
}

// stream does for a streaming call what unary does.
func (i interceptor) stream(server any, s grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	start := time.Now()
	method := methodName(call.FullMethod)
	logger := i.logger.WithValues("method", method)
	defer func() {
		if cause := recover(); cause != nil {
			err = recovered(logger, cause, method)
		}
		err = statusOf(s.Context(), err)
		i.finished(logger, method, time.Since(start), err)
	}()
	if sentence, ok := unimplemented[method]; ok {
		return status.Error(codes.Unimplemented, sentence)
	}
	return next(server, loggedStream{ServerStream: s, ctx: klog.NewContext(s.Context(), logger)})
}

// loggedStream is a stream whose context has the call's logger.
type loggedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context has the call's logger.
func (s loggedStream) Context() context.Context { return s.ctx }

// methodName is the last part of /runtime.v1.RuntimeService/RunPodSandbox.
func methodName(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// recovered logs the stack of a panic and makes the error that its caller gets.
func recovered(logger klog.Logger, cause any, method string) error {
	logger.Error(fmt.Errorf("panic: %v", cause), "Recovered from a panic", "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s panicked; the daemon's log has the stack", method)
}

// finished counts a call and logs its outcome. What reads is asked many times a second, and package sandbox logs what it changed itself, so
// these are shown when one debugs.
func (i interceptor) finished(logger klog.Logger, method string, duration time.Duration, err error) {
	code, text := status.Code(err), status.Convert(err).Message()
	if i.observe != nil {
		i.observe(method, code.String(), duration)
	}
	switch {
	case err == nil && (method == "PullImage" || method == "RemoveImage"):
		logger.V(2).Info("Answered a call", "code", code.String(), "duration", duration)
	case err == nil && changes(method):
		logger.V(4).Info("Answered a call", "code", code.String(), "duration", duration)
	case err == nil:
		logger.V(5).Info("Answered a call", "code", code.String(), "duration", duration)
	case expected(method, code):
		logger.V(4).Info("Refused a call", "code", code.String(), "duration", duration, "err", text)
	default:
		logger.Info("Refused a call", "code", code.String(), "duration", duration, "err", text)
	}
}

// expected says that a call's refusal is everyday: asking for what is gone, or for what is not built, and the end of what has no other.
func expected(method string, code codes.Code) bool {
	forever := method == "GetContainerEvents" && (code == codes.Canceled || code == codes.Unavailable)
	return forever || code == codes.Unimplemented || code == codes.NotFound && !changes(method)
}

// changes says that a method changes something on the host.
func changes(method string) bool {
	switch method {
	case "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer",
		"RemoveContainer", "UpdateContainerResources", "UpdatePodSandboxResources", "PullImage", "RemoveImage", "UpdateRuntimeConfig":
		return true
	}
	return false
}

// callValues are the log values that name a call's objects. Nothing else of a request is logged.
func callValues(method string, request any) []any {
	values := []any{"method", method}
	if r, ok := request.(interface{ GetPodSandboxId() string }); ok && r.GetPodSandboxId() != "" {
		values = append(values, "podSandboxID", bounded(r.GetPodSandboxId()))
	}
	if r, ok := request.(interface{ GetContainerId() string }); ok && r.GetContainerId() != "" {
		values = append(values, "containerID", bounded(r.GetContainerId()))
	}
	if r, ok := request.(interface{ GetImage() *runtimeapi.ImageSpec }); ok && r.GetImage().GetImage() != "" {
		values = append(values, "image", bounded(imageservice.RedactReference(r.GetImage().GetImage())))
	}
	switch r := request.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		meta := r.GetConfig().GetMetadata()
		values = append(values, "pod", klog.KRef(bounded(meta.GetNamespace()), bounded(meta.GetName())), "attempt", meta.GetAttempt())
	case *runtimeapi.CreateContainerRequest:
		meta := r.GetConfig().GetMetadata()
		values = append(values, "container", bounded(meta.GetName()), "attempt", meta.GetAttempt())
	}
	return values
}

// bounded cuts what a client may have made long.
func bounded(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most]
	}
	return s
}
