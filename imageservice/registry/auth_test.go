package registry

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

const secret = "SECRET0123"

func TestAuthentication(t *testing.T) {
	user := Credentials{Username: "u", Password: secret}
	basic := registrytest.Auth{Scheme: registrytest.Basic, Username: "u", Password: secret}
	token := registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: secret}
	for _, tc := range []struct {
		name string
		auth registrytest.Auth
		cred Credentials
		want error
	}{
		{"basic", basic, user, nil},
		{"basic, wrong password", basic, Credentials{Username: "u", Password: secret + "x"}, ErrUnauthorized},
		{"basic, anonymous", basic, Credentials{}, ErrUnauthorized},
		{"token", token, user, nil},
		{"token, wrong password", token, Credentials{Username: "u", Password: secret + "x"}, ErrUnauthorized},
		{"token, anonymous refused", token, Credentials{}, ErrUnauthorized},
		{"token, anonymous", registrytest.Auth{Scheme: registrytest.Token}, Credentials{}, nil},
		{"token that wears out", registrytest.Auth{Scheme: registrytest.Token, Uses: 1}, Credentials{}, nil},
		{"identity token", registrytest.Auth{Scheme: registrytest.Token, IdentityToken: secret}, Credentials{IdentityToken: secret}, nil},
		{"wrong identity token", registrytest.Auth{Scheme: registrytest.Token, IdentityToken: secret}, Credentials{IdentityToken: "x"}, ErrUnauthorized},
		{"registry token", registrytest.Auth{Scheme: registrytest.Token, Username: "u", RegistryToken: secret}, Credentials{RegistryToken: secret}, nil},
		{"wrong registry token", registrytest.Auth{Scheme: registrytest.Token, Username: "u", RegistryToken: secret}, Credentials{RegistryToken: "x"}, ErrUnauthorized},
		{"for another registry", basic, Credentials{Username: "u", Password: secret, ServerAddress: "https://reg.example/v1/"}, ErrUnauthorized},
	} {
		reg := start(t, registrytest.Options{Auth: tc.auth})
		p := push(t, reg, registrytest.Image{})
		err := pullAll(t.Context(), open(t, patient, p.Ref, tc.cred))
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error has the secret: %v", tc.name, err)
		}
		for _, r := range reg.Requests() {
			if tc.cred.ServerAddress != "" && r.Header.Get("Authorization") != "" {
				t.Errorf("%s: credentials were sent", tc.name)
			}
		}
		tc.cred.ServerAddress = "http://" + reg.Host() + "/v1/"
		if err := pullAll(t.Context(), open(t, patient, p.Ref, tc.cred)); tc.want == nil && err != nil {
			t.Errorf("%s with ServerAddress: %v", tc.name, err)
		}
	}
}

// sawSecrets reports requests that carry anything of the pull's.
func sawSecrets(reg *registrytest.Registry) string {
	for _, r := range reg.Requests() {
		for name, values := range r.Header {
			if name == "Authorization" || name == "Cookie" || strings.Contains(strings.Join(values, " "), secret) {
				return fmt.Sprintf("%s %s: %s", r.Method, r.Path, name)
			}
		}
		if strings.Contains(r.Query.Encode(), secret) {
			return r.Method + " " + r.Path + ": query"
		}
	}
	return ""
}

