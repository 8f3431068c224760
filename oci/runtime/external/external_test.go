package external

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime"
)

func TestConfigNamesThePodsNamespacesAndOnlyDevices(t *testing.T) {
	limit := int64(5)
	s := &specs.Spec{Root: &specs.Root{Path: "elsewhere", Readonly: true}, Process: &specs.Process{}, Linux: &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
		Resources:  &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}, Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}}}
	before, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	got := Config(s, Namespaces{Network: "/proc/7/ns/net", UTS: "/proc/7/ns/uts"})
	want := &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace},
			{Type: specs.NetworkNamespace, Path: "/proc/7/ns/net"}, {Type: specs.UTSNamespace, Path: "/proc/7/ns/uts"}},
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}}
	if diff := cmp.Diff(want, got.Linux); diff != "" {
		t.Errorf("linux (-want +got):\n%s", diff)
	}
	if got.Version != "1.0.2" {
		t.Errorf("version %q, which old programs do not take", got.Version)
	}
	if *got.Root != (specs.Root{Path: "rootfs", Readonly: true}) {
		t.Errorf("root = %+v", got.Root)
	}
	if after, err := json.Marshal(s); err != nil || string(after) != string(before) {
		t.Errorf("the native engine's specification was changed: %s, %v", after, err)
	}
}

func TestCommandLines(t *testing.T) {
	p := &Program{Path: "/r", Root: "/s", Options: []string{"--debug"}}
	for want, line := range map[string][]string{
		"create --bundle /b --pid-file /b/pid id":                          p.Create("/b", "id", ""),
		"create --bundle /b --pid-file /b/pid --console-socket console id": p.Create("/b", "id", ConsoleName),
		"start id": p.Start("/b", "id"),
		"exec --detach --process /b/process.json --pid-file /b/pid --cgroup g --console-socket t id": p.Exec("/b", "id", "g", "t"),
	} {
		if got := strings.Join(line, " "); got != "/r --debug --root /s --log /b/log --log-format json "+want {
			t.Errorf("line %q, want ... %q", got, want)
		}
	}
}

func TestReasonIsTheLastError(t *testing.T) {
	dir := t.TempDir()
	if got := Reason(dir); got != "" {
		t.Errorf("without a log: %q", got)
	}
	log := `{"level":"error","msg":"first","time":"t"}` + "\nnoise\n" + `{"msg":"last \"word\"","level":"error"}` + "\n" + `{"level":"warning","msg":"w"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, logName), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Reason(dir); got != `last "word"` {
		t.Errorf("Reason = %q", got)
	}
	// A command may be as long as execve takes it, and programs quote it.
	long := log + `{"level":"error","msg":"exec: ` + strings.Repeat("x", 128<<10) + `: not found"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, logName), []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Reason(dir); !strings.HasPrefix(got, "exec: xxx") || len(got) != maxReason {
		t.Errorf("Reason of %d bytes, %.20q", len(got), got)
	}
}

// script makes a program of a shell script.
func script(t *testing.T, text string) *Program {
	t.Helper()
	dir := t.TempDir()
	p := &Program{Path: filepath.Join(dir, "runtime"), Root: filepath.Join(dir, "root")}
	rewrite(t, p, text)
	return p
}

func rewrite(t *testing.T, p *Program, text string) {
	t.Helper()
	if err := os.WriteFile(p.Path+".new", []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.Path+".new", p.Path); err != nil {
		t.Fatal(err)
	}
}

func TestFeaturesAreAskedForAgainWhenTheProgramChanges(t *testing.T) {
	native := runtime.NativeFeatures().RecursiveReadOnlyMounts
	asked := filepath.Join(t.TempDir(), "asked")
	p := script(t, "test $1 = features || exit 0; echo x >>"+asked+"\n"+`echo '{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}'`)
	var prober Prober
	for range 3 {
		got, err := prober.Features(t.Context(), p)
		if err != nil || got != (runtime.Features{RecursiveReadOnlyMounts: native}) {
			t.Errorf("Features = %+v, %v", got, err)
		}
	}
	if text, err := os.ReadFile(asked); err != nil || string(text) != "x\n" {
		t.Errorf("asked %q times, %v", text, err)
	}
	rewrite(t, p, "test $1 = --version && exit; echo 'no such command: features' >&2; exit 1")
	for range 2 {
		if got, err := prober.Features(t.Context(), p); err == nil || !strings.Contains(err.Error(), "no such command") || got != (runtime.Features{}) {
			t.Errorf("Features of an old program = %+v, %v", got, err)
		}
	}
	if err := prober.Usable(t.Context(), p); err != nil {
		t.Errorf("an old program cannot be used: %v", err)
	}
	if err := os.Remove(p.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := prober.Features(t.Context(), p); err == nil {
		t.Error("a program that is gone has features")
	}
}

func TestUsable(t *testing.T) {
	p := script(t, "exit 0")
	var prober Prober
	usable := func(says string) {
		t.Helper()
		err := prober.Usable(t.Context(), p)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), p.Path)) {
			t.Errorf("Usable = %v, want %q", err, says)
		}
	}
	usable("")
	if err := os.Rename(p.Path, p.Path+".away"); err != nil {
		t.Fatal(err)
	}
	usable("no such file")
	rewrite(t, p, "echo libyajl is missing >&2; exit 127")
	usable("libyajl is missing")
	usable("libyajl is missing") // as it is known
	rewrite(t, p, "exit 0")
	usable("")
	if err := os.Chmod(p.Path, 0o644); err != nil {
		t.Fatal(err)
	}
	usable("permission denied")
	if err := os.Chmod(p.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	usable("")
	broken := *p
	broken.Options = []string{"--nonsense"}
	rewrite(t, p, "test $1 = --version")
	p = &broken
	usable("exit status 1")
}

