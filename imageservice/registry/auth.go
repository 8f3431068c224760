package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/berthd/berth/imageservice/reference"
)

// Credentials are those of one pull. The zero value is anonymous. They print as nothing.
type Credentials struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token for the registry's token server
	RegistryToken      string // a bearer token for the registry
	ServerAddress      string // the registry that they are for; "" = that of the reference
}

// String hides everything.
func (Credentials) String() string { return "[credentials]" }

// GoString hides everything.
func (Credentials) GoString() string { return "[credentials]" }

func (c Credentials) empty() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// pair is what basic authentication shows, "" when there is none.
func (c Credentials) pair() string {
	if c.Username == "" && c.Password == "" {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
}

// serverHost is the host that ServerAddress names: HOST, HOST/PATH or a URL of that.
func (c Credentials) serverHost() string {
	_, host, ok := strings.Cut(c.ServerAddress, "://")
	if !ok {
		host = c.ServerAddress
	}
	host, _, _ = strings.Cut(host, "/")
	return host
}

// meantFor says whether the credentials of a pull from registry may be shown to an endpoint. They may if the endpoint is
// that registry's own, and no ServerAddress speaks against it, or if ServerAddress names the endpoint.
func (c Credentials) meantFor(spec hostSpec, registry string) bool {
	if c.empty() {
		return false
	}
	named := c.serverHost()
	if named != "" && sameHost(named, spec.base.Host) {
		return true
	}
	return spec.own && (named == "" || sameHost(named, registry))
}

// authorizer keeps what one endpoint wants to see in Authorization.
type authorizer struct {
	cred *Credentials // nil: anonymous

	// busy is a lock that can be waited for with a context: token requests take their time.
	busy   chan struct{}
	header string // guarded by busy; "" = none yet
	asked  int    // guarded by busy; how often header was renewed
}

func newAuthorizer(cred *Credentials) *authorizer {
	return &authorizer{cred: cred, busy: make(chan struct{}, 1)}
}

func (a *authorizer) lock(ctx context.Context) error {
	select {
	case a.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) unlock() { <-a.busy }

// current is the header to send, and its number for renew.
func (a *authorizer) current(ctx context.Context) (header string, number int, err error) {
	if err := a.lock(ctx); err != nil {
		return "", 0, err
	}
	defer a.unlock()
	return a.header, a.asked, nil
}

// renew answers the challenges of a 401 to a request that was sent with header number. If another goroutine has done so
// meanwhile nothing happens.
func (e *endpoint) renew(ctx context.Context, challenges []string, number int) error {
	a := e.auth
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	if a.asked != number {
		return nil
	}
	all := parseChallenges(challenges)
	if bearer, ok := find(all, "bearer"); ok {
		token, err := e.token(ctx, bearer)
		if err != nil {
			return err
		}
		a.header, a.asked = "Bearer "+token, a.asked+1
		return nil
	}
	if _, ok := find(all, "basic"); ok {
		if a.cred == nil || a.cred.Username == "" && a.cred.Password == "" {
			return e.refuse("no credentials were given for it")
		}
		if a.header != "" {
			return e.refuse("the credentials were not accepted")
		}
		a.header, a.asked = "Basic "+a.cred.pair(), a.asked+1
		return nil
	}
	return e.refuse("it asks for no known authentication")
}

func (e *endpoint) refuse(detail string) error {
	return &Error{Op: "authenticate", Host: e.host(), Detail: detail, Err: ErrUnauthorized}
}

// token gets a bearer token as the distribution-spec's token authentication says.
// Preconditions: e.auth is locked.
func (e *endpoint) token(ctx context.Context, c challenge) (string, error) {
	cred := e.auth.cred
	if cred != nil && cred.RegistryToken != "" {
		if e.auth.header != "" {
			return "", e.refuse("the registry token was not accepted")
		}
		if err := checkToken(cred.RegistryToken); err != nil {
			return "", e.refuse(err.Error())
		}
		return cred.RegistryToken, nil
	}
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" {
		return "", e.refuse("its token server's address is malformed")
	}
	if err := e.trustRealm(realm); err != nil {
		return "", err
	}
	req, err := e.tokenRequest(ctx, realm, c)
	if err != nil {
		return "", e.refuse(err.Error())
	}
	transport := e.tr.foreign
	if origin(realm) == origin(e.url()) {
		transport = e.tr.own
	}
	resp, err := send(transport, req)
	if err != nil {
		ne := netError(realm.Host, err)
		ne.Op = "get token"
		return "", ne
	}
	if resp.StatusCode != http.StatusOK {
		se := statusError(resp, func(string) bool { return true }) // its words may repeat what it was sent
		se.Op = "get token"
		if resp.StatusCode >= 300 && resp.StatusCode < 400 {
			se.Detail += ", token servers may not redirect"
		}
		if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusNotFound {
			se.Err = ErrUnauthorized
		}
		return "", se
	}
	defer resp.Body.Close()
	token, err := readToken(resp.Body)
	if err != nil {
		return "", &Error{Op: "get token", Host: realm.Host, Err: fmt.Errorf("%w: %w", ErrUnauthorized, err)}
	}
	return token, nil
}

func readToken(r io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxTokenBody+1))
	if err != nil {
		return "", fmt.Errorf("read answer: %w", err)
	}
	if len(raw) > maxTokenBody {
		return "", fmt.Errorf("the answer is larger than %d bytes", maxTokenBody)
	}
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		return "", errors.New("the answer is not JSON") // the decoder's error may quote it
	}
	if body.Token == "" {
		body.Token = body.AccessToken
	}
	return body.Token, checkToken(body.Token)
}

