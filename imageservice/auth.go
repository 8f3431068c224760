package imageservice

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/berthd/berth/imageservice/registry"
)

// Auth is what CRI's AuthConfig says, for one pull. It is kept nowhere and prints as nothing.
type Auth struct {
	Username, Password string
	Auth               string // base64 of USERNAME:PASSWORD, instead of the two
	ServerAddress      string // the registry that it is for; "" = that of the reference
	IdentityToken      string
	RegistryToken      string
}

// String hides everything.
func (Auth) String() string { return "[auth]" }

// GoString hides everything.
func (Auth) GoString() string { return "[auth]" }

// MarshalJSON hides everything.
func (Auth) MarshalJSON() ([]byte, error) { return []byte(`"[auth]"`), nil }

func (a Auth) credentials() (registry.Credentials, error) {
	c := registry.Credentials{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		ServerAddress: a.ServerAddress,
	}
	if a.Auth == "" || c.Username != "" || c.Password != "" || c.IdentityToken != "" || c.RegistryToken != "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Auth))
	if err != nil {
		return c, fmt.Errorf("%w: auth is not base64", ErrUnauthorized)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return c, fmt.Errorf("%w: auth is not USERNAME:PASSWORD in base64", ErrUnauthorized)
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}
