package kubelet_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/kubelet"
)

func checkOrder(w *watch) {
	p := w.ready()
	if got, want := w.logged("main", "third"), "first\nsecond\nsidecar\nthird\n"; got != want {
		w.Errorf("order = %q, want %q", got, want)
	}
	for _, name := range []string{"first", "second", "third"} {
		c := p.Container(name)
		if end := c.State.Ended; end == nil || end.ExitCode != 0 || end.Reason != "Completed" || c.RestartCount != 0 {
			w.Errorf("init container %s: %+v, restarts %d", name, end, c.RestartCount)
		}
	}
	if c := p.Container("sidecar"); c.State.Running == nil || !c.Ready || c.Started == nil || !*c.Started || c.RestartCount != 0 {
		w.Errorf("sidecar: %+v", c)
	}
	begun, done := p.Container("third").State.Ended.StartedAt, p.Container("second").State.Ended.FinishedAt
	if begun.Before(done) {
		w.Errorf("the third started at %s, before the second ended at %s", begun, done)
	}
}

// checkProbes makes each container well, ill and well again, one after the other.
func checkProbes(w *watch) {
	kinds := []string{"exec", "http", "tcp", "grpc"}
	w.until("all started, none ready", func(p kubelet.Pod) bool {
		return !slices.ContainsFunc(kinds, func(kind string) bool {
			c := p.Container(kind)
			return c.Started == nil || !*c.Started || c.Ready
		})
	})
	ill := func(p kubelet.Pod) bool {
		return !slices.ContainsFunc(kinds, func(kind string) bool { return p.Container(kind).Ready })
	}
	for range 2 {
		for _, kind := range kinds {
			w.touch(kind)
		}
		w.ready()
		for _, kind := range kinds {
			if err := os.Remove(filepath.Join(w.dir, kind)); err != nil {
				w.Fatal(err)
			}
		}
		w.until("none ready", ill)
	}
	for _, kind := range kinds {
		w.touch(kind)
	}
	p := w.ready()
	for _, kind := range kinds {
		if c := p.Container(kind); c.RestartCount != 0 {
			w.Errorf("container %s was restarted %d times; it ended with %+v", kind, c.RestartCount, c.LastState.Ended)
		}
	}
}

func checkUnwell(w *watch) {
	kinds := []string{"startup", "exec", "http", "tcp", "grpc"}
	p := w.until("each runs its second life", func(p kubelet.Pod) bool {
		return !slices.ContainsFunc(kinds, func(kind string) bool {
			c := p.Container(kind)
			return c.RestartCount < 1 || c.State.Running == nil || !c.Ready
		})
	})
	for _, kind := range kinds {
		c := p.Container(kind)
		if end := c.LastState.Ended; c.RestartCount != 1 || end == nil || end.ExitCode != 9 || end.Reason != "Error" {
			w.Errorf("container %s: %d restarts, last state %+v; want one, exit code 9, reason Error", kind, c.RestartCount, end)
		}
	}
}

func checkFailed(w *watch) {
	want := map[string]kubelet.End{
		"exit":   {ExitCode: 5, Reason: "Error", Message: "last words\n"},
		"memory": {ExitCode: 137, Reason: "OOMKilled"}, "missing": {ExitCode: 128, Reason: "StartError"},
	}
	p := w.until("failed", func(p kubelet.Pod) bool { return p.Status.Phase == "Failed" })
	for name, end := range want {
		got := p.Container(name).State.Ended
		if got == nil || got.ExitCode != end.ExitCode || got.Reason != end.Reason || end.Message != "" && got.Message != end.Message {
			w.Errorf("container %s ended with %+v, want %+v", name, got, end)
		}
	}
}

// checkUserNamespace: the kubelet chose the mapping and made the volumes; the containers see their own users everywhere.
func checkImageVolumes(w *watch) {
	w.ready()
	group := w.run("main", "cat", "/etc/group")
	for _, path := range []string{"/all/etc/group", "/deep/er/etc/group", "/file"} {
		if got := w.run("main", "cat", path); got != group {
			w.Errorf("%s = %q, want %q", path, got, group)
		}
		if got := w.run("main", "stat", "-c", "%u", path); got != "0\n" {
			w.Errorf("%s belongs to %s", path, got)
		}
		if out, err := w.k.Run(w.Context(), w.name, "main", "touch", path); err == nil || !strings.Contains(err.Error(), "Read-only") {
			w.Errorf("write to %s: %q, %v", path, out, err)
		}
	}
}

