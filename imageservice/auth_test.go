package imageservice

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestAuthPrintsAsNothing(t *testing.T) {
	const secret = "SECRET0123"
	a := Auth{Username: secret, Password: secret, Auth: secret, IdentityToken: secret, RegistryToken: secret}
	raw, err := json.Marshal(map[string]any{"auth": a})
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s %q %v %+v", a, a, a, a, a, &a, []Auth{a}) + string(raw); strings.Contains(s, secret) {
		t.Errorf("it prints as %s", s)
	}
}
