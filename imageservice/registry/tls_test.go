package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// certificate writes a certificate and its key, in two files and in one, and returns the folder.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, raw := range map[string][]byte{"node.cert": certPEM, "node.key": keyPEM, "both.pem": append(certPEM, keyPEM...)} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestHostsFileIsObeyed pulls from a registry that wants to be spoken to in a certain way, as a hosts.toml says.
func TestHostsFileIsObeyed(t *testing.T) {
	certs := certificate(t)
	for _, tc := range []struct {
		name  string
		opts  registrytest.Options
		hosts string // %[1]s is the registry's URL, %[2]s its certificate's file, %[3]s the folder of client certificates
		ok    bool
		check func(*registrytest.Registry) error
	}{
		{name: "unknown certificate", opts: registrytest.Options{TLS: true}, hosts: `server = "%[1]s"`},
		{name: "ca", opts: registrytest.Options{TLS: true}, hosts: "server = \"%[1]s\"\nca = \"%[2]s\"", ok: true},
		{name: "cas", opts: registrytest.Options{TLS: true}, hosts: "server = \"%[1]s\"\nca = [\"%[2]s\"]", ok: true},
		{name: "skip_verify", opts: registrytest.Options{TLS: true}, hosts: "server = \"%[1]s\"\nskip_verify = true", ok: true},
		{name: "skip_verify of another", opts: registrytest.Options{TLS: true}, hosts: "server = \"%[1]s\"\n[host.\"http://127.0.0.1:1\"]\nskip_verify = true"},
		{name: "no client certificate", opts: registrytest.Options{TLS: true, ClientCertificate: true}, hosts: "server = \"%[1]s\"\nca = \"%[2]s\""},
		{
			name: "client certificate and key", opts: registrytest.Options{TLS: true, ClientCertificate: true}, ok: true,
			hosts: "server = \"%[1]s\"\nca = \"%[2]s\"\nclient = [[\"%[3]s/node.cert\", \"%[3]s/node.key\"]]",
		},
		{
			name: "client certificate with its key", opts: registrytest.Options{TLS: true, ClientCertificate: true}, ok: true,
			hosts: "server = \"%[1]s\"\nca = \"%[2]s\"\nclient = \"%[3]s/both.pem\"",
		},
		{
			name: "client certificate of a mirror", opts: registrytest.Options{TLS: true, ClientCertificate: true}, ok: true,
			hosts: "server = \"http://127.0.0.1:1\"\n[host.\"%[1]s\"]\nca = \"%[2]s\"\nclient = [[\"%[3]s/node.cert\", \"%[3]s/node.key\"]]",
		},
		{
			name: "header", hosts: "server = \"%[1]s\"\n[header]\nx-team = [\"a\", \"b\"]", ok: true,
			check: func(reg *registrytest.Registry) error {
				for _, r := range reg.Requests() {
					if got := r.Header.Values("X-Team"); strings.Join(got, ",") != "a,b" {
						return fmt.Errorf("%s has X-Team %q", r.Path, got)
					}
				}
				return nil
			},
		},
		{name: "dial_timeout", hosts: "server = \"%[1]s\"\ndial_timeout = \"5s\"", ok: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, tc.opts)
			p := push(t, reg, registrytest.Image{})
			ca := ""
			if tc.opts.TLS {
				ca = filepath.Join(t.TempDir(), "ca.pem")
				if err := os.WriteFile(ca, reg.CertPEM(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			text := fmt.Sprintf(tc.hosts+"%.0[1]s%.0[2]s%.0[3]s", reg.URL, ca, certs)
			config := patient
			config.HostsDir = hostsDir(t, map[string]string{strings.Replace(reg.Host(), ":", "_", 1) + "_/hosts.toml": text})
			err := pullAll(t.Context(), open(t, config, p.Ref, Credentials{}))
			if tc.ok && err != nil || !tc.ok && !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v, want that it works: %v", err, tc.ok)
			}
			if tc.check != nil {
				if err := tc.check(reg); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestOverriddenPathsAreTakenAsTheyAre(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/proxy/of/hub/")
		if !ok || r.URL.Query().Get("ns") != "registry.example" {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		r.URL.Path = "/v2/" + rest
		reg.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	config := patient
	config.HostsDir = hostsDir(t, map[string]string{
		"registry.example/hosts.toml": "server = \"http://127.0.0.1:1\"\n[host.\"" + proxy.URL + "/proxy/of/hub\"]\noverride_path = true\n",
	})
	s := open(t, config, "registry.example/a/b:1", Credentials{})
	if err := pullAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	all := s.Endpoints()
	if all[0].URL != proxy.URL+"/proxy/of/hub" || all[0].Answers != 3 || all[1].Answers+all[1].Failures != 0 ||
		!strings.HasSuffix(all[0].Source, "registry.example/hosts.toml, host 1") || !strings.HasSuffix(all[1].Source, "hosts.toml, server") {
		t.Errorf("%+v of %s", all, p.Ref)
	}
}

// TestHTTP1Alone: a registry that offers HTTP/2, and where it redirects to, are spoken to in HTTP/1.1: in HTTP/2 a GOAWAY, or a lost packet, is that of
// all chunks and all layers.
func TestHTTP1Alone(t *testing.T) {
	reg := start(t, registrytest.Options{})
	var mu sync.Mutex
	seen := map[string]int{}
	serve := func(name string) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen[name+" "+r.Proto]++
			mu.Unlock()
			reg.ServeHTTP(w, r)
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	registry, storage := serve("registry"), serve("storage")
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/blobs/" + p.Layers[0].Digest.String(), Times: 1, RedirectHost: storage.URL})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: registry.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	config := patient
	config.HostsDir = hostsDir(t, map[string]string{"registry.example/hosts.toml": fmt.Sprintf("server = %q\nca = %q\n", registry.URL, ca)})
	if err := pullAll(t.Context(), open(t, config, "registry.example/a/b:1", Credentials{})); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := map[string]int{"registry HTTP/1.1": 3, "storage HTTP/1.1": 1}; !maps.Equal(seen, want) {
		t.Errorf("requests %v, want %v", seen, want)
	}
}

// TestExpiredCertificate: the error has the host and the cause, nobody tries again, and a mirror like that is passed over.
func TestExpiredCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	var connections atomic.Int64
	expired := httptest.NewUnstartedServer(reg)
	expired.Config.ErrorLog = log.New(io.Discard, "", 0)
	expired.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	expired.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	expired.StartTLS()
	t.Cleanup(expired.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	config := patient
	config.HostsDir = hostsDir(t, map[string]string{
		"registry.example/hosts.toml":                             fmt.Sprintf("server = %q\nca = %q\n", expired.URL, ca),
		strings.Replace(reg.Host(), ":", "_", 1) + "_/hosts.toml": fmt.Sprintf("server = %q\n[host.%q]\nca = %q\n", reg.URL, expired.URL, ca),
	})
	host := expired.Listener.Addr().String()
	_, err = open(t, config, "registry.example/a/b:1", Credentials{}).Manifest(t.Context())
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v, want ErrUnavailable with %s and the cause", err, host)
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if err := pullAll(t.Context(), open(t, config, p.Ref, Credentials{})); err != nil {
		t.Errorf("beside a mirror like that: %v", err)
	}
}

func TestTransient(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"no such host", &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}, false},
		{"the resolver does not answer", &net.DNSError{Err: "timeout", Name: "x", IsTimeout: true, IsTemporary: true}, true},
		{"an unknown authority", x509.UnknownAuthorityError{}, false},
		{"no TLS", tls.RecordHeaderError{Msg: "x"}, false},
		{"refused by the other side's TLS", tls.AlertError(42), false},
		{"a reset", unix.ECONNRESET, true},
		{"cancelled", context.Canceled, false},
	} {
		if got := transient(&net.OpError{Op: "dial", Err: tc.err}); got != tc.want {
			t.Errorf("%s: transient = %v, want %v", tc.name, got, tc.want)
		}
	}
}
