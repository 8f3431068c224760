package cri

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox"
)

// maxErrorBytes bounds a status's message: a part of it may come from a registry.
const maxErrorBytes = 4 << 10

// rule gives the code of the errors that match.
type rule struct {
	is   error
	code codes.Code
	// prefix is what the kubelet looks for at the start of the message.
	prefix string
}

// rules is the one place where errors get their gRPC codes. The first that matches wins, so what says more stands above what
// says less. An error that none matches is Internal.
var rules = []rule{
	// Unknown, because only then does the kubelet's client (k8s.io/cri-client, PullImage) pass on the message
	// alone, and the kubelet looks for these strings at its start.
	{is: imageservice.ErrRegistryUnavailable, code: codes.Unknown, prefix: crierrors.ErrRegistryUnavailable.Error()},
	{is: crierrors.ErrRegistryUnavailable, code: codes.Unknown, prefix: crierrors.ErrRegistryUnavailable.Error()},
	{is: crierrors.ErrSignatureValidationFailed, code: codes.Unknown, prefix: crierrors.ErrSignatureValidationFailed.Error()},

	{is: context.Canceled, code: codes.Canceled},
	{is: sandbox.ErrTimeout, code: codes.DeadlineExceeded},
	{is: context.DeadlineExceeded, code: codes.DeadlineExceeded},

	{is: unix.ENOSPC, code: codes.ResourceExhausted},
	{is: unix.EDQUOT, code: codes.ResourceExhausted},
	{is: unix.EMFILE, code: codes.ResourceExhausted},
	{is: unix.ENFILE, code: codes.ResourceExhausted},
	{is: unix.ENOMEM, code: codes.ResourceExhausted},
	{is: sandbox.ErrExhausted, code: codes.ResourceExhausted},
	{is: sandbox.ErrLagged, code: codes.ResourceExhausted},
	{is: sandbox.ErrClosing, code: codes.Unavailable},
	{is: streaming.ErrTooMany, code: codes.ResourceExhausted},

	{is: sandbox.ErrNameInUse, code: codes.AlreadyExists},
	{is: sandbox.ErrUnknownHandler, code: codes.InvalidArgument},
	{is: sandbox.ErrHandlerMissing, code: codes.FailedPrecondition},
	{is: sandbox.ErrNotRecursive, code: codes.FailedPrecondition, prefix: crierrors.ErrRROUnsupported.Error()},
	{is: sandbox.ErrInvalid, code: codes.InvalidArgument},
	{is: errNotBuilt, code: codes.Unimplemented},
	{is: imageservice.ErrInvalidReference, code: codes.InvalidArgument},
	{is: sandbox.ErrState, code: codes.FailedPrecondition},
	{is: sandbox.ErrNotFound, code: codes.NotFound},

	{is: imageservice.ErrUnauthorized, code: codes.Unauthenticated},
	{is: imageservice.ErrDenied, code: codes.PermissionDenied},
	{is: imageservice.ErrDigestMismatch, code: codes.DataLoss},
	{is: imageservice.ErrTooLarge, code: codes.ResourceExhausted},
	{is: imageservice.ErrInvalidImage, code: codes.FailedPrecondition},
	{is: imageservice.ErrRegistryConfig, code: codes.FailedPrecondition},
	{is: imageservice.ErrAmbiguous, code: codes.InvalidArgument},
	{is: imageservice.ErrNoPlatform, code: codes.NotFound},
	{is: imageservice.ErrNotFound, code: codes.NotFound},
	{is: imageservice.ErrClosed, code: codes.Unavailable},
}

// errNotBuilt is what a request gets that asks for something that is not built.
var errNotBuilt = errors.New("not built yet")

// statusOf turns an error into a status. One that is a status already, which this package or gRPC has made, stays as it is; one that only wraps
// a status, as the errors of plugins do, is an error like others. When the call itself has ended, that is the reason, whatever else its end
// made fail.
func statusOf(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	code, prefix := codeOf(err)
	if ctx.Err() != nil {
		code, prefix = codeOf(ctx.Err())
	}
	message := redact(strings.ToValidUTF8(err.Error(), "\uFFFD"))
	if prefix != "" && !strings.HasPrefix(message, prefix) {
		message = prefix + ": " + message
	}
	if len(message) > maxErrorBytes {
		message = strings.ToValidUTF8(message[:maxErrorBytes], "") + " (cut)"
	}
	return status.Error(code, message)
}

// codeOf looks an error up in the table.
func codeOf(err error) (code codes.Code, prefix string) {
	if invalid := (*spec.InvalidError)(nil); errors.As(err, &invalid) {
		return codes.InvalidArgument, ""
	}
	for _, r := range rules {
		if errors.Is(err, r.is) {
			return r.code, r.prefix
		}
	}
	return codes.Internal, ""
}

// urlSecrets finds in a URL what may be a secret: the user's name and password, and the query, where signatures and tokens stand.
var urlSecrets = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)(?:[^\s/@"']*@)?([^\s?#"']*)(\?[^\s"']*)?`)

// redact takes secrets out of the URLs in a message. Packages below do not put any in; a library's error may.
func redact(message string) string {
	if !strings.Contains(message, "://") {
		return message
	}
	return urlSecrets.ReplaceAllStringFunc(message, func(url string) string {
		m := urlSecrets.FindStringSubmatch(url)
		if m[3] != "" {
			return m[1] + m[2] + "?redacted"
		}
		return m[1] + m[2]
	})
}