// TestCredentialsAreTriedOnce: a registry that goes on asking for credentials is not sent them again and again.
func TestCredentialsAreTriedOnce(t *testing.T) {
	reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: secret}})
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/manifests/", Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + reg.URL + `/token"`}}})
	_, err := open(t, patient, p.Ref, Credentials{Username: "u", Password: secret}).Manifest(t.Context())
	if n := reg.Count("GET", "/manifests/"); !errors.Is(err, ErrUnauthorized) || n != 2 {
		t.Errorf("%v after %d requests, want ErrUnauthorized after 2", err, n)
	}
}

func TestCredentialsStayWithTheirHostOnRedirects(t *testing.T) {
	for _, scheme := range []registrytest.Scheme{registrytest.Basic, registrytest.Token} {
		for _, path := range []string{"/manifests/", "/blobs/", "/token"} {
			for _, answer := range []int{0, 401} {
				reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: scheme, Username: "u", Password: secret}})
				evil := start(t, registrytest.Options{})
				p := push(t, reg, registrytest.Image{})
				push(t, evil, registrytest.Image{})
				reg.AddFault(registrytest.Fault{Path: path, Skip: 1, RedirectHost: evil.URL})
				if path == "/token" {
					reg.ClearFaults()
					reg.AddFault(registrytest.Fault{Path: path, RedirectHost: evil.URL})
				}
				if answer != 0 {
					evil.AddFault(registrytest.Fault{Status: answer, Header: http.Header{
						"Www-Authenticate": {`Basic realm="x", Bearer realm="` + evil.URL + `/token"`}, "Set-Cookie": {"a=b"}}})
				}
				err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{Username: "u", Password: secret}))
				if got := sawSecrets(evil); got != "" {
					t.Errorf("%v %s %d: sent to another host: %s", scheme, path, answer, got)
				}
				wantOK := answer == 0 && path != "/token" || path == "/token" && scheme == registrytest.Basic
				if (err == nil) != wantOK {
					t.Errorf("%v %s %d: %v", scheme, path, answer, err)
				}
			}
		}
	}
}

func TestRealmsOfOthersAreNotAsked(t *testing.T) {
	evil := start(t, registrytest.Options{})
	tlsEvil := start(t, registrytest.Options{TLS: true})
	for _, realm := range []string{
		evil.URL + "/token", tlsEvil.URL + "/token", "http://169.254.169.254/latest", "file:///etc/shadow", "//" + evil.Host() + "/token", "", ":", "http://",
		"https://u:p@" + tlsEvil.Host() + "/token",
	} {
		for _, cred := range []Credentials{{}, {Username: "u", Password: secret}, {IdentityToken: secret}} {
			reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: secret}})
			p := push(t, reg, registrytest.Image{})
			reg.AddFault(registrytest.Fault{Path: "/manifests/", Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + realm + `"`}}})
			if err := pullAll(t.Context(), open(t, patient, p.Ref, cred)); !errors.Is(err, ErrUnauthorized) {
				t.Errorf("realm %q: %v, want ErrUnauthorized", realm, err)
			}
		}
	}
	if n := len(evil.Requests()) + len(tlsEvil.Requests()); n != 0 {
		t.Errorf("%d requests to foreign realms", n)
	}
}

func TestRealmsThatTheOperatorNamesAreAsked(t *testing.T) {
	auth := start(t, registrytest.Options{TLS: true, Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: secret}})
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/manifests/", Times: 1, Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + auth.URL + `/token"`}}})
	toml := fmt.Sprintf("server = %q\nrealms = [%q]\n", reg.URL, auth.URL)
	files := map[string]string{reg.Host() + "/hosts.toml": toml}
	cred := Credentials{Username: "u", Password: secret}
	err := pullAll(t.Context(), open(t, Config{HostsDir: hostsDir(t, files)}, p.Ref, cred))
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("token server with an unknown certificate: %v", err)
	}
	reg.ClearFaults()
	reg.AddFault(registrytest.Fault{Path: "/manifests/", Times: 1, Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + auth.URL + `/token"`}}})
	files[reg.Host()+"/hosts.toml"] = toml + "skip_verify = true\n" // is for the registry, not for its token server
	err = pullAll(t.Context(), open(t, Config{HostsDir: hostsDir(t, files)}, p.Ref, cred))
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("skip_verify and a token server with an unknown certificate: %v", err)
	}
	reg.ClearFaults()
	reg.AddFault(registrytest.Fault{Path: "/manifests/", Times: 1, Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + auth.URL + `/token"`}}})
	files[reg.Host()+"/hosts.toml"] = toml + "ca = \"ca.pem\"\n"
	files[reg.Host()+"/ca.pem"] = string(auth.CertPEM())
	if err := pullAll(t.Context(), open(t, Config{HostsDir: hostsDir(t, files)}, p.Ref, cred)); err != nil {
		t.Error(err)
	}
}

