package main

import (
	"strings"
	"testing"
	"time"
)

func TestStreamingConfig(t *testing.T) {
	c, err := readConfig(write(t, ""))
	if err != nil || c.streaming.address.String() != "127.0.0.1" || c.streaming.port != 0 || c.streaming.cert != "" || c.streaming.idleTimeout != 4*time.Hour {
		t.Errorf("defaults = %+v, %v", c.streaming, err)
	}
	c, err = readConfig(write(t, "[streaming]\naddress = \"::1\"\nport = 10010\ntls_cert = \"/c\"\ntls_key = \"/k\"\nidle_timeout = \"90s\"\n"))
	if s := c.streaming; err != nil || s.address.String() != "::1" || s.port != 10010 || s.cert != "/c" || s.key != "/k" || s.idleTimeout != 90*time.Second {
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

func TestStreamingCertificateMustBeThere(t *testing.T) {
	c, err := readConfig(write(t, "[streaming]\ntls_cert = \"/no/such/cert\"\ntls_key = \"/no/such/key\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.streaming.listen(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "/no/such/cert") {
		t.Errorf("listen = %v, %v", s, err)
	}
}