// A program that hangs is not waited for by everybody who asks, and is asked again when its file changes.
func TestUsableWhenItHangs(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	p := script(t, "echo x >>"+asked+"; sleep 1000")
	var prober Prober
	for range 3 {
		if err := prober.Usable(t.Context(), p); err == nil {
			t.Error("a program that hangs can be used")
		}
		for _, known := range prober.known {
			known.at = known.at.Add(-2 * believed)
		}
	}
	if text, err := os.ReadFile(asked); err != nil || string(text) != "x\n" {
		t.Errorf("asked %q, %v, want once", text, err)
	}
	rewrite(t, p, "exit 0")
	if err := prober.Usable(t.Context(), p); err != nil {
		t.Errorf("Usable = %v", err)
	}
}

// A caller that gives up is not an answer.
func TestUsableForTheNextCaller(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	p := script(t, "test -e "+gate+" || sleep 1000")
	var prober Prober
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := prober.Usable(ctx, p); err == nil {
		t.Error("a program that hangs can be used")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prober.Usable(t.Context(), p); err != nil {
		t.Errorf("Usable = %v", err)
	}
}

func TestDelete(t *testing.T) {
	p := script(t, `test -z "$SECRET" || exit 9; pwd >`+filepath.Join(t.TempDir(), "cwd")+`; echo "$@" >"$2/../called"; exit 3`)
	t.Setenv("SECRET", "1")
	if err := p.Delete(t.Context(), "/b", "id"); err != nil {
		t.Errorf("without state: %v", err)
	}
	state := filepath.Join(p.Root, "id")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	err := p.Delete(t.Context(), "/b", "id")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("Delete = %v, want what the program said", err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state is still there: %v", err)
	}
	called, err := os.ReadFile(filepath.Join(p.Root, "../called"))
	if want := "--root " + p.Root + " --log /b/log --log-format json delete --force id\n"; err != nil || string(called) != want {
		t.Errorf("called with %q, %v, want %q", called, err, want)
	}
}

// A runtime that is killed while its program is mounted over a file of its state leaves that behind.
func TestRemoveStateWithAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root for mounts")
	}
	dir := t.TempDir()
	state, victim := filepath.Join(dir, "the state"), filepath.Join(dir, "victim")
	for _, d := range []string{filepath.Join(state, "a"), victim} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(state, "runc.x"), filepath.Join(victim, "file")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for source, target := range map[string]string{"/proc/self/exe": "runc.x", victim: "a"} {
		if err := unix.Mount(source, filepath.Join(state, target), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := RemoveState(state); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(victim, "file")); err != nil {
		t.Errorf("what was mounted was removed: %v", err)
	}
}