func TestTrustRealm(t *testing.T) {
	for _, tc := range []struct {
		registry, realm string
		want            bool
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io/token", true},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true},
		{"https://reg.example.co.uk", "https://auth.example.co.uk/t", true},
		{"https://reg.example.co.uk", "https://evil.co.uk/t", false},
		{"https://reg.example.com", "http://auth.example.com/t", false},
		{"https://reg.example.com", "https://example.com.evil.com/t", false},
		{"https://reg.example.com:5000", "https://auth.example.com:5001/t", true},
		{"https://a.github.io", "https://b.github.io/t", false},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5001/t", false},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5000/t", true},
		{"http://10.0.0.1:5000", "http://10.0.0.1:5000/t", true},
		{"http://127.0.0.1:5000", "https://127.0.0.1:5001/t", false},
		{"https://registry", "https://registry/t", true},
		{"https://registry", "https://other/t", false},
		{"https://registry", "https://tokens.example/t", true},
		{"https://registry", "https://tokens.example:443/t", true},
		{"https://registry", "http://tokens.example/t", false},
		{"https://registry", "http://tokens.example:5001/t", true},
		{"https://registry", "https://tokens.example:5001/t", false},
		{"https://registry", "https://other.tokens.example/t", false},
	} {
		base, err := url.Parse(tc.registry)
		if err != nil {
			t.Fatal(err)
		}
		realm, err := url.Parse(tc.realm)
		if err != nil {
			t.Fatal(err)
		}
		e := &endpoint{base: base, spec: hostSpec{base: base, realms: []string{"https://tokens.example", "http://tokens.example:5001"}}}
		if err := e.trustRealm(realm); (err == nil) != tc.want {
			t.Errorf("trustRealm(%s, %s) = %v, want %v", tc.registry, tc.realm, err, tc.want)
		}
	}
}

func TestTokenServersAreBounded(t *testing.T) {
	for name, f := range map[string]registrytest.Fault{
		"2 MiB":      {Status: 200, Body: []byte(`{"token":"` + strings.Repeat("a", 2<<20) + `"}`)},
		"not JSON":   {Status: 200, Body: []byte("<html>")},
		"no token":   {Status: 200, Body: []byte(`{}`)},
		"line break": {Status: 200, Body: []byte(`{"token":"a\r\nX: y"}`)},
		"endless":    {Status: 200, Body: []byte(strings.Repeat(" ", 4<<20))},
	} {
		reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token}})
		p := push(t, reg, registrytest.Image{})
		f.Path = "/token"
		reg.AddFault(f)
		if err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{})); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %v, want ErrUnauthorized", name, err)
		}
	}
}

func TestCheckToken(t *testing.T) {
	for token, want := range map[string]bool{
		"a.b-c~": true, strings.Repeat("a", maxToken): true, "": false, strings.Repeat("a", maxToken+1): false, "a b": false, "a\r\nX: y": false, "a\x7f": false, "\u00e9": false,
	} {
		if err := checkToken(token); (err == nil) != want {
			t.Errorf("checkToken of %d bytes %.20q = %v", len(token), token, err)
		}
	}
}

// TestAnswersAreReadWithinBounds: what does not end is not kept in memory to see how long it is.
func TestAnswersAreReadWithinBounds(t *testing.T) {
	body := []byte(`{"token":"x"` + strings.Repeat(" ", 64<<20))
	for _, tc := range []struct {
		path   string
		status int
		text   string
	}{{"/token", 200, "larger than"}, {"/token", 500, "500"}, {"/manifests/", 200, "larger than"}, {"/manifests/", 500, "500"}} {
		reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token}})
		p := push(t, reg, registrytest.Image{})
		f := registrytest.Fault{Path: tc.path, Status: tc.status, Body: body}
		if tc.path == "/manifests/" {
			f.Skip = 1 // the one that asks for a token
		}
		reg.AddFault(f)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := open(t, patient, p.Ref, Credentials{}).Manifest(t.Context())
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s, %d: %v, want %q", tc.path, tc.status, err, tc.text)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
			t.Errorf("%s, %d: %d MiB allocated", tc.path, tc.status, grown>>20)
		}
	}
}