func checkUserNamespace(w *watch) {
	w.ready()
	mapping := strings.Fields(w.run("root", "cat", "/proc/self/uid_map"))
	if len(mapping) != 3 || mapping[0] != "0" || mapping[1] == "0" || mapping[2] != "65536" {
		w.Errorf("mapping of users = %q", mapping)
	}
	if other := strings.Fields(w.run("user", "cat", "/proc/self/uid_map")); !slices.Equal(mapping, other) {
		w.Errorf("mappings of two containers = %q and %q", mapping, other)
	}
	files := []string{"/disk/first", "/disk/root", "/memory/root", "/pod/name", "/etc/made", "/etc/hosts", "/etc/resolv.conf", "/dev/termination-log", "/bin/busybox", "/disk/user"}
	if got, want := w.run("root", append([]string{"stat", "-c", "%u"}, files...)...), strings.Repeat("0\n", len(files)-1)+"1000\n"; got != want {
		w.Errorf("owners of %q: %q, want %q", files, got, want)
	}
	if got := w.run("root", "stat", "-c", "%g", "/disk", "/memory"); got != "3000\n3000\n" {
		w.Errorf("groups of volumes = %q, want the pod's fsGroup", got)
	}
	if got := w.run("user", "id", "-G"); got != "0 3000\n" {
		w.Errorf("groups = %q", got)
	}
	if got := w.run("unmasked", "cat", "/proc/mounts"); strings.Contains(got, " /proc/") || strings.Contains(got, " /sys/firmware ") {
		w.Errorf("paths are masked or read-only:\n%s", got)
	}
	if got := w.run("root", "cat", "/proc/mounts"); !strings.Contains(got, " /proc/sys ") {
		w.Errorf("/proc/sys is not read-only:\n%s", got)
	}
	p := w.until("an exit message", func(p kubelet.Pod) bool { e := p.Container("first").State.Ended; return e != nil })
	if got := p.Container("first").State.Ended.Message; got != "init\n" {
		w.Errorf("termination message = %q", got)
	}
}

func checkVolumes(w *watch) {
	p := w.ready()
	for _, f := range []struct{ path, want string }{
		{"/disk/one", "one\n"}, {"/memory/two", "two\n"}, {"/host/three", "three\n"}, {"/host/sub/folder/four", "four\n"},
		{"/etc/file", "deep\n"}, {"/pod/name", "volumes-" + kubelet.Node},
	} {
		until(w.T, fmt.Sprintf("%s contains %q", f.path, f.want), func() (any, bool) {
			got, err := w.k.Run(w.Context(), w.name, "reader", "cat", f.path)
			return fmt.Sprint(got, err), got == f.want
		})
	}
	w.file("host/three", "three")
	if got := w.run("reader", "df", "/memory"); !strings.Contains(got, " 8192 ") {
		w.Errorf("the volume in memory is\n%s\nwant 8192 KiB", got)
	}
	if got, want := w.run("reader", "env"), "POD_IP="+p.Status.PodIP+"\n"; !strings.Contains(got, want) {
		w.Errorf("the environment has no %q:\n%s", want, got)
	}
	for _, path := range []string{"/disk/x", "/host/x"} {
		if _, err := w.k.Run(w.Context(), w.name, "reader", "touch", path); err == nil || !strings.Contains(err.Error(), "Read-only") {
			w.Errorf("write to %s, which is read-only: %v", path, err)
		}
	}
	w.run("reader", "touch", "/expanded/x")
	w.file("host/expanded/x/x", "")
}

