package registrytest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Scheme is how the registry wants to be asked.
type Scheme int

// Anonymous is the zero value.
const (
	Anonymous Scheme = iota
	Basic
	Token // bearer tokens from a token server; its own at /token unless Realm says otherwise
)

// Auth is what the registry asks of its clients. With Token and no Username, anybody gets a token.
type Auth struct {
	Scheme             Scheme
	Username, Password string
	IdentityToken      string // accepted as OAuth2 refresh token at /token
	RegistryToken      string // accepted as bearer token as it is
	Realm              string // in the challenge, instead of the registry's own /token
	Uses               int    // a token is good for N requests; 0 = for ever
}

// SetAuth changes what the registry asks from now on. Tokens given before are void.
func (reg *Registry) SetAuth(a Auth) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.auth, reg.tokens = a, map[string]*grant{}
}

// grant is one bearer token.
type grant struct {
	repository string
	uses       int
}

// authorized checks a request to repo; when it is refused, the challenge has been written.
func (reg *Registry) authorized(w http.ResponseWriter, r *http.Request, repo string) bool {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	switch reg.auth.Scheme {
	case Basic:
		user, password, ok := r.BasicAuth()
		if ok && user == reg.auth.Username && password == reg.auth.Password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registrytest"`)
	case Token:
		if reg.bearerOK(r, repo) {
			return true
		}
		realm := reg.auth.Realm
		if realm == "" {
			realm = reg.URL + "/token"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="registrytest",scope="repository:%s:pull"`, realm, repo))
	default:
		return true
	}
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

// Preconditions: reg.mu held.
func (reg *Registry) bearerOK(r *http.Request, repo string) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	if reg.auth.RegistryToken != "" && token == reg.auth.RegistryToken {
		return true
	}
	g := reg.tokens[token]
	if g == nil || g.repository != repo {
		return false
	}
	if reg.auth.Uses > 0 && g.uses >= reg.auth.Uses {
		return false
	}
	g.uses++
	return true
}

// serveToken is the token server: GET with basic auth, or POST with a refresh token.
func (reg *Registry) serveToken(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		writeError(w, http.StatusBadRequest, "UNSUPPORTED", err.Error())
		return
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	a := reg.auth
	user, password, _ := r.BasicAuth()
	ok := a.Username == "" && a.IdentityToken == ""
	ok = ok || a.Username != "" && user == a.Username && password == a.Password
	ok = ok || a.IdentityToken != "" && r.Method == http.MethodPost && r.PostForm.Get("grant_type") == "refresh_token" &&
		r.PostForm.Get("refresh_token") == a.IdentityToken
	parts := strings.Split(r.Form.Get("scope"), ":")
	if !ok || len(parts) != 3 || parts[0] != "repository" {
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong credentials or scope")
		return
	}
	token := rand.Text()
	reg.tokens[token] = &grant{repository: parts[1]}
	w.Header().Set("Content-Type", "application/json")
	field := "token"
	if r.Method == http.MethodPost {
		field = "access_token"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{field: token, "expires_in": 300}) // a client that went away needs no token
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
