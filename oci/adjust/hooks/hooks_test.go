package hooks

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

func write(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(folder+"/"+name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func described(when string, stages string) string {
	return `{"version": "1.0.0", "hook": {"path": "/bin/true", "args": ["true", "x"], "env": ["A=b"], "timeout": 3}, "when": ` + when + `, "stages": ` + stages + `}`
}

func container() *adjust.Container {
	return &adjust.Container{
		Pod:    &runtimeapi.PodSandboxConfig{Annotations: map[string]string{"of.pod/key": "pod value"}},
		Config: &runtimeapi.ContainerConfig{Annotations: map[string]string{"of.container/key": "yes", "empty": ""}},
		Spec:   &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/server", "--port"}}},
	}
}

func TestWhen(t *testing.T) {
	for _, tc := range []struct {
		name, when string
		mounts     int
		fits       bool
	}{
		{"no condition", `{}`, 1, false},
		{"always", `{"always": true}`, 0, true},
		{"never", `{"always": false, "hasBindMounts": true}`, 1, false},
		{"mounts", `{"hasBindMounts": true}`, 1, true},
		{"no mounts", `{"hasBindMounts": true}`, 0, false},
		{"annotation of the container", `{"annotations": {"^of\\.container/": "^yes$"}}`, 0, true},
		{"annotation of the pod", `{"annotations": {"of.pod": "value"}}`, 0, true},
		{"one of two annotations", `{"annotations": {"of.pod": "value", "^empty$": "."}}`, 0, false},
		{"command", `{"commands": ["^nothing$", "server$"]}`, 0, true},
		{"other command", `{"commands": ["^server$"]}`, 0, false},
		{"all of them", `{"always": true, "commands": ["server"], "annotations": {"of.pod": ""}, "hasBindMounts": true}`, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "a.json", described(tc.when, `["poststop", "createRuntime", "poststop"]`))
			c := container()
			for range tc.mounts {
				c.Config.Mounts = append(c.Config.Mounts, &runtimeapi.Mount{})
			}
			if err := (Folders{dir}).Adjust(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			var want *specs.Hooks
			if tc.fits {
				three := 3
				hook := []specs.Hook{{Path: "/bin/true", Args: []string{"true", "x"}, Env: []string{"A=b"}, Timeout: &three}}
				want = &specs.Hooks{CreateRuntime: hook, Poststop: hook}
			}
			if diff := cmp.Diff(want, c.Spec.Hooks); diff != "" {
				t.Errorf("hooks (-want +got):\n%s", diff)
			}
		})
	}
}

// Names decide the order, later folders win, and what is no file of a hook is not looked at.
func TestFolders(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	named := func(path string) string {
		return strings.Replace(described(`{"always": true}`, `["prestart"]`), "/bin/true", path, 1)
	}
	write(t, first, "20.json", named("/bin/cat"))
	write(t, first, "10.json", named("/bin/sh"))
	write(t, first, "30.json", "{")
	write(t, second, "30.json", named("/bin/true"))
	write(t, second, "00.conf", "{")
	if err := os.Mkdir(second+"/05.json", 0o755); err != nil {
		t.Fatal(err)
	}
	c := container()
	if err := (Folders{first, second + "/missing", second}).Adjust(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range c.Spec.Hooks.Prestart { //nolint:staticcheck // deprecated, and in use
		got = append(got, h.Path)
	}
	if diff := cmp.Diff([]string{"/bin/sh", "/bin/cat", "/bin/true"}, got); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
}

func TestBadFiles(t *testing.T) {
	good := described(`{"always": true}`, `["prestart"]`)
	for _, tc := range []struct{ name, text, says string }{
		{"no JSON", `{`, "unexpected EOF"},
		{"empty", ``, "EOF"},
		{"two", good + good, "follows"},
		{"old version", strings.Replace(good, "1.0.0", "0.1.0", 1), `"0.1.0"`},
		{"unknown key", strings.Replace(good, `"when"`, `"wenn"`, 1), `"wenn"`},
		{"unknown condition", described(`{"allways": true}`, `["prestart"]`), `"allways"`},
		{"relative path", strings.Replace(good, "/bin/true", "true", 1), `"true" is not an absolute path`},
		{"missing program", strings.Replace(good, "/bin/true", "/no/such", 1), `/no/such`},
		{"no program", strings.Replace(good, "/bin/true", "/etc/passwd", 1), `/etc/passwd`},
		{"no stage", described(`{"always": true}`, `[]`), "stages is empty"},
		{"unknown stage", described(`{"always": true}`, `["later"]`), `"later"`},
		{"timeout", strings.Replace(good, `"timeout": 3`, `"timeout": 0`, 1), "timeout"},
		{"environment", strings.Replace(good, `A=b`, `secret`, 1), "no name"},
		{"bad key", described(`{"annotations": {"(": ""}}`, `["prestart"]`), "when.annotations"},
		{"bad value", described(`{"annotations": {"a": "["}}`, `["prestart"]`), "when.annotations"},
		{"bad command", described(`{"commands": ["*"]}`, `["prestart"]`), "when.commands"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "bad.json", tc.text)
			err := (Folders{dir}).Adjust(t.Context(), container())
			if err == nil || !strings.Contains(err.Error(), dir+"/bad.json") || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that names the file and says %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v tells a value", err)
			}
		})
	}
	t.Run("program of the container", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "a.json", strings.Replace(described(`{"always": true}`, `["startContainer"]`), "/bin/true", "/only/there", 1))
		if err := (Folders{dir}).Adjust(t.Context(), container()); err != nil {
			t.Error(err)
		}
	})
}
