package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox"
)

func TestEachErrorHasItsCode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		code   codes.Code
		prefix string
	}{
		{"unknown sandbox", sandbox.ErrNotFound, codes.NotFound, ""},
		{"name in use", sandbox.ErrNameInUse, codes.AlreadyExists, ""},
		{"invalid configuration", sandbox.ErrInvalid, codes.InvalidArgument, ""},
		{"invalid field", &spec.InvalidError{Field: "f", Value: "v", Rule: "r"}, codes.InvalidArgument, ""},
		{"wrong state", sandbox.ErrState, codes.FailedPrecondition, ""},
		{"unknown handler", sandbox.ErrUnknownHandler, codes.InvalidArgument, ""},
		{"handler without recursively read-only mounts", sandbox.ErrNotRecursive, codes.FailedPrecondition, "RROUnsupported: "},
		{"exhausted", sandbox.ErrExhausted, codes.ResourceExhausted, ""},
		{"timeout", sandbox.ErrTimeout, codes.DeadlineExceeded, ""},
		{"cancelled", context.Canceled, codes.Canceled, ""},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded, ""},
		{"unknown image", imageservice.ErrNotFound, codes.NotFound, ""},
		{"bad credentials", imageservice.ErrUnauthorized, codes.Unauthenticated, ""},
		{"good credentials, and no right", imageservice.ErrDenied, codes.PermissionDenied, ""},
		{"registry down", imageservice.ErrRegistryUnavailable, codes.Unknown, "RegistryUnavailable: "},
		{"registry down, by its own timeout", fmt.Errorf("%w: %w", imageservice.ErrRegistryUnavailable, context.DeadlineExceeded), codes.Unknown, "RegistryUnavailable: "},
		{"wrong signature", crierrors.ErrSignatureValidationFailed, codes.Unknown, "SignatureValidationFailed: "},
		{"wrong reference", imageservice.ErrInvalidReference, codes.InvalidArgument, ""},
		{"wrong digest", imageservice.ErrDigestMismatch, codes.DataLoss, ""},
		{"wrong digest in a wrong image", fmt.Errorf("%w: %w", imageservice.ErrInvalidImage, imageservice.ErrDigestMismatch), codes.DataLoss, ""},
		{"wrong image", imageservice.ErrInvalidImage, codes.FailedPrecondition, ""},
		{"huge image", imageservice.ErrTooLarge, codes.ResourceExhausted, ""},
		{"wrong hosts.toml", imageservice.ErrRegistryConfig, codes.FailedPrecondition, ""},
		{"short ID", imageservice.ErrAmbiguous, codes.InvalidArgument, ""},
		{"wrong platform", imageservice.ErrNoPlatform, codes.NotFound, ""},
		{"daemon ends", imageservice.ErrClosed, codes.Unavailable, ""},
		{"full disk", &os.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}, codes.ResourceExhausted, ""},
		{"full disk below another sentinel", fmt.Errorf("%w: %w", sandbox.ErrState, unix.ENOSPC), codes.ResourceExhausted, ""},
		{"too many files", unix.EMFILE, codes.ResourceExhausted, ""},
		{"not built", notBuilt("f", "s"), codes.Unimplemented, ""},
		{"anything else", errors.New("x"), codes.Internal, ""},
		{"a status", status.Error(codes.Aborted, "x"), codes.Aborted, ""},
		{"a plugin's status", fmt.Errorf("plugins: %w", status.Error(codes.NotFound, "x")), codes.Internal, "plugins: "},
		{"a plugin's status about what has a code", fmt.Errorf("%w: %w", sandbox.ErrState, status.Error(codes.NotFound, "x")), codes.FailedPrecondition, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wrapped := tc.err
			if _, ok := status.FromError(tc.err); !ok {
				wrapped = fmt.Errorf("do a thing: %w", tc.err)
			}
			got := statusOf(t.Context(), wrapped)
			if status.Code(got) != tc.code {
				t.Errorf("code = %v, want %v", status.Code(got), tc.code)
			}
			if !strings.HasPrefix(status.Convert(got).Message(), tc.prefix) {
				t.Errorf("message = %q, want prefix %q", status.Convert(got).Message(), tc.prefix)
			}
		})
	}
	if statusOf(t.Context(), nil) != nil {
		t.Error("no error became one")
	}
}

// The deadline of a call ends its pull in the middle of a request to the registry: the registry is not to blame.
func TestACallThatEndedSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := statusOf(ctx, fmt.Errorf("pull: %w", imageservice.ErrRegistryUnavailable))
	if status.Code(got) != codes.Canceled {
		t.Errorf("code = %v, want Canceled", status.Code(got))
	}
}

// Threat B30.
func TestErrorsKeepSecretsOfURLs(t *testing.T) {
	for in, want := range map[string]string{
		`get "https://x.y/v2/?sig=SECRET&a=b": EOF`:  `get "https://x.y/v2/?redacted": EOF`,
		"https://user:SECRET@x.y/p: refused":         "https://x.y/p: refused",
		"https://SECRET@x.y:5000/p?x=SECRET refused": "https://x.y:5000/p?redacted refused",
		"no url at all: user@host?":                  "no url at all: user@host?",
		"get http://x.y/p: refused":                  "get http://x.y/p: refused",
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestMessagesAreBoundedAndValid(t *testing.T) {
	long := "\xff" + strings.Repeat("ü", maxErrorBytes)
	for _, err := range []error{errors.New(long), fmt.Errorf("plugins: %w", status.Error(codes.Unknown, long))} {
		message := status.Convert(statusOf(t.Context(), err)).Message()
		if len(message) > maxErrorBytes+8 || !strings.HasSuffix(message, " (cut)") || strings.ToValidUTF8(message, "") != message {
			t.Errorf("message has %d bytes and ends in %q", len(message), message[len(message)-8:])
		}
	}
}
