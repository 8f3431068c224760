package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makeCertificate writes a certificate and its key.
func makeCertificate(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamingConfig(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	makeCertificate(t, cert, key, 1)
	c, err := readConfig(write(t, ""))
	if err != nil || c.streaming.address.String() != "127.0.0.1" || c.streaming.port != 0 || c.streaming.cert != "" || c.streaming.idleTimeout != 4*time.Hour {
		t.Errorf("defaults = %+v, %v", c.streaming, err)
	}
	c, err = readConfig(write(t, fmt.Sprintf("[streaming]\naddress = \"::1\"\nport = 10010\ntls_cert = %q\ntls_key = %q\nidle_timeout = \"90s\"\n", cert, key)))
	if s := c.streaming; err != nil || s.address.String() != "::1" || s.port != 10010 || s.cert != cert || s.key != key || s.certificate == nil || s.idleTimeout != 90*time.Second {
		t.Errorf("configuration = %+v, %v", s, err)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"a name", `address = "localhost"`, `key streaming.address: "localhost" is not an IP address`},
		{"address with a port", `address = "127.0.0.1:80"`, "key streaming.address"},
		{"negative port", `port = -1`, "key streaming.port: -1"},
		{"big port", `port = 65536`, "key streaming.port: 65536"},
		{"certificate alone", `tls_cert = "/c"`, "both or none"},
		{"key alone", `tls_key = "/k"`, "both or none"},
		{"relative path", "tls_cert = \"c\"\ntls_key = \"/k\"", `key streaming.tls_cert: "c" is not an absolute path`},
		{"no duration", `idle_timeout = "soon"`, "key streaming.idle_timeout"},
		{"no unit", `idle_timeout = "90"`, "key streaming.idle_timeout"},
		{"no time", `idle_timeout = "0s"`, "key streaming.idle_timeout"},
		{"unknown key", `host = "x"`, "unknown key streaming.host"},
	} {
		if _, err := readConfig(write(t, "[streaming]\n"+tc.text+"\n")); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestStreamingCertificateIsChecked(t *testing.T) {
	dir := t.TempDir()
	cert, key, bad, none := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "bad"), filepath.Join(dir, "none")
	makeCertificate(t, cert, key, 1)
	otherCert, otherKey := filepath.Join(dir, "cert2"), filepath.Join(dir, "key2")
	makeCertificate(t, otherCert, otherKey, 2)
	if err := os.WriteFile(bad, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	const certKey, keyKey = ":2: key streaming.tls_cert: ", ":3: key streaming.tls_key: "
	for _, tc := range []struct {
		name, cert, key string
		want            []string // of each line of what is printed: where, and the file
	}{
		{"good", cert, key, nil},
		{"no certificate", none, key, []string{certKey, none}},
		{"no key", cert, none, []string{keyKey, none}},
		{"neither", none, none, []string{certKey, none, keyKey, none}},
		{"a bad certificate", bad, key, []string{certKey, bad}},
		{"a bad key", cert, bad, []string{keyKey, bad}},
		{"a key in place of the certificate", key, key, []string{certKey, key}},
		{"the key of another", cert, otherKey, []string{keyKey, otherKey}},
		{"a folder", dir, key, []string{certKey, dir}},
	} {
		path := write(t, fmt.Sprintf("[streaming]\ntls_cert = %q\ntls_key = %q\n", tc.cert, tc.key))
		var out, errs bytes.Buffer
		code := configCommand([]string{"check", path}, &out, &errs)
		if want := min(len(tc.want), exitFailed); code != want {
			t.Errorf("%s: exit status %d, want %d", tc.name, code, want)
		}
		lines := strings.Split(strings.TrimSuffix(errs.String(), "\n"), "\n")
		if tc.want == nil && errs.Len() == 0 {
			continue
		}
		if len(lines) != len(tc.want)/2 {
			t.Errorf("%s: %q", tc.name, lines)
			continue
		}
		for i, line := range lines {
			if where, file := path+tc.want[2*i], tc.want[2*i+1]; !strings.HasPrefix(line, where) || !strings.Contains(line, file) {
				t.Errorf("%s: %q, want %q and the file %s", tc.name, line, where, file)
			}
		}
	}
}
