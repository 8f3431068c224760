package integration_test

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
)

// Secrets of a pull, each of which has a name of its own so that a leak says where it came from.
const (
	secretPassword = "swordfish-password"
	secretIdentity = "swordfish-identity"
	secretRegistry = "swordfish-registry"
	secretUserinfo = "swordfish-userinfo"
	secretQuery    = "swordfish-query"
	secretHeader   = "swordfish-header"
	secretIssued   = "swordfish-issued" // a token that a token server gives out
)

// leaks says which secrets a text has, in any of the forms in which they travel.
func leaks(text string) (found []string) {
	for _, form := range []string{
		"swordfish", url.QueryEscape("swordfish"), base64.StdEncoding.EncodeToString([]byte("u:" + secretPassword)),
		strings.TrimRight(base64.StdEncoding.EncodeToString([]byte("u:"+secretPassword)), "="), base64.StdEncoding.EncodeToString([]byte(secretIdentity)),
	} {
		if i := strings.Index(text, form); i >= 0 {
			found = append(found, text[max(0, i-60):min(len(text), i+len(form)+30)])
		}
	}
	return found
}

// TestSecretsOfPullsAreNowhere: whatever way a pull fails, and whatever a registry says meanwhile, no password, token, header or
// signed address is in the error, in the log at its highest verbosity, in what a verbose status says, or on the disk.
func TestSecretsOfPullsAreNowhere(t *testing.T) {
	d := harness.Start(t, harness.WithConfig("[images]\nstall_timeout = \"1s\"\nmirror_patience = \"300ms\""),
		func(_ *harness.Daemon, o *berthd.Options) { o.Verbosity = 10 })
	said := func(text string) []byte {
		return fmt.Appendf(nil, `{"errors":[{"code":"DENIED","message":%q}]}`, text)
	}
	everything := strings.Join([]string{secretPassword, secretIdentity, secretRegistry, secretHeader}, " ")
	signed := "?X-Amz-Signature=" + secretQuery + "&token=" + secretQuery
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:"+secretPassword))
	faults := map[string][]registrytest.Fault{
		"refused": nil, // the credentials are wrong
		"401 that repeats what it was sent": {{Status: 401, Body: said("you sent " + everything), Header: http.Header{
			"Www-Authenticate": {`Basic realm="` + secretPassword + `"`}}}},
		"403 that repeats what it was sent":     {{Status: 403, Body: said("you sent " + basic + " and Bearer " + secretRegistry)}},
		"500 that repeats what it was sent":     {{Status: 500, Body: said("you sent " + everything)}},
		"500 with a signed address":             {{Status: 500, Body: said("see https://store.example/x" + signed)}},
		"404 in plain words":                    {{Status: 404, Body: []byte(everything)}},
		"redirect to nobody":                    {{Path: "/blobs/", Redirect: "http://127.0.0.1:1/x" + signed}},
		"redirect to nobody, TLS":               {{Path: "/blobs/", Redirect: "https://127.0.0.1:1/x" + signed}},
		"redirect that is no address":           {{Path: "/blobs/", Redirect: "http://[::1/" + signed}},
		"redirect with a user":                  {{Path: "/blobs/", Redirect: "https://u:" + secretUserinfo + "@127.0.0.1:1/"}},
		"redirect to another scheme":            {{Path: "/blobs/", Redirect: "file:///x" + signed}},
		"redirect to plain HTTP elsewhere":      {{Path: "/blobs/", Redirect: "http://192.0.2.1/x" + signed}},
		"token server that repeats":             {{Path: "/token", Status: 403, Body: said("you sent " + everything)}},
		"token server that redirects":           {{Path: "/token", Redirect: "http://127.0.0.1:1/" + signed}},
		"token server that answers no JSON":     {{Path: "/token", Status: 200, Body: []byte(secretIssued + " " + everything)}},
		"token that is none":                    {{Path: "/token", Status: 200, Body: []byte(`{"token":"` + secretIssued + `\r\nX: y"}`)}},
		"token server elsewhere":                {{Path: "/v2/", Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="https://u:` + secretUserinfo + `@evil.example/t` + signed + `"`}}}},
		"wrong bytes":                           {{Path: "/blobs/", Cut: registrytest.Corrupt, At: 5}},
		"resets":                                {{Path: "/blobs/", Cut: registrytest.Reset, At: 5}},
		"media type of somebody else":           {{Path: "/manifests/", Status: 200, Header: http.Header{"Content-Type": {secretQuery}}, Body: []byte(`{"a":"` + secretQuery + `"}`)}},
		"location beside an error":              {{Path: "/blobs/", Status: 503, Header: http.Header{"Location": {"https://x/" + signed}, "Retry-After": {"0"}}}},
		"signed address, and the store refuses": {{Path: "/blobs/", Skip: 1, Status: 403, Body: said(signed)}, {Path: "/blobs/", Redirect: "/v2/other/blobs/x" + signed}},
	}
	auths := map[string]*runtimeapi.AuthConfig{
		"basic":          {Username: "u", Password: secretPassword},
		"encoded":        {Auth: base64.StdEncoding.EncodeToString([]byte("u:" + secretPassword))},
		"not encoded":    {Auth: "u:" + secretPassword},
		"identity token": {IdentityToken: secretIdentity},
		"registry token": {RegistryToken: secretRegistry},
		"broken token":   {RegistryToken: secretRegistry + "\r\nX: y"},
		"server address": {Username: "u", Password: secretPassword, ServerAddress: "https://u:" + secretUserinfo + "@127.0.0.1:1/" + signed},
	}
	check := func(what, text string) { // by many at a time
		if found := leaks(text); len(found) > 0 {
			t.Errorf("%s: %q", what, found)
		}
	}
	pull := func(what, ref string, auth *runtimeapi.AuthConfig) {
		t.Helper()
		_, err := d.Images.PullImage(d.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
		if err != nil {
			check(what+": error", err.Error())
		}
		if s, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true}); err != nil {
			check(what+": error of ImageStatus", err.Error())
		} else {
			check(what+": status", s.String())
		}
	}
	hosts := func(host, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(d.Hosts, host), 0o755); err != nil {
			t.Fatal(err)
		}
		d.Write(filepath.Join(d.Hosts, host, "hosts.toml"), text)
	}
	good := []registrytest.Auth{
		{Scheme: registrytest.Basic, Username: "u", Password: secretPassword},
		{Scheme: registrytest.Token, Username: "u", Password: secretPassword, IdentityToken: secretIdentity, RegistryToken: secretRegistry},
	}
	var all errgroup.Group
	all.SetLimit(40)
	var ref string
	for name, list := range faults {
		for _, scheme := range good {
			if name == "refused" {
				scheme.Password, scheme.IdentityToken, scheme.RegistryToken = "x", "x", "x"
			}
			reg, err := registrytest.Start(registrytest.Options{Auth: scheme})
			if err != nil {
				t.Fatal(err)
			}
			defer reg.Close()
			p, err := reg.Push("private/x", "1", small(t, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				reg.AddFault(f)
			}
			ref = p.Ref
			hosts(strings.Replace(reg.Host(), ":", "_", 1)+"_", fmt.Sprintf("server = %q\n[header]\nx-team = %q\n", reg.URL, secretHeader))
			for kind, auth := range auths {
				all.Go(func() error {
					pull(name+", "+kind, p.Ref, auth)
					return nil
				})
			}
		}
	}
	_ = all.Wait() // what is wrong was reported
	// References and files that carry what they should not.
	for _, ref := range []string{"u:" + secretUserinfo + "@" + ref, "https://u:" + secretUserinfo + "@" + ref, ref + signed, "u:" + secretUserinfo + "@127.0.0.1:1/x:1"} {
		pull("reference", ref, auths["basic"])
	}
	for host, text := range map[string]string{
		"user.example":  "[host.\"https://u:" + secretUserinfo + "@127.0.0.1:1\"]\n",
		"query.example": "server = \"https://127.0.0.1:1/" + signed + "\"\n",
		"head.example":  "server = \"http://127.0.0.1:1\"\n[header]\nauthorization = \"Bearer " + secretHeader + "\"\n",
		"type.example":  "server = \"http://127.0.0.1:1\"\n[header]\nauthorization = [\"" + secretHeader + "\", 1]\n",
		"toml.example":  "[header]\nauthorization = \"" + secretHeader + "\n",
		"keys.example":  "[header]\nauthorization = \"" + secretHeader + "\"\nauthorization = \"" + secretHeader + "\"\n",
	} {
		hosts(host, text)
		pull(host, host+"/x:1", auths["basic"])
	}
	check("log", readRaw(t, d.Log))
	err := filepath.WalkDir(d.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == d.Hosts {
			return fs.SkipDir
		}
		if !e.Type().IsRegular() {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err == nil {
			check(path, string(raw))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
