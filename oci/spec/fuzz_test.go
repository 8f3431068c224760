package spec

import (
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzHostileImage holds what an image says apart from what the host does: whatever its configuration is, all of the
// specification but process, user and environment is that of another image (CVE-2026-53488, CVE-2024-3154).
func FuzzHostileImage(f *testing.F) {
	f.Add("web:logs|/srv|SIGTERM|A=b\nX|/bin/sh|/data", []byte(testPasswd), []byte(testGroup))
	f.Add("0|/proc/self/fd/9|9|HOME=/\x00|a\x00|/../../tmp/victim", []byte("root:x:0:0:::"), []byte("x"))
	f.Fuzz(func(t *testing.T, texts string, passwd, group []byte) {
		text := append(strings.Split(texts, "|"), make([]string, 6)...)
		user, dir, signal, env, args, volume := text[0], text[1], text[2], text[3], text[4], text[5]
		in := testInput()
		in.securityContext().Seccomp = &runtimeapi.SecurityProfile{}
		clean, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		in.Image = Image{User: user, WorkingDir: dir, StopSignal: signal, Env: strings.Split(env, "\n"), Entrypoint: strings.Split(args, "\n"),
			Volumes: []string{volume}, Passwd: passwd, Group: group}
		dirs, err := MakeDirs(in.Image)
		checkInvalid(t, err)
		for _, d := range dirs {
			if !path.IsAbs(d) || path.Clean(d) != d || d == "/" || strings.ContainsRune(d, 0) {
				t.Fatalf("folder %q", d)
			}
		}
		if n, err := StopSignal(in.Container, in.Image); err == nil && (n < 1 || n > 64) {
			t.Fatalf("signal %d", n)
		}
		s, _, err := Container(in)
		if err != nil {
			checkInvalid(t, err)
			return
		}
		p := s.Process
		if !path.IsAbs(p.Cwd) || path.Clean(p.Cwd) != p.Cwd || opensFile(p.Cwd) {
			t.Fatalf("folder %q", p.Cwd)
		}
		for _, v := range slices.Concat(p.Args, p.Env, []string{p.Cwd}) {
			if strings.ContainsRune(v, 0) {
				t.Fatalf("NUL in %q", v)
			}
		}
		names := map[string]bool{}
		for _, v := range p.Env {
			name, value, ok := strings.Cut(v, "=")
			if !ok || name == "" || names[name] {
				t.Fatalf("variable %q", v)
			}
			names[name] = true
			if name == "HOME" && strings.ContainsAny(value, "\n\r") {
				t.Fatalf("HOME %q", value)
			}
		}
		if !names["PATH"] || !names["HOSTNAME"] || !names["HOME"] {
			t.Fatalf("environment %q", p.Env)
		}
		p.User, p.Args, p.Env, p.Cwd = clean.Process.User, clean.Process.Args, clean.Process.Env, clean.Process.Cwd
		got, _ := json.Marshal(s)
		want, _ := json.Marshal(clean)
		if string(got) != string(want) {
			t.Fatalf("the image changes more than its process:\n%s\n%s", got, want)
		}
	})
}

// FuzzRequest holds that a request is obeyed as it is or refused, and never half understood.
func FuzzRequest(f *testing.F) {
	f.Add("/data|/host|/berth/x|a.log|KEY|value|annotation", int32(2), []byte(allowAll))
	f.Add("/proc/self/attr|../x|/a/../b|../b|A=B|\x00|org.systemd.property.X", int32(-1), []byte("{"))
	f.Fuzz(func(t *testing.T, texts string, mode int32, profile []byte) {
		text := append(strings.Split(texts, "|"), make([]string, 7)...)
		target, source, parent, logPath, key, value, annotation := text[0], text[1], text[2], text[3], text[4], text[5], text[6]
		in := testInput()
		in.Pod.Config.LogDirectory = "/var/log/pods/x"
		in.Pod.Config.Annotations = map[string]string{annotation: value}
		in.Pod.Config.Linux.CgroupParent = parent
		in.Container.Annotations = map[string]string{annotation: value}
		in.Container.LogPath = logPath
		in.Container.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}}
		in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: target, HostPath: source, Propagation: runtimeapi.MountPropagation(mode)}}
		in.Container.Linux.SecurityContext.Seccomp = localhost("/p.json")
		in.SeccompProfile = profile
		cgroup, err := CgroupParent(in.Pod.Config)
		checkInvalid(t, err)
		if err == nil && cgroup != "" {
			if !strings.Contains(cgroup, "/") && strings.HasSuffix(cgroup, ".slice") {
				cgroup = "/" + cgroup
			}
			if !path.IsAbs(cgroup) || path.Clean(cgroup) != cgroup || strings.ContainsAny(cgroup, "\n\x00") {
				t.Fatalf("cgroup %q", cgroup)
			}
			in.CgroupPath = cgroup + "/c"
		}
		log, err := LogPath(in.Pod.Config, in.Container)
		checkInvalid(t, err)
		if err == nil && log != "" && !below(log, "/var/log/pods/x") {
			t.Fatalf("log %q", log)
		}
		s, _, err := Container(in)
		checkInvalid(t, err)
		if err != nil {
			var bad *InvalidError
			if errors.As(err, &bad); strings.HasPrefix(bad.Field, "config.envs") && bad.Value != key {
				t.Fatalf("error shows more than a variable's name: %v", err)
			}
			return
		}
		if s.Hooks != nil || len(s.Annotations) > 0 || s.Hostname != "" || len(s.Linux.Sysctl) > 0 || s.Linux.Seccomp == nil {
			t.Fatalf("specification with %v %v %q %v", s.Hooks, s.Annotations, s.Hostname, s.Linux.Sysctl)
		}
		if s.Linux.CgroupsPath != in.CgroupPath {
			t.Fatalf("cgroup %q", s.Linux.CgroupsPath)
		}
		requested := slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
			return m.Destination == cleanPath(target) && m.Source == source && m.Type == "bind"
		})
		if !requested {
			t.Fatalf("no mount of %q at %q: %v", source, target, s.Mounts)
		}
		for _, m := range s.Mounts {
			if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || strings.ContainsRune(m.Destination+m.Source, 0) {
				t.Fatalf("mount %v", m)
			}
		}
	})
}

func checkInvalid(t *testing.T, err error) {
	t.Helper()
	if bad := (*InvalidError)(nil); err != nil && !errors.As(err, &bad) {
		t.Fatalf("%v is no InvalidError", err)
	}
}
