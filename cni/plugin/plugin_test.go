package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/cnitest"
	"github.com/berthd/berth/cni/plugin"
)

func TestMain(m *testing.M) { cnitest.Main(m) }

// run executes the fake plugin with a script.
func run(t *testing.T, e *plugin.Exec, action string) (state string, out []byte, err error) {
	t.Helper()
	state = t.TempDir()
	if err := cnitest.SetScript(state, map[string]string{"ADD": action}); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err = e.ExecPlugin(t.Context(), exe, fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"n","type":"x","state":%q}`, state),
		append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_NETNS=/x"))
	return state, out, err
}

func TestPluginWorks(t *testing.T) {
	_, out, err := run(t, &plugin.Exec{}, "")
	if err != nil || !strings.Contains(string(out), "198.19.") {
		t.Errorf("ExecPlugin = %s, %v", out, err)
	}
}

func TestPluginThatFailsSaysWhy(t *testing.T) {
	_, _, err := run(t, &plugin.Exec{}, "fail")
	var said *types.Error
	if !errors.As(err, &said) || said.Code != 101 || said.Msg != "scripted failure" {
		t.Errorf("ExecPlugin = %v, want the plugin's own error", err)
	}
	for action, want := range map[string]string{"crash": "scripted crash", "noisy": "the end", "json and exit 1": "exit status 1"} {
		_, _, err := run(t, &plugin.Exec{}, action)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 8192 {
			t.Errorf("%s: %d bytes of error, want %q: %.300v", action, len(fmt.Sprint(err)), want, err)
		}
	}
}

func TestPluginThatWritesTooMuch(t *testing.T) {
	start := time.Now()
	_, _, err := run(t, &plugin.Exec{}, "huge")
	if err == nil || !strings.Contains(err.Error(), "1 MiB") || time.Since(start) > 30*time.Second {
		t.Errorf("ExecPlugin = %v after %s", err, time.Since(start))
	}
}

func TestPluginThatHangsIsKilledWithItsChildren(t *testing.T) {
	for _, action := range []string{"hang", "fork"} {
		for timeout := 3 * time.Second; ; timeout *= 3 {
			start := time.Now()
			state, _, err := run(t, &plugin.Exec{Timeout: timeout}, action)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), timeout.String()) {
				t.Errorf("%s: ExecPlugin = %v, want DeadlineExceeded that says %s", action, err, timeout)
			}
			if d := time.Since(start); d > timeout+30*time.Second {
				t.Errorf("%s: took %s", action, d)
			}
			if _, err := os.Stat(filepath.Join(state, "child")); err != nil && action == "fork" && timeout < 30*time.Second {
				continue // a busy machine: it had not come so far
			}
			if action == "fork" {
				checkGone(t, state)
			}
			break
		}
	}
}

func checkGone(t *testing.T, state string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(state, "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	t.Errorf("child %d of the plugin lives", pid)
}

func TestPluginThatEndsButLeavesAChildWithItsPipes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemonizes")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 300 &\necho $! >"+dir+"/child\necho '{}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	out, err := (&plugin.Exec{}).ExecPlugin(t.Context(), path, nil, os.Environ())
	if err != nil || string(out) != "{}\n" || time.Since(start) > time.Minute {
		t.Errorf("ExecPlugin = %q, %v after %s", out, err, time.Since(start))
	}
	if b, err := os.ReadFile(dir + "/child"); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func TestCallersContextEndsThePlugin(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	path := filepath.Join(dir, "loop")
	// What ignores signals tells its children to, as well.
	script := "#!/bin/sh\ntrap '' TERM INT\nsleep 300 &\nprintf $! >" + dir + "/new\nmv " + dir + "/new " + dir + "/child\nwhile :; do sleep 1; done\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "child")); err == nil {
				cancel()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	start := time.Now()
	if _, err := (&plugin.Exec{}).ExecPlugin(ctx, path, nil, os.Environ()); !errors.Is(err, context.Canceled) || time.Since(start) > 50*time.Second {
		t.Errorf("ExecPlugin = %v after %s", err, time.Since(start))
	}
	checkGone(t, dir)
}

func TestFindInPath(t *testing.T) {
	safe, open := t.TempDir(), t.TempDir()
	for _, dir := range []string{safe, open} {
		for name, mode := range map[string]os.FileMode{"good": 0o755, "data": 0o644, "open": 0o755} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(safe, "open"), 0o757), os.Chmod(safe, 0o755), os.Chmod(open, 0o777), os.Mkdir(filepath.Join(safe, "folder"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		dirs []string
		want string // of the error; "" is none
	}{
		{"good", []string{"/nowhere", safe}, ""},
		{"good", []string{open}, "writable by everybody"},
		{"open", []string{safe}, "writable by everybody"},
		{"data", []string{safe}, "not executable"},
		{"folder", []string{safe}, "not installed"},
		{"missing", []string{safe, open}, "not installed"},
		{"../good", []string{safe}, "not the name"},
		{"/bin/sh", []string{safe}, "not the name"},
		{"", []string{safe}, "not the name"},
		{"..", []string{safe}, "not the name"},
	} {
		path, err := (&plugin.Exec{}).FindInPath(tc.name, tc.dirs)
		if (tc.want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), strconv.Quote(tc.name))) {
			t.Errorf("FindInPath(%q, %q) = %q, %v; want %q", tc.name, tc.dirs, path, err, tc.want)
		}
	}
}