// checkToken keeps a token from breaking out of its header.
func checkToken(token string) error {
	if token == "" || len(token) > maxToken {
		return fmt.Errorf("the token is empty or longer than %d bytes", maxToken)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return errors.New("the token has characters that a header cannot carry")
		}
	}
	return nil
}

// tokenRequest asks with what credentials there are. They go to realm, which trustRealm has let pass.
func (e *endpoint) tokenRequest(ctx context.Context, realm *url.URL, c challenge) (*http.Request, error) {
	query := url.Values{"scope": {e.scope(c)}}
	if service := c.params["service"]; service != "" {
		query.Set("service", service)
	}
	cred := e.auth.cred
	if cred != nil && cred.IdentityToken != "" {
		query.Set("grant_type", "refresh_token")
		query.Set("refresh_token", cred.IdentityToken)
		query.Set("client_id", "berth")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(query.Encode()))
		if err != nil {
			return nil, errors.New("its token server's address is malformed")
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("User-Agent", userAgent)
		return req, nil
	}
	u := *realm
	all := u.Query()
	for k, v := range query {
		all[k] = v
	}
	u.RawQuery, u.Fragment = all.Encode(), ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errors.New("its token server's address is malformed")
	}
	req.Header.Set("User-Agent", userAgent)
	if cred != nil && (cred.Username != "" || cred.Password != "") {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return req, nil
}

// scope is what the token is asked for: to pull this repository. Only an endpoint whose path the operator gave, and which
// therefore may call the repository something else, has a say in the name.
func (e *endpoint) scope(c challenge) string {
	if asked := strings.Split(c.params["scope"], ":"); e.spec.override && len(asked) == 3 && asked[0] == "repository" {
		return "repository:" + asked[1] + ":pull"
	}
	return "repository:" + e.repository + ":pull"
}

// trustRealm decides whether a token server may be asked at all. The rule is in the package's documentation.
func (e *endpoint) trustRealm(realm *url.URL) error {
	name := printable((&url.URL{Scheme: realm.Scheme, Host: realm.Host}).String())
	if realm.Scheme != "http" && realm.Scheme != "https" || realm.User != nil {
		return e.refuse("its token server " + name + " is not an http or https address")
	}
	if origin(realm) == origin(e.url()) {
		return nil
	}
	for _, allowed := range e.spec.realms {
		if u, err := url.Parse(allowed); err == nil && origin(u) == origin(realm) {
			return nil
		}
	}
	if realm.Scheme == "https" && sameDomain(realm.Hostname(), e.url().Hostname()) {
		return nil
	}
	return e.refuse("its token server " + name + " is of another domain or not https, and no realms in hosts.toml names it")
}

// sameDomain says whether two names belong to one registrable domain. Addresses belong to none.
func sameDomain(a, b string) bool {
	if _, err := netip.ParseAddr(a); err == nil {
		return false
	}
	da, errA := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(a))
	db, errB := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(b))
	return errA == nil && errB == nil && da == db && !reference.IsLoopback(a)
}