func TestTokenExpiresInTheMiddle(t *testing.T) {
	reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: secret, Uses: 1}})
	p := push(t, reg, registrytest.Image{})
	if err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{Username: "u", Password: secret})); err != nil {
		t.Error(err)
	}
	if n := reg.Count("GET", "/token"); n != 3 {
		t.Errorf("%d tokens for 3 requests, want 3", n)
	}
}

func TestOneTokenServesManyRequestsAtOnce(t *testing.T) {
	reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token}})
	p := push(t, reg, registrytest.Image{})
	s := open(t, patient, p.Ref, Credentials{})
	reg.AddFault(registrytest.Fault{Path: "/token", Wait: 50 * time.Millisecond})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.Fetch(t.Context(), Descriptor{Digest: p.Layers[0].Digest, Size: p.Layers[0].Size}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.Count("", "/token"); n != 1 {
		t.Errorf("%d tokens asked for, want 1", n)
	}
}

func TestRedirectsAreBoundedAndStayOnHTTPS(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/manifests/", RedirectHost: reg.URL})
	if err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{})); !errors.Is(err, ErrUnavailable) || reg.Count("", "/manifests/") != maxRedirects+1 {
		t.Errorf("endless redirects: %d requests, %v", reg.Count("", "/manifests/"), err)
	}
	safe := start(t, registrytest.Options{TLS: true})
	q := push(t, safe, registrytest.Image{})
	plain := start(t, registrytest.Options{})
	push(t, plain, registrytest.Image{})
	dir := hostsDir(t, map[string]string{safe.Host() + "/hosts.toml": `skip_verify = true`})
	for _, to := range []string{plain.URL + "/x?sig=" + secret, "file:///etc/passwd", "https://u:" + secret + "@127.0.0.1:1/"} {
		safe.ClearFaults()
		safe.AddFault(registrytest.Fault{Path: "/blobs/", Redirect: to})
		err := pullAll(t.Context(), open(t, Config{HostsDir: dir}, q.Ref, Credentials{}))
		if !errors.Is(err, errRefused) || strings.Contains(err.Error(), secret) {
			t.Errorf("redirect to %s: %v", to, err)
		}
	}
	if n := len(plain.Requests()); n != 0 {
		t.Errorf("%d requests by plain HTTP", n)
	}
}

func TestClientCertificateAndHeadersStayWithTheirHost(t *testing.T) {
	reg, other := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	push(t, other, registrytest.Image{})
	dir := hostsDir(t, map[string]string{reg.Host() + "/hosts.toml": fmt.Sprintf("server = %q\n[header]\nx-key = %q\n", reg.URL, secret)})
	reg.AddFault(registrytest.Fault{Path: "/blobs/", RedirectHost: other.URL})
	if err := pullAll(t.Context(), open(t, Config{HostsDir: dir}, p.Ref, Credentials{})); err != nil {
		t.Error(err)
	}
	if got := reg.Requests()[0].Header.Get("X-Key"); got != secret {
		t.Errorf("X-Key = %q", got)
	}
	if got := sawSecrets(other); got != "" {
		t.Errorf("sent to another host: %s", got)
	}
	tr, err := newTransports(hostSpec{skipVerify: true}, 1)
	if err != nil {
		t.Fatal(err)
	}
	tr.own.TLSClientConfig.Certificates = []tls.Certificate{{}}
	if c := tr.foreign.TLSClientConfig; c.InsecureSkipVerify || len(c.Certificates) > 0 {
		t.Error("foreign transport has exceptions of the endpoint")
	}
}

// TestAnswersOfOthersAreNotShown: a redirect may lead to what only this machine can reach. Nobody is told what that says, and it asks for nothing.
func TestAnswersOfOthersAreNotShown(t *testing.T) {
	for _, status := range []int{401, 403, 404, 500} {
		reg, inner := start(t, registrytest.Options{}), start(t, registrytest.Options{})
		p := push(t, reg, registrytest.Image{})
		reg.AddFault(registrytest.Fault{Path: "/blobs/", RedirectHost: inner.URL})
		inner.AddFault(registrytest.Fault{Status: status, Header: http.Header{"Www-Authenticate": {`Bearer realm="` + reg.URL + `/token"`}},
			Body: []byte(`{"errors":[{"code":"INNER","message":"the password is ` + secret + `"}]}`)})
		err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{}))
		if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "INNER") {
			t.Errorf("%d: %v, want ErrUnavailable and nothing of the answer", status, err)
		}
		if n := reg.Count("", "/token"); n != 0 {
			t.Errorf("%d: %d tokens were asked for", status, n)
		}
	}
}