func TestDeleteDoesNotWaitForEver(t *testing.T) {
	p := script(t, "sleep 1000")
	if err := os.MkdirAll(filepath.Join(p.Root, "id"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Delete(ctx, "/b", "id"); err == nil {
		t.Error("Delete = nil")
	}
}

// Another runtime finds in the bundle what mounts show of images, and nothing else of them.
func TestBundleOfImages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root for mounts")
	}
	dir := t.TempDir()
	image, empty := filepath.Join(dir, "image"), filepath.Join(dir, "empty")
	for _, d := range []string{filepath.Join(image, "etc"), empty, filepath.Join(dir, "up"), filepath.Join(dir, "work")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(image, "etc/conf"), []byte("image"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../etc", filepath.Join(image, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "empty"), filepath.Join(image, "out")); err != nil {
		t.Fatal(err)
	}
	layers := func(more ...string) []runtime.Mount {
		return []runtime.Mount{{Type: "overlay", Options: append([]string{"lowerdir+=" + image}, more...)}}
	}
	options := []string{"rprivate", "ro", "nodev"}
	mount := func(at, below string) specs.Mount {
		return specs.Mount{Destination: at, Type: runtime.TypeImage, Source: "sha256:i" + below, Options: options}
	}
	config := &specs.Spec{Version: "1", Linux: &specs.Linux{}, Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, mount("/all", ""), mount("/link", "/link"), mount("/file", "/link/conf")}}
	b := Bundle{Folder: filepath.Join(dir, "bundle"), Config: config, Trees: runtime.Trees{Root: layers("upperdir="+dir+"/up", "workdir="+dir+"/work"),
		Images: map[string][]runtime.Mount{"sha256:i": layers("lowerdir+=" + empty)}}}
	if err := b.Write(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Remove(b.Folder) })
	text, err := os.ReadFile(filepath.Join(b.Folder, configName))
	if err != nil {
		t.Fatal(err)
	}
	var written specs.Spec
	if err := json.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	for i, file := range []string{"", "etc/conf", "conf", ""} {
		m := written.Mounts[i]
		if i == 0 {
			continue
		}
		if m.Type != "bind" || filepath.Dir(m.Source) != b.Folder || strings.Join(m.Options, " ") != "bind rprivate ro nodev" {
			t.Errorf("mount %d = %+v", i, m)
		}
		if text, err := os.ReadFile(filepath.Join(m.Source, file)); err != nil || string(text) != "image" {
			t.Errorf("mount %d: %q, %v", i, text, err)
		}
	}
	if config.Mounts[1].Type != runtime.TypeImage || len(options) != 3 {
		t.Error("the native engine's specification was changed")
	}
	for range 2 {
		if err := Remove(b.Folder); err != nil {
			t.Error(err)
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if _, gone := os.Lstat(b.Folder); err != nil || !os.IsNotExist(gone) || strings.Contains(string(table), b.Folder) {
		t.Errorf("the bundle is still there: %v, %v", gone, err)
	}
	config.Mounts = append(config.Mounts, mount("/out", "/out"))
	if err := b.Write(); err == nil {
		t.Error("a link leads out of the image")
	}
	if err := Remove(b.Folder); err != nil { // of half a bundle
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(image, "etc/conf")); err != nil || string(text) != "image" {
		t.Errorf("the image was changed: %q, %v", text, err)
	}
}

func TestBundle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root for mounts")
	}
	defer unix.Umask(unix.Umask(0o022))
	dir := t.TempDir()
	lower, victim := filepath.Join(dir, "lower"), filepath.Join(dir, "victim")
	for _, d := range []string{lower, victim, filepath.Join(dir, "up"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"absolute": victim, "up": "../../../../../../.." + victim, "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(lower, name)); err != nil {
			t.Fatal(err)
		}
	}
	b := Bundle{Folder: filepath.Join(dir, "bundle"), Config: &specs.Spec{Version: "1", Linux: &specs.Linux{}}, Directories: []string{"/a/b", "/absolute/x", "/up/y", "/"},
		Trees: runtime.Trees{Root: []runtime.Mount{{Type: "overlay", Options: []string{"lowerdir+=" + lower, "upperdir=" + dir + "/up", "workdir=" + dir + "/work"}}}}}
	if err := b.Write(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(b.Folder, rootfsName), unix.MNT_DETACH) })
	for _, want := range []string{"a/b", victim[1:] + "/x", victim[1:] + "/y"} {
		if st, err := os.Stat(filepath.Join(b.Folder, rootfsName, want)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v", want, err)
		}
	}
	if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
		t.Errorf("the image's links lead out of its root: %v, %v", entries, err)
	}
	if st, err := os.Stat(b.Folder); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the bundle's folder: %v, %v", st.Mode(), err)
	}
	if err := WriteExec(ExecFolder(b.Folder, "exec-1"), &specs.Process{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	// Hooks are executed in the bundle's folder.
	if err := os.MkdirAll(filepath.Join(b.Folder, "of a hook", "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(b.Folder, "of a hook", "file"), nil, 0o600), os.Symlink(victim, filepath.Join(b.Folder, "of a hook", "link")),
		os.WriteFile(filepath.Join(victim, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(b.Folder); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(b.Folder); !os.IsNotExist(err) {
		t.Errorf("the bundle is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(victim, "file")); err != nil {
		t.Errorf("what a hook's link named was removed: %v", err)
	}
	b.Directories = []string{"/loop/x"}
	if err := b.Write(); err == nil {
		t.Error("a loop of links was followed")
	}
	if err := Remove(b.Folder); err != nil {
		t.Error(err)
	}
	// runc 1.1 and others fill /dev on the host, and follow a link there.
	b.Directories = nil
	for _, name := range []string{"proc", "sys", "dev"} {
		link := filepath.Join(lower, name)
		if err := os.Symlink(victim, link); err != nil {
			t.Fatal(err)
		}
		if err := b.Write(); !errors.Is(err, unix.ELOOP) || !strings.Contains(err.Error(), name) {
			t.Errorf("an image whose /%s is a link: %v", name, err)
		}
		if err := errors.Join(Remove(b.Folder), os.Remove(link)); err != nil {
			t.Fatal(err)
		}
	}
}
