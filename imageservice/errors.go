package imageservice

import (
	"errors"
	"fmt"

	"github.com/berthd/berth/imageservice/layer"
	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/snapshot"
)

// What can go wrong, for errors.Is. A disk that is full is unix.ENOSPC or unix.EDQUOT.
var (
	ErrNotFound            = registry.ErrNotFound       // no such image here, or in the registry
	ErrUnauthorized        = registry.ErrUnauthorized   // the registry wants other credentials
	ErrDenied              = registry.ErrDenied         // the registry knows who asks, and does not allow it
	ErrRegistryUnavailable = registry.ErrUnavailable    // no registry answered
	ErrRegistryConfig      = registry.ErrConfig         // hosts.toml or a certificate cannot be used
	ErrInvalidReference    = reference.ErrInvalid       // what was given is no name of an image
	ErrDigestMismatch      = registry.ErrDigestMismatch // content is not what its digest, size or diffID says
	ErrNoPlatform          = registry.ErrNoPlatform     // the image is not for this machine
	ErrInvalidImage        = errors.New("invalid image")
	ErrTooLarge            = errors.New("image is too large")
	ErrNotVolume           = errors.New("neither a folder nor a regular file")
	ErrAmbiguous           = errors.New("ID prefix names several images")
	ErrClosed              = errors.New("image service is closed")
)

// classify gives errors of the packages below the sentinels of this one.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrInvalidManifest), errors.Is(err, layer.ErrInvalid):
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	case errors.Is(err, snapshot.ErrTooManyLayers):
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	case errors.Is(err, snapshot.ErrDigestMismatch):
		return fmt.Errorf("%w: %w: %w", ErrInvalidImage, ErrDigestMismatch, err)
	case errors.Is(err, layer.ErrLimit):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}

// RedactReference makes of what a client calls an image something that may be logged: without a user part or a query.
func RedactReference(ref string) string { return reference.Redact(ref) }
