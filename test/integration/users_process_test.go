package integration_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/transcript"
)

func TestSharedPIDInUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("shared", harness.Namespaces(modePod, modePod, modePod), users(300000)))
	a, b := pod.Run(d.Sleeper("a", likePod(pod))), pod.Run(d.Sleeper("b", likePod(pod)))
	for _, name := range []string{"pid", "user"} {
		if got, want := namespace(t, strconv.Itoa(a.PID()), name), namespace(t, strconv.Itoa(b.PID()), name); got != want || got == namespace(t, "self", name) {
			t.Errorf("%s: a %s, b %s", name, got, want)
		}
	}
	if got := a.Sh("cat /proc/1/comm; stat -c %u /proc/1/status; grep -c . /proc/1/uid_map"); got != "pod-init\n65534\n1" {
		t.Errorf("first process, owner of its files, mappings = %q", got)
	}
	// Root of one container ends what root of the other one runs, as in a pod without a user namespace.
	c := pod.Run(d.Shell("c", "sleep 1000 & exec sleep 1001", likePod(pod)))
	a.Eventually(10*time.Second, "the other container's process is killed", func() bool {
		return a.Exec("sh", "-c", "for p in /proc/[0-9]*; do grep -q '^sleep.1001' $p/cmdline && kill -KILL ${p#/proc/} && exit 0; done; exit 1").Code == 0
	})
	if s := c.Wait(10 * time.Second); s.ExitCode != 137 {
		t.Errorf("exit code = %d, want 137", s.ExitCode)
	}
	if r := a.Exec("sh", "-c", "kill -KILL 1; sleep 0.1; cat /proc/1/comm"); r.Stdout != "pod-init\n" {
		t.Errorf("after kill -KILL 1: %+v", r)
	}
	// An ephemeral container.
	own := d.RunPod(d.Pod("own", users(400000)))
	target := own.Run(d.Sleeper("target", likePod(own)))
	debug := own.Run(d.Sleeper("debug", likePod(own), with(func(s *security) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeTarget, TargetId: target.ID, UsernsOptions: s.NamespaceOptions.UsernsOptions}
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
	})))
	if got := debug.Sh("cat /proc/1/comm; ls /proc/1/root/etc/passwd"); got != "sh\n/proc/1/root/etc/passwd" {
		t.Errorf("the target's first process and root = %q", got)
	}
}

func TestTerminalInUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("terminal", users(300000)))
	c := pod.Run(d.Shell("c", "stat -c '%u %g %a' $(tty); tty; test -c /dev/console && echo console > /dev/console; echo to stdout > /dev/stdout; sleep 1000",
		likePod(pod), with(func(s *security) { s.RunAsUser = value(1000) }), func(c *runtimeapi.ContainerConfig) { c.Tty = true }))
	c.WaitOutput("to stdout")
	if got := strings.ReplaceAll(c.Output(), "\r", ""); got != "1000 5 620\n/dev/pts/0\nconsole\nto stdout\n" {
		t.Errorf("the terminal shows %q", got)
	}
}

func TestProcessInUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("process", users(300000)))
	user := pod.Run(d.Sleeper("user", likePod(pod), with(func(s *security) { s.RunAsUser, s.NoNewPrivs = value(1000), true })))
	if got := user.Sh("id -u; id -G; echo x > /dev/stderr; grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '"); got != "1000\n0\nCapEff:0000000000000000 NoNewPrivs:1 Seccomp:2 " {
		t.Errorf("an ordinary user is %q", got)
	}
	if got := strings.Fields(user.Host("oom_score_adj"))[0]; got != readFile(t, "/proc/self/oom_score_adj") && got != "0" {
		t.Errorf("oom_score_adj = %s", got)
	}
	root := pod.Run(d.Sleeper("root", likePod(pod)))
	// The image's files have the container's owners also for set-user-ID, and file capabilities count.
	if got := root.Exec("probe", "call", "set-caps").Stdout; got != "ok\n" {
		t.Errorf("file capabilities: %s", got)
	}
	root.Sh("cp /bin/probe /tmp/suid 2>/dev/null || cp $(command -v probe) /tmp/suid; chown 33:33 /tmp/suid; chmod 6755 /tmp/suid")
	if got := root.Sh("/tmp/suid euid"); got != "Effective uid: 33" {
		t.Errorf("set-user-ID program: %q", got)
	}
	if got := root.Sh("ulimit -Hn"); got != strings.TrimSpace(d.RunPod(d.Pod("plain")).Run(d.Sleeper("c")).Sh("ulimit -Hn")) {
		t.Errorf("limit of open files = %s", got)
	}
	if _, err := root.TryExec(time.Minute, "/no/such"); !contains(err, "executable file not found") {
		t.Errorf("exec of nothing: %v", err)
	}
}

func TestSysctlsOfUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	host := readFile(t, "/proc/sys/kernel/shm_rmid_forced")
	config := d.Pod("sysctls", users(300000))
	config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80", "fs.mqueue.msg_max": "17",
		"net.ipv4.ping_group_range": "0 2147483647", "kernel.domainname": "example"}
	c := d.RunPod(config).Run(d.Sleeper("c"))
	if got := c.Sh("cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start fs/mqueue/msg_max kernel/domainname"); got != "1\n80\n17\nexample" {
		t.Errorf("sysctls = %q", got)
	}
	if got := readFile(t, "/proc/sys/kernel/shm_rmid_forced"); got != host {
		t.Errorf("the host's value changed from %s to %s", host, got)
	}
	config = d.Pod("bad", users(300000))
	config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "77777777777777"}
	if _, err := d.TryRunPod(config); !contains(err, "kernel.shm_rmid_forced") {
		t.Errorf("a value out of range: %v", err)
	}
}

