package cni_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

const template = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "fake", "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}"{{$r}}"{{end}}]}]}`

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestConfigurationOfATemplate(t *testing.T) {
	cfg := bridgeConfig(t)
	d := open(t, cfg)
	t.Cleanup(func() { must(t, d.Close()) })
	set := func(want cni.Rendering, ranges ...string) {
		t.Helper()
		if got, err := d.SetPodRanges(t.Context(), prefixes(ranges...)); err != nil || got != want {
			t.Errorf("SetPodRanges(%q) = %q, %v, want %q", ranges, got, err, want)
		}
	}
	path := filepath.Join(cfg.ConfDir, "10-berth.conflist")
	has := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q, %v, want %q", path, text, err, want)
		}
		entries, err := os.ReadDir(cfg.ConfDir)
		must(t, err)
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".tmp") {
				t.Errorf("%s is left", e.Name())
			}
		}
	}
	set(cni.NoTemplate, "10.1.0.0/24")
	cfg.Template = filepath.Join(t.TempDir(), "template")
	d.Reconfigure(cfg.Live)
	if _, err := d.SetPodRanges(t.Context(), prefixes("10.1.0.0/24")); err == nil || !strings.Contains(err.Error(), cfg.Template) {
		t.Errorf("without the file: %v", err)
	}
	for bad, want := range map[string]string{"{{.PodCDIR}}": "PodCDIR", `{"name": "x"}`: "plugin", "nonsense": "", `{"name": "a/b", "plugins": [{"type": "fake"}]}`: "a/b"} {
		must(t, os.WriteFile(cfg.Template, []byte(bad), 0o600))
		if _, err := d.SetPodRanges(t.Context(), prefixes("10.1.0.0/24")); err == nil || !strings.Contains(err.Error(), cfg.Template) || !strings.Contains(err.Error(), want) {
			t.Errorf("template %q: %v, want an error about %q", bad, err, want)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a bad template made a configuration")
	}
	must(t, os.WriteFile(cfg.Template, []byte(template), 0o600))
	for _, bad := range [][]netip.Prefix{nil, prefixes("10.1.0.0/24", "10.1.0.0/24"), {{}}} {
		if _, err := d.SetPodRanges(t.Context(), bad); !errors.Is(err, cni.ErrInvalid) {
			t.Errorf("SetPodRanges(%v) = %v, want ErrInvalid", bad, err)
		}
	}
	set(cni.RenderedAnew, "10.1.0.0/24", "fd00:1::/64")
	has(`"10.1.0.0/24", "fd00:1::/64"`)
	set(cni.RenderedUnchanged, "10.1.0.0/24", "fd00:1::/64")
	if engine, name := d.Engine(); engine != cni.EngineCNI || name != "pods" {
		t.Errorf("new pods get %s %s", engine, name)
	}
	// The next daemon knows its own.
	must(t, d.Close())
	d = open(t, cfg)
	set(cni.RenderedAnew, "10.2.0.0/24")
	has(`"10.2.0.0/24"`)
	// What somebody has put there stays.
	must(t, os.WriteFile(path, []byte(`{"name": "edited", "plugins": [{"type": "fake"}]}`), 0o600))
	set(cni.OtherConfigured, "10.3.0.0/24")
	has("edited")
	must(t, os.Remove(path))
	other := filepath.Join(cfg.ConfDir, "50-other.conf")
	must(t, os.WriteFile(other, []byte(`{"name": "other", "type": "fake"}`), 0o600))
	set(cni.OtherConfigured, "10.3.0.0/24")
	must(t, os.Remove(other))
	set(cni.RenderedAnew, "10.3.0.0/24")
	must(t, os.WriteFile(other, []byte(`{"name": "other", "type": "fake"}`), 0o600))
	set(cni.OtherConfigured, "10.4.0.0/24")
	has(`"10.3.0.0/24"`)
	// A folder that is gone comes back.
	must(t, os.RemoveAll(cfg.ConfDir))
	set(cni.RenderedAnew, "10.5.0.0/24")
	has(`"10.5.0.0/24"`)
}

// The folder may be removed, with or without its parent, and made anew, any number of times: by installers, by people.
func TestFolderThatIsRemovedAndMadeAnew(t *testing.T) {
	cfg, _, d := newPluginHost(t, nil)
	files := map[string][]byte{}
	entries, err := os.ReadDir(cfg.ConfDir)
	must(t, err)
	for _, e := range entries {
		files[e.Name()], err = os.ReadFile(filepath.Join(cfg.ConfDir, e.Name()))
		must(t, err)
	}
	engine := func(want string) {
		t.Helper()
		if got, _ := d.Engine(); got != want {
			t.Errorf("new pods get %s, want %s", got, want)
		}
	}
	for range 3 {
		engine(cni.EngineCNI)
		must(t, os.RemoveAll(cfg.ConfDir))
		engine(cni.EngineBridge)
		must(t, os.MkdirAll(cfg.ConfDir, 0o755))
		engine(cni.EngineBridge)
		for name, text := range files {
			must(t, os.WriteFile(filepath.Join(cfg.ConfDir, name), text, 0o600))
		}
	}
	engine(cni.EngineCNI)
	// Another folder, while the daemon runs.
	was := cfg.ConfDir
	cfg.ConfDir = filepath.Join(t.TempDir(), "other")
	d.Reconfigure(cfg.Live)
	engine(cni.EngineBridge)
	cfg.ConfDir = was
	d.Reconfigure(cfg.Live)
	engine(cni.EngineCNI)
	a := attach(t, d, podRequest(t))
	must(t, d.Del(t.Context(), a))
}

// A plugin that hangs must not make the kubelet believe that the runtime does.
func TestStatusOfAPluginThatHangs(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	script(t, state, map[string]string{"STATUS": "hang"})
	begin := time.Now()
	if err := d.Status(t.Context()); !errors.Is(err, cni.ErrNotReady) || time.Since(begin) > 30*time.Second {
		t.Errorf("Status = %v after %v, want ErrNotReady", err, time.Since(begin))
	}
	_ = cnitest.SetScript(state, nil)
}