// raw is a server that wants a password and then answers with a text of its own.
func raw(t *testing.T, answer string) (host string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil && r.Header.Get("Authorization") == "" && !strings.Contains(r.URL.Path, "/blobs/") {
					io.WriteString(c, "HTTP/1.1 401 \r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				} else if err == nil {
					io.WriteString(c, answer)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// What cannot be read of an answer is quoted by net/http. The registry may have been sent it, or it is of a service that only this machine can reach.
func TestMalformedAnswersAreNotQuoted(t *testing.T) {
	for name, answer := range map[string]string{
		"status line":       secret,
		"status code":       "HTTP/1.1 " + secret,
		"header":            "HTTP/1.1 200 OK\r\n" + secret,
		"length":            "HTTP/1.1 200 OK\r\nContent-Length: " + secret,
		"two lengths":       "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: " + secret,
		"transfer encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret,
		"chunk":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + secret,
		"trailer":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + secret,
	} {
		host := raw(t, answer+"\r\n\r\n")
		reg := start(t, registrytest.Options{})
		p := push(t, reg, registrytest.Image{})
		reg.AddFault(registrytest.Fault{Path: "/blobs/", RedirectHost: "http://" + host})
		for from, ref := range map[string]string{"the registry": host + "/a/b:1", "another host": p.Ref} {
			err := pullAll(t.Context(), open(t, patient, ref, Credentials{Username: "u", Password: secret}))
			if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), errMalformed.Error()) {
				t.Errorf("%s of %s: %v", name, from, err)
			}
		}
	}
}

func TestErrorsCarryNoSecrets(t *testing.T) {
	body := func(message string) []byte {
		return []byte(`{"errors":[{"code":"DENIED","message":` + fmt.Sprintf("%q", message) + `}]}`)
	}
	user := Credentials{Username: "us", Password: secret} // both in base64 end with =
	long := Credentials{Username: "us", Password: secret + strings.Repeat("x", 300)}
	const signature = "SIGNATURE0123" // which the registry alone knows
	for name, f := range map[string]registrytest.Fault{
		"message with the password":   {Status: 500, Body: body("you sent " + secret)},
		"message with both in base64": {Status: 500, Body: body("you sent " + user.pair())},
		"message with a long one":     {Status: 500, Body: body("you sent " + long.Password)},
		"message with a signed URL":   {Status: 500, Body: body("see https://x/y?sig=" + signature)},
		"message with a query":        {Status: 500, Body: body("see /y?" + signature + " token=" + signature + " Bearer " + signature)},
		"redirect to nowhere":         {Redirect: "http://127.0.0.1:1/x?sig=" + secret},
		"redirect to bad TLS":         {Redirect: "https://127.0.0.1:1/x?sig=" + secret},
		"redirect that is no address": {Redirect: "http://[::1/?sig=" + secret},
		"control characters":          {Status: 500, Body: body("\x1b[31m" + strings.Repeat("é", 10_000))},
	} {
		cred := user
		if strings.HasSuffix(name, "long one") {
			cred = long
		}
		reg := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Basic, Username: "us", Password: cred.Password}})
		p := push(t, reg, registrytest.Image{})
		f.Path, f.Skip = "/blobs/", 1
		reg.AddFault(f)
		err := pullAll(t.Context(), open(t, patient, p.Ref, cred))
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), signature) || strings.Contains(err.Error(), user.pair()[:10]) || len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := Credentials{Username: "u", Password: secret, RegistryToken: secret}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, &c); strings.Contains(s, secret) {
		t.Errorf("Credentials print as %s", s)
	}
}
