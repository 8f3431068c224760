package spec

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func itoa(n int) string     { return strconv.Itoa(n) }
func i64toa(n int64) string { return strconv.FormatInt(n, 10) }

// cleanPath makes an absolute path of an absolute or relative one, without "." and "..".
func cleanPath(p string) string { return path.Clean("/" + p) }

// below tells whether p is root or a path in it. Both are clean.
func below(p, root string) bool {
	return p == root || strings.HasPrefix(p, strings.TrimSuffix(root, "/")+"/")
}

// arguments combines the request's command and args with the image's entrypoint and cmd, as the Kubernetes API describes:
// a command replaces both of the image's, args alone replace its cmd.
func arguments(cfg *runtimeapi.ContainerConfig, img Image) ([]string, error) {
	command, args := cfg.GetCommand(), cfg.GetArgs()
	if len(command) == 0 {
		if len(args) == 0 {
			args = img.Cmd
		}
		if len(img.Entrypoint) != 1 || img.Entrypoint[0] != "" {
			command = img.Entrypoint
		}
	}
	out := slices.Concat(command, args)
	if len(out) == 0 {
		return nil, invalid("config.command", "", "must not be empty: neither the request nor the image says what to run")
	}
	return out, checkArgs("config.command", out)
}

// checkArgs refuses what execve(2) does not take.
func checkArgs(field string, args []string) error {
	if len(args) == 0 || args[0] == "" {
		return invalid(field, "", "must name a program")
	}
	for i, a := range args {
		if strings.ContainsRune(a, 0) {
			return invalid(field+"["+itoa(i)+"]", "", "must not contain NUL")
		}
	}
	return nil
}

// workingDir returns the request's folder, else the image's, else the root. The kernel's links to open files are refused:
// through one that leaked, a process would stand outside its root (CVE-2024-21626). The engine checks again, as a link in
// the image may lead there too.
func workingDir(cfg *runtimeapi.ContainerConfig, img Image) (string, error) {
	field, dir := "config.working_dir", cfg.GetWorkingDir()
	if dir == "" {
		field, dir = "image config WorkingDir", img.WorkingDir
		if dir == "" {
			return "/", nil
		}
		if dir[0] != '/' {
			dir = "/" + dir // Docker's builder writes absolute ones; others are taken from the root
		}
	}
	if err := checkPath(field, dir); err != nil {
		return "", err
	}
	dir = cleanPath(dir)
	if opensFile(dir) {
		return "", invalid(field, dir, "must not be a link to an open file or folder")
	}
	return dir, nil
}

// opensFile tells whether a path goes through one of the links by which a process in /proc refers to what it has open.
func opensFile(clean string) bool {
	if below(clean, "/dev/fd") {
		return true
	}
	parts := strings.Split(clean, "/")
	return len(parts) > 3 && parts[1] == "proc" && slices.ContainsFunc(parts[3:], func(p string) bool {
		return p == "fd" || p == "cwd" || p == "root" || p == "map_files"
	})
}

// environment merges PATH, TERM, HOSTNAME, the image's variables, the request's, and HOME where none of them sets it. Later
// ones replace earlier ones in their place. Entries of an image without a name or "=" are no variables and are left out:
// nothing may be looked up for them elsewhere (CVE-2026-57231).
func environment(cfg *runtimeapi.ContainerConfig, img Image, hostname, home string) ([]string, error) {
	e := newEnv(len(img.Env) + len(cfg.GetEnvs()) + 4)
	e.set("PATH", defaultPath)
	if cfg.GetTty() {
		e.set("TERM", "xterm")
	}
	e.set("HOSTNAME", hostname)
	for i, entry := range img.Env {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			continue
		}
		if err := checkVariable("image config Env["+itoa(i)+"]", name, value); err != nil {
			return nil, err
		}
		e.set(name, value)
	}
	for _, v := range cfg.GetEnvs() { // checked by ValidateContainer
		e.set(v.GetKey(), string(v.GetValue()))
	}
	if e.get("HOME") == "" {
		e.set("HOME", home)
	}
	return e.list, nil
}

// checkVariable refuses what execve(2) does not take, and a HOME that could become a second line or field elsewhere
// (CVE-2022-4318). The error names the variable, never its value.
func checkVariable(field, name, value string) error {
	switch {
	case name == "":
		return invalid(field, "", "must have a name")
	case strings.ContainsAny(name, "=\x00"):
		return invalid(field, name, "must have a name without = and NUL")
	case strings.ContainsRune(value, 0):
		return invalid(field, name, "must have a value without NUL")
	case name == "HOME" && strings.ContainsFunc(value, unicode.IsControl):
		return invalid(field, name, "must have a value without control characters")
	}
	return nil
}

// env is an environment that keeps the order in which names came.
type env struct {
	list []string
	at   map[string]int
}

func newEnv(size int) *env { return &env{make([]string, 0, size), make(map[string]int, size)} }

func (e *env) set(name, value string) {
	if i, ok := e.at[name]; ok {
		e.list[i] = name + "=" + value
		return
	}
	e.at[name] = len(e.list)
	e.list = append(e.list, name+"="+value)
}

func (e *env) get(name string) string {
	if i, ok := e.at[name]; ok {
		return e.list[i][len(name)+1:]
	}
	return ""
}