// checkResources reads the limits where the kernel keeps them.
func checkResources(w *watch) {
	p := w.ready()
	if got := p.Container("limited").Resources; got.Limits["cpu"] != "250m" || got.Limits["memory"] != "48Mi" || got.Requests["cpu"] != "100m" {
		w.Errorf("resources in the status = %+v", got)
	}
	w.cgroup(p, "limited", map[string]string{
		"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.shares": "102", "memory/memory.limit_in_bytes": strconv.Itoa(48 << 20),
		"cpu.max": "25000 100000", "memory.max": strconv.Itoa(48 << 20),
	})
	w.cgroup(p, "asked", map[string]string{"cpu/cpu.shares": "51", "cpu/cpu.cfs_quota_us": "-1", "cpu.max": "max 100000", "memory.max": "max"})
}

// cgroup holds files of a container's cgroup against what they must contain. Those of version 1 have their controller before the name.
func (w *watch) cgroup(p kubelet.Pod, container string, want map[string]string) {
	w.Helper()
	dirs, err := kubelet.Cgroups(w.root)
	if err != nil {
		w.Fatal(err)
	}
	seen := 0
	for name, value := range want {
		controller, file := filepath.Split(name)
		for _, dir := range dirs {
			if filepath.Base(dir) != p.Container(container).ID() || !strings.HasPrefix(dir, filepath.Join("/sys/fs/cgroup", controller, w.root)+"/") {
				continue
			}
			seen++
			got, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || strings.TrimSpace(string(got)) != value {
				w.Errorf("%s = %q, %v; want %s", filepath.Join(dir, file), got, err, value)
			}
			if !strings.Contains(dir, "/burstable/pod"+w.name+"/") {
				w.Errorf("%s is not in the cgroup of pod %s", dir, w.name)
			}
		}
	}
	if seen < 2 {
		w.Errorf("container %s: %d of its cgroup files were found", container, seen)
	}
}

func checkLogs(w *watch) {
	w.ready()
	w.logged("main", "out 5") // one line at a time from here on: two streams have no order
	w.touch("1")
	w.logged("main", "err")
	if got := w.logs("main", "tailLines=2"); got != "out 5\nerr\n" {
		w.Errorf("the last two lines = %q", got)
	}
	if got := w.logs("main", "limitBytes=8"); got != "out 1\nou" {
		w.Errorf("the first bytes = %q", got)
	}
	line, _, _ := strings.Cut(w.logs("main", "timestamps=true"), "\n")
	at, text, _ := strings.Cut(line, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || text != "out 1" {
		w.Errorf("a line with its time = %q", line)
	}
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/containerLogs/%s/%s-%s/main?follow=true&tailLines=1", w.k.URL, kubelet.Namespace, w.name, kubelet.Node), nil)
	if err != nil {
		w.Fatal(err)
	}
	resp, err := w.k.Client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{"err", "later"} {
		if !lines.Scan() || lines.Text() != want {
			w.Fatalf("followed the log to %q, %v; want %q", lines.Text(), lines.Err(), want)
		}
		w.touch("2")
	}
}

// counted holds both counters against themselves: whoever restarts or stalls the containers, or loses what they write, leaves a gap.
func (w *watch) counted() {
	w.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "count"))
	if err != nil {
		w.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if line != strconv.Itoa(i) {
			w.Fatalf("line %d of the counter is %q", i, line)
		}
	}
	dir := filepath.Join(w.k.PodLogs(), fmt.Sprintf("%s_%s-%s_%s/lines", kubelet.Namespace, w.name, kubelet.Node, w.name))
	files, err := filepath.Glob(dir + "/*.log*")
	if err != nil || len(files) == 0 {
		return // removed with its pod
	}
	if len(files) != 1 || filepath.Base(files[0]) != "0.log" {
		w.Fatalf("the log is in %q, want it whole in 0.log", files)
	}
	text, err = os.ReadFile(files[0])
	if err != nil {
		w.Fatal(err)
	}
	lines, err := harness.ParseLog(string(text[:strings.LastIndexByte(string(text), '\n')+1]))
	if err != nil {
		w.Fatal(err)
	}
	for i, line := range lines {
		if line.Text != fmt.Sprintf("tick %d", i) {
			w.Fatalf("line %d of the log is %q", i, line.Text)
		}
	}
}
