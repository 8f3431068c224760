package reference

import (
	"errors"
	"strings"
	"testing"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseCompletesNames(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"busybox", "docker.io/library/busybox:latest"},
		{"busybox:1", "docker.io/library/busybox:1"},
		{"a/b", "docker.io/a/b:latest"},
		{"index.docker.io/a", "docker.io/library/a:latest"},
		{"127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"},
		{"localhost/a", "localhost/a:latest"},
		{"[::1]:5000/a", "[::1]:5000/a:latest"},
		{"reg.example/a@sha256:" + hex64, "reg.example/a@sha256:" + hex64},
		{"reg.example/a:v1@sha256:" + hex64, "reg.example/a@sha256:" + hex64},
		{"reg.example/a@sha512:" + hex64 + hex64, "reg.example/a@sha512:" + hex64 + hex64},
	} {
		got, err := Parse(tc.in)
		if err != nil || got.String() != tc.want {
			t.Errorf("Parse(%q) = %v, %v, want %v", tc.in, got, err, tc.want)
		}
		again, err := Parse(got.String())
		if err != nil || again != got {
			t.Errorf("Parse(%q) again = %v, %v, want %v", got, again, err, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "Busybox", "a:", "a@", "a:b:c", "-a", "a/../b", "../a", "/a", "a//b", "a/", hex64, "http://reg.example/a", "a\n", "a\x00b",
		"a@sha256:" + hex64[1:], "a@sha256:" + strings.ToUpper(hex64), "a@sha256:" + hex64 + "0", "a@sha384:" + hex64 + hex64[:32],
		"a@md5:" + hex64[:32], "a@sha256:../../" + hex64[6:], "a@sha256+b64:" + hex64, strings.Repeat("a", 256), strings.Repeat("a/", 4000) + "a",
		"a:" + strings.Repeat("t", 129),
	} {
		got, err := Parse(in)
		var invalid *InvalidError
		if !errors.Is(err, ErrInvalid) || !errors.As(err, &invalid) || invalid.Rule == "" {
			t.Errorf("Parse(%.80q) = %v, %v, want ErrInvalid with a rule", in, got, err)
		}
	}
}

func TestErrorsCarryNoSecrets(t *testing.T) {
	for _, in := range []string{
		"https://user:SECRET@reg.example/a", "reg.example/a?sig=SECRET", "user:SECRET@reg.example/a", "https://reg.example/a:1?token=SECRET#x",
		"https://user:p@SECRET@reg.example/a",
	} {
		_, err := Parse(in)
		if err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("Parse(%q) = %v, want an error without the secret", in, err)
		}
	}
}

func TestIDPrefix(t *testing.T) {
	for in, want := range map[string]string{
		hex64: hex64, "sha256:" + hex64: hex64, "abc": "abc", "sha256:0": "0",
		"": "", "sha256:": "", "xyz": "", "ABC": "", hex64 + "0": "", "sha512:abc": "",
	} {
		if got, ok := IDPrefix(in); got != want || ok != (want != "") {
			t.Errorf("IDPrefix(%q) = %q, %v, want %q", in, got, ok, want)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for in, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:5": true, "::1": true,
		"localhost.evil.example": false, "10.0.0.1:80": false, "127.0.0.1.evil.example": false, "0x7f.1": false, "": false,
	} {
		if got := IsLoopback(in); got != want {
			t.Errorf("IsLoopback(%q) = %v, want %v", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a/b:c@sha256:" + hex64)
	f.Add("[::1]:5000/a")
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := Parse(in)
		if err != nil {
			return
		}
		again, err := Parse(ref.String())
		if err != nil || again != ref {
			t.Errorf("Parse(%q) = %v, but Parse of that = %v, %v", in, ref, again, err)
		}
		if strings.Contains(ref.Target(), "/") || strings.Contains("/"+ref.Path+"/", "/../") || (ref.Tag == "") == (ref.Digest == "") {
			t.Errorf("Parse(%q) = %+v", in, ref)
		}
	})
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"registry.example/a/b:1":                           "registry.example/a/b:1",
		"busybox@sha256:12":                                "busybox@sha256:12",
		"u:secret@registry.example/x:1":                    "registry.example/x:1",
		"u:secret@registry.example:5000/x@sha256:12":       "registry.example:5000/x@sha256:12",
		"u:sec@ret@registry.example/x":                     "registry.example/x",
		"secret@shop.example:5000/x":                       "shop.example:5000/x",
		"https://u:secret@registry.example/x?token=secret": "https://registry.example/x",
		"https://u:se@cret@registry.example/x":             "https://registry.example/x",
		"registry.example/x:1?X-Amz-Signature=secret":      "registry.example/x:1",
		strings.Repeat("a", 300):                           strings.Repeat("a", 200) + "...",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}
