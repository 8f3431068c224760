package conflist

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	listA = `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	listB = `{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}`
)

func current(t *testing.T, f *Folder) string {
	t.Helper()
	list, err := f.Current()
	if err != nil {
		t.Fatal(err)
	}
	if list == nil {
		return ""
	}
	return list.Name
}

func TestFirstFileByNameCountsAndChangesAreSeenAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cni", "net.d")
	f := Open(dir)
	if got := current(t, f); got != "" {
		t.Errorf("no folder: %q", got)
	}
	write(t, filepath.Join(dir, "README"), "not a configuration")
	write(t, filepath.Join(dir, "50-b.conflist"), listB)
	if got := current(t, f); got != "b" {
		t.Errorf("one file: %q", got)
	}
	write(t, filepath.Join(dir, "10-a.conflist"), listA)
	if got := current(t, f); got != "a" {
		t.Errorf("an earlier file: %q", got)
	}
	time.Sleep(2 * settled) // beyond the age from which times are trusted
	if got := current(t, f); got != "a" {
		t.Errorf("nothing changed: %q", got)
	}
	write(t, filepath.Join(dir, "10-a.conflist"), strings.Replace(listA, `"name":"a"`, `"name":"c"`, 1))
	if got := current(t, f); got != "c" {
		t.Errorf("rewritten in place: %q", got)
	}
	if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	if got := current(t, f); got != "" {
		t.Errorf("folder removed: %q", got)
	}
	write(t, filepath.Join(dir, "10-b.conflist"), listB)
	if got := current(t, f); got != "b" {
		t.Errorf("folder made again: %q", got)
	}
	if err := os.Rename(filepath.Join(dir, "10-b.conflist"), filepath.Join(dir, "10-b.off")); err != nil {
		t.Fatal(err)
	}
	if got := current(t, f); got != "" {
		t.Errorf("file renamed away: %q", got)
	}
}

func TestConfigOutlivesTheFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1.conf"), `{"cniVersion":"1.0.0","name":"single","type":"macvlan","master":"eth0"}`)
	list, err := Open(dir).Current()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(list.Config)
	if err != nil {
		t.Fatal(err)
	}
	if again.Name != "single" || len(again.Plugins) != 1 || again.Plugins[0].Network.Type != "macvlan" || !strings.Contains(string(again.Plugins[0].Bytes), "eth0") {
		t.Errorf("Parse(%s) = %+v", list.Config, again)
	}
}

func TestPluginsOfTheNetworksFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1.conflist"), `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one"}]}`)
	write(t, filepath.Join(dir, "net", "2.conf"), `{"type":"two"}`)
	list, err := Open(dir).Current()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(list.Config)
	if err != nil || len(again.Plugins) != 2 || again.Plugins[1].Network.Type != "two" {
		t.Errorf("Parse(%s) = %+v, %v", list.Config, again, err)
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	for name, content := range map[string]string{
		"half written":        listA[:40],
		"empty":               "",
		"not JSON":            "name: a",
		"NUL":                 strings.Replace(listA, `"a"`, "\"a\x00\"", 1),
		"too large":           listA + strings.Repeat(" ", maxBytes),
		"no plugins":          `{"cniVersion":"1.0.0","name":"a","plugins":[]}`,
		"plugin is a path":    `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../../tmp/x"}]}`,
		"plugin is /bin/sh":   `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"/bin/sh"}]}`,
		"plugin is ..":        `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":".."}]}`,
		"ipam is a path":      `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","ipam":{"type":"../x"}}]}`,
		"NUL escaped":         `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"x\u0000"}]}`,
		"network is a path":   `{"cniVersion":"1.0.0","name":"../a","plugins":[{"type":"bridge"}]}`,
		"version of the next": `{"cniVersion":"2.0.0","name":"a","plugins":[{"type":"bridge"}]}`,
		"version is nonsense": `{"cniVersion":"x","name":"a","plugins":[{"type":"bridge"}]}`,
		"deep":                `{"a":` + strings.Repeat("[", 100000),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "10-bad.conflist")
		write(t, path, content)
		write(t, filepath.Join(dir, "20-good.conflist"), listB)
		list, err := Open(dir).Current()
		var bad *FileError
		if list != nil || !errors.As(err, &bad) || bad.File != path || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Current = %v, %v; want an error that names %s", name, list, err, path)
		}
	}
}

func TestFIFOIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "1.conflist"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir).Current(); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("Current = %v", err)
	}
}

func TestLastGoodContentsServeWhileAFileIsRewritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "1.conflist")
	write(t, path, listA)
	f := Open(dir)
	if got := current(t, f); got != "a" {
		t.Fatal(got)
	}
	write(t, path, listB[:30])
	if got := current(t, f); got != "a" {
		t.Errorf("half written: %q, want the former contents", got)
	}
	f.since = f.since.Add(-grace) // time passes
	if _, err := f.Current(); err == nil {
		t.Error("half written for too long: no error")
	}
	write(t, path, listB)
	if got := current(t, f); got != "b" {
		t.Errorf("written: %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "2.conflist"), "{")
	if list, err := f.Current(); err != nil || list.Name != "b" {
		t.Errorf("replaced by a bad file: %v, %v; want the former for a while", list, err)
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte(listA))
	f.Add([]byte(`{"name":"a","type":"x"}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{"f.conflist", "f.conf"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := readList(path)
			if err != nil {
				continue
			}
			if _, err := Parse(list.Config); err != nil {
				t.Errorf("a list that was accepted does not parse: %v", err)
			}
			for _, p := range list.Plugins {
				if strings.ContainsAny(p.Network.Type, "/\x00") {
					t.Errorf("accepted plugin %q", p.Network.Type)
				}
			}
		}
	})
}
