package reference

import (
	_ "crypto/sha256" // makes digest.SHA256 available
	_ "crypto/sha512" // makes digest.SHA512 available
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	distribution "github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// ErrInvalid is what every error of this package is.
var ErrInvalid = errors.New("invalid reference")

// InvalidError says which value broke which rule.
type InvalidError struct {
	Value string // cut to a readable length, without secrets
	Rule  string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid reference %q: %s", e.Value, e.Rule)
}

// Is makes errors.Is(err, ErrInvalid) true.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// DockerHub is the host of names that have none.
const DockerHub = "docker.io"

// maxLength of a reference that is looked at: 255 for the repository, 128 for the tag, 135 for the digest, and room.
const maxLength = 1024

// Reference is a complete name. Parse makes it; either Tag or Digest is set.
type Reference struct {
	Host   string        // docker.io, 127.0.0.1:5000
	Path   string        // library/busybox
	Tag    string        // "" when a digest is given
	Digest digest.Digest // "" when there is none
}

// Parse completes and checks a reference. A bare 64-digit ID is not a reference.
func Parse(s string) (Reference, error) {
	if s == "" {
		return Reference{}, invalid(s, "it is empty")
	}
	if len(s) > maxLength {
		return Reference{}, invalid(s, fmt.Sprintf("it is longer than %d bytes", maxLength))
	}
	named, err := distribution.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, invalid(s, rule(err))
	}
	ref := Reference{Host: distribution.Domain(named), Path: distribution.Path(named)}
	if digested, ok := named.(distribution.Digested); ok {
		ref.Digest, err = ParseDigest(digested.Digest().String())
		if err != nil {
			return Reference{}, err
		}
		return ref, nil
	}
	if tagged, ok := distribution.TagNameOnly(named).(distribution.Tagged); ok {
		ref.Tag = tagged.Tag()
	}
	return ref, nil
}

// rule turns an error of the distribution library into a rule; its messages carry no part of the value but
// "invalid reference format", which alone would say nothing.
func rule(err error) string {
	switch {
	case errors.Is(err, distribution.ErrNameContainsUppercase):
		return "the repository must be lower case"
	case errors.Is(err, distribution.ErrNameTooLong):
		return "the repository is longer than 255 bytes"
	case errors.Is(err, distribution.ErrTagInvalidFormat):
		return "the tag is malformed"
	case errors.Is(err, distribution.ErrDigestInvalidFormat), errors.Is(err, digest.ErrDigestInvalidFormat),
		errors.Is(err, digest.ErrDigestInvalidLength), errors.Is(err, digest.ErrDigestUnsupported):
		return "the digest must be sha256 or sha512 with lower-case hexadecimal digits"
	case errors.Is(err, distribution.ErrNameEmpty):
		return "the repository is empty"
	}
	return "it must be [HOST[:PORT]/]PATH[:TAG][@DIGEST]"
}

// Repository is HOST/PATH.
func (r Reference) Repository() string { return r.Host + "/" + r.Path }

// String is the canonical form: HOST/PATH:TAG or HOST/PATH@DIGEST.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Repository() + "@" + r.Digest.String()
	}
	return r.Repository() + ":" + r.Tag
}

// Target is what stands behind /manifests/ in a URL: the digest if there is one, else the tag.
func (r Reference) Target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// ParseDigest checks the syntax of a digest, before it becomes part of a path or a URL.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil || (d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512) {
		return "", invalid(s, "the digest must be sha256 or sha512 with lower-case hexadecimal digits")
	}
	return d, nil
}

// ParseDiffID checks a diffID or an image ID, which are sha256 only.
func ParseDiffID(s string) (digest.Digest, error) {
	d, err := ParseDigest(s)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return "", invalid(s, "it must be sha256: and 64 lower-case hexadecimal digits")
	}
	return d, nil
}

// IDPrefix returns the hexadecimal digits of s if s can be an image ID or its beginning, with or without "sha256:".
// A result of 64 digits is a whole ID.
func IDPrefix(s string) (hex string, ok bool) {
	hex = strings.TrimPrefix(s, "sha256:")
	if hex == "" || len(hex) > 64 {
		return "", false
	}
	for _, c := range []byte(hex) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	return hex, true
}

// IsLoopback says whether a host, with or without a port, is this machine: localhost, 127.0.0.0/8 or ::1. A name that
// merely resolves to such an address is not.
func IsLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// invalid makes an error that can be shown to everybody.
func invalid(value, rule string) error {
	return &InvalidError{Value: Redact(value), Rule: rule}
}

// Redact shortens a value for an error, without the user part and the query of a URL.
func Redact(s string) string {
	s, _, _ = strings.Cut(s, "?")
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			rest = rest[i+1:]
		}
		s = scheme + "://" + rest
	} else if i := strings.LastIndexByte(s, '@'); i >= 0 {
		name, digest := s[:i], s[i:]
		if !strings.HasPrefix(digest, "@sha") || strings.Contains(digest, "/") {
			name, digest = s, "" // user:password@host/path: what follows the @ of a reference is a digest
		}
		s = name[strings.LastIndexByte(name, '@')+1:] + digest
	}
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}