// TestSmallLimitsInUserNamespace: not even for a moment is there a process more than the container's own.
func TestSmallLimitsInUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	parent := newParent()
	d := startWithUsers(t, harness.WithCgroupParent(parent))
	limitPids(t, parent, "1")
	pod := d.RunPod(d.Pod("small", harness.CgroupParent(parent), users(300000)))
	for i := range 5 {
		c := pod.Run(d.Container(fmt.Sprintf("c%d", i), []string{"sleep", "1000"}, harness.Resources(&resources{MemoryLimitInBytes: 4 << 20})))
		if s := c.Status(); s.State != running {
			t.Fatalf("state = %s, %s", s.State, s.Message)
		}
		c.Stop(0)
	}
	limitPids(t, parent, "2")
	c := pod.Run(d.Container("c", []string{"sleep", "1000"}, harness.Resources(&resources{MemoryLimitInBytes: 4 << 20})))
	if r := c.Exec("echo", "one more"); r.Stdout != "one more\n" {
		t.Errorf("exec = %+v", r)
	}
}

func TestNetworkOfUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	port := harness.FreePort(t)
	pod := d.RunPod(d.Pod("net", users(300000), harness.HostPort(runtimeapi.Protocol_TCP, port, 80, "")))
	pod.Run(server(d, "net"))
	for _, ip := range pod.IPs() {
		if strings.Contains(ip, ":") {
			ip = "[" + ip + "]"
		}
		wantPage(d, ip+":80", "page of net")
	}
	wantPage(d, fmt.Sprintf("127.0.0.1:%d", port), "page of net")
	other := d.RunPod(d.Pod("other", users(400000))).Run(d.Sleeper("c"))
	if got := other.Sh("probe get http://" + pod.IPs()[0] + "/"); !strings.HasPrefix(got, "page of net") {
		t.Errorf("page from another pod = %q", got)
	}
	d.Restart()
	wantPage(d, fmt.Sprintf("127.0.0.1:%d", port), "page of net")
}

// TestKilledWithUserNamespace: a daemon that is killed while it makes a user namespace leaves no process of its own.
func TestKilledWithUserNamespace(t *testing.T) {
	d := startWithUsers(t)
	for n := range 20 {
		config := d.Pod(fmt.Sprintf("killed-%d", n), users(300000))
		ctx, cancel := contextFor(t, 10*time.Second)
		ended := make(chan error, 1)
		go func() {
			_, err := d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			ended <- err
		}()
		time.Sleep(time.Duration(n) * 300 * time.Microsecond)
		d.Kill()
		cancel()
		<-ended
		d.Eventually(10*time.Second, "no process of the daemon is left", func() bool { return processes(t, d) == 0 })
		d.Start()
		d.Check()
		pod := d.RunPod(config)
		pod.Run(d.Sleeper("c", likePod(pod)))
		pod.Remove()
	}
	d.Eventually(harness.Timeout, "the daemon is the one process of its program", func() bool { return processes(t, d) == 1 })
}

// processes counts those of the daemon's program, with its folder on their command line: the daemon, and copies of it that execute nothing else.
func processes(t testing.TB, d *harness.Daemon) int {
	t.Helper()
	program, err := os.Stat(filepath.Join(d.Options().Bin, "berthd"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range all {
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if st, err := os.Stat(path); err == nil && os.SameFile(st, program) && strings.Contains(string(line), d.Options().Root) {
			n++
		}
	}
	return n
}

// TestStreamingInUserNamespace: exec with and without a terminal, attach, and port forwarding.
func TestStreamingInUserNamespace(t *testing.T) {
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("stream", users(300000)))
	c := pod.Run(d.Sleeper("c", likePod(pod), with(func(s *security) { s.RunAsUser = value(1000) })))
	client := harness.Streaming{Daemon: d, Transport: streamclient.WebSocket}
	ctx, cancel := contextFor(t, 2*time.Minute)
	defer cancel()
	for _, terminal := range []bool{false, true} {
		var out transcript.Transcript
		code, err := client.Exec(ctx, c.ID, []string{"sh", "-c", "test -t 0 && stat -c '%u %g' $(tty); id -u; cat /proc/self/uid_map; exit 3"},
			sandbox.Streams{Stdin: strings.NewReader(""), Stdout: &out, Terminal: terminal})
		want := "1000 0 300000 65536"
		if terminal {
			want = "1000 5 " + want
		}
		if got := strings.Join(strings.Fields(out.String()), " "); err != nil || code != 3 || got != want {
			t.Errorf("exec (terminal %t): code %d, %v, %q, want %q", terminal, code, err, got, want)
		}
	}
	shell := pod.Run(d.Container("shell", []string{"cat"}, likePod(pod), func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	var shown transcript.Transcript
	read, write := io.Pipe()
	attached, leave := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		err := client.Attach(attached, shell.ID, sandbox.Streams{Stdin: read, Stdout: &shown, Terminal: true})
		read.CloseWithError(fmt.Errorf("attach has ended: %v", err)) // nobody waits for a reader
		ended <- err
	}()
	if _, err := io.WriteString(write, "hello\n"); err != nil {
		t.Fatal(err)
	}
	shown.Wait(t, "hello\r\nhello\r\n")
	leave()
	<-ended

	pod.Run(server(d, "forwarded"))
	d.Eventually(10*time.Second, "the page by a forwarded port", func() bool {
		conn, err := client.Dial(ctx, pod.ID, 80)
		if err != nil {
			return false
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			return false
		}
		page, err := io.ReadAll(conn)
		return err == nil && strings.Contains(string(page), "page of forwarded")
	})
}
