package uml_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/apparmor"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/images"
)

const parser = "/usr/sbin/apparmor_parser"

// profile is a security profile without a name.
func profile(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind}
}

func localhost(name string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}
}

// appArmor names a container's profile.
func appArmor(p *runtimeapi.SecurityProfile) harness.ContainerOption {
	return harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = p })
}

// parse hands a profile to the kernel, or takes it away.
func parse(t testing.TB, option, text string) {
	t.Helper()
	cmd := exec.Command(parser, option, "--skip-cache")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser %s: %v\n%s", option, err, out)
	}
}

// loadProfile loads a profile for the length of a test.
func loadProfile(t testing.TB, text string) {
	t.Helper()
	parse(t, "--replace", text)
	t.Cleanup(func() { parse(t, "--remove", text) })
}

// unloadDefault makes the kernel forget the default profile, which earlier tests have left there.
func unloadDefault(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), apparmor.Name+" ") {
		parse(t, "--remove", apparmor.Profile())
	}
}

// Scripts that print a process's own profile, and that of the container's first process.
const (
	own   = "cat /proc/self/attr/current"
	first = "cat /proc/1/attr/current"
)

const isDefault = apparmor.Name + " (enforce)"

func TestDefaultAppArmorProfile(t *testing.T) {
	unloadDefault(t)
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("default", harness.Privileged))
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.LinuxContainerSecurityContext)
		want   string
	}{
		{"none", func(*runtimeapi.LinuxContainerSecurityContext) {}, isDefault},
		{"default", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault)
		}, isDefault},
		{"old-default", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.ApparmorProfile = "runtime/default" //nolint:staticcheck // kubelets before 1.30
		}, isDefault},
		{"unconfined", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Apparmor = profile(runtimeapi.SecurityProfile_Unconfined)
		}, "unconfined"},
		{"privileged", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Privileged, s.Apparmor = true, localhost("no such profile")
		}, "unconfined"},
		{"nobody", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 65534}, true
		}, isDefault},
	} {
		c := pod.Run(d.Sleeper(tc.name, harness.Security(tc.change)))
		if got := c.Sh(first); got != tc.want {
			t.Errorf("%s: the first process has profile %q, want %q", tc.name, got, tc.want)
		}
		if got := c.Sh(own); got != tc.want {
			t.Errorf("%s: an exec has profile %q, want %q", tc.name, got, tc.want)
		}
		c.Remove()
	}
	unloadDefault(t)
	again := pod.Run(d.Sleeper("again"))
	if got := again.Sh(own); got != isDefault {
		t.Errorf("profile %q after somebody unloaded it, want %q", got, isDefault)
	}
	d.Restart()
	if got := again.Sh(own); got != isDefault {
		t.Errorf("an exec of the next daemon has profile %q, want %q", got, isDefault)
	}
}

// What the default profile lets a container do, and what it keeps even one from that has the capabilities.
func TestWhatTheDefaultProfileForbids(t *testing.T) {
	d := harness.Start(t)
	free := harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "MKNOD"}}
		s.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined)
		s.MaskedPaths, s.ReadonlyPaths = []string{"/nothing"}, []string{"/nothing"}
	})
	pod := d.RunPod(d.Pod("forbids"))
	c := pod.Run(d.Sleeper("c", free))
	for script, works := range map[string]bool{
		"mount -t tmpfs none /tmp":                          false,
		"mount -o bind /etc /tmp":                           false,
		"echo h >/proc/sysrq-trigger":                       false,
		"echo x >/proc/sys/kernel/core_pattern":             false,
		"echo 1 >/proc/sys/net/ipv4/ip_forward":             false,
		"echo 1 >/proc/sys/vm/drop_caches":                  false,
		"head -c 1 /proc/kcore":                             false,
		"cat /sys/kernel/security/apparmor/profiles":        false,
		"echo 1 >/proc/sys/kernel/shm_rmid_forced":          true,
		"echo 500 >/proc/self/oom_score_adj":                true,
		"sleep 100 & kill $!; wait $!; [ $? = 143 ]":        true,
		"echo x >/etc/x && rm /etc/x && mkdir /tmp/d":       true,
		"chown 1:1 /etc/passwd && chown 0:0 /etc/passwd":    true,
		"mknod /tmp/fifo p && ls -l /proc/1/exe /proc/1/fd": true,
		"ping -c 1 127.0.0.1":                               true,
	} {
		if r := c.Exec("sh", "-c", script); (r.Code == 0) != works {
			t.Errorf("%q ends with %d, %s, want it to work: %t", script, r.Code, r.Stderr, works)
		}
	}
	// It is the profile that does.
	unconfined := pod.Run(d.Sleeper("unconfined", free, appArmor(profile(runtimeapi.SecurityProfile_Unconfined))))
	unconfined.Sh("mount -t tmpfs none /tmp && mount -o bind /etc /tmp && echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/vm/drop_caches")
}

const noData = `profile "berth test no data" flags=(attach_disconnected) {
  file,
  capability,
  signal,
  deny /data/** w,
}
`

func TestLocalhostAppArmorProfile(t *testing.T) {
	loadProfile(t, noData)
	d := harness.Start(t)
	const name = "berth test no data"
	const writes = "echo 1 >/tmp/x && echo tmp; echo 1 >/data/x && echo data"
	pod := d.RunPod(d.Pod("local"))
	c := pod.Run(d.Shell("c", own+"; "+writes+"; sleep 1000", appArmor(localhost(name))))
	c.WaitOutput("tmp")
	c.WaitOutput("ermission denied")
	if got := c.Output(); !strings.Contains(got, name+" (enforce)\n") || strings.Contains(got, "\ndata") {
		t.Errorf("the container says %q", got)
	}
	r := c.Exec("sh", "-c", own+"; "+writes)
	if r.Stdout != name+" (enforce)\ntmp\n" || !strings.Contains(r.Stderr, "ermission denied") {
		t.Errorf("the exec says %q, %q", r.Stdout, r.Stderr)
	}
	if got := pod.Run(d.Sleeper("default")).Sh(own); got != isDefault {
		t.Errorf("the container beside it has profile %q", got)
	}
	// A profile that is gone is no reason to run without one.
	c2 := pod.Create(d.Sleeper("late", appArmor(localhost(name))))
	parse(t, "--remove", noData)
	t.Cleanup(func() { parse(t, "--replace", noData) }) // for the removal at the end
	if err := c2.TryStart(); err == nil || !strings.Contains(err.Error(), "not loaded") {
		t.Errorf("start under a profile that was unloaded: %v", err)
	}
	if s := c2.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("state %s, want EXITED", s.State)
	}
	if _, err := c.TryExec(time.Minute, "true"); err == nil {
		t.Error("an exec ran without the profile that was unloaded")
	}
}

// A daemon that is to do without it gives containers no profile, and refuses those that name one.
func TestDisabledAppArmor(t *testing.T) {
	loadProfile(t, noData)
	d := harness.Start(t, harness.WithConfig("[apparmor]\ndisabled = true\n"))
	pod := d.RunPod(d.Pod("disabled"))
	if got := pod.Run(d.Sleeper("c")).Sh(own); got != "unconfined" {
		t.Errorf("profile %q, want none", got)
	}
	_, err := pod.TryCreate(d.Sleeper("named", appArmor(localhost("berth test no data"))))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "not enabled") {
		t.Errorf("CreateContainer under a profile = %v, want InvalidArgument", err)
	}
}

func TestUnloadedAppArmorProfile(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("unloaded"))
	for _, name := range []string{"no-such-profile", apparmor.Name + "x", "unconfined", ":ns:x"} {
		_, err := pod.TryCreate(d.Sleeper("c", appArmor(localhost(name))))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "not a loaded") {
			t.Errorf("CreateContainer under %q = %v, want InvalidArgument", name, err)
		}
	}
}

// Without the program that loads profiles the default one cannot be had: an error when it is asked for by name.
func TestNoAppArmorParser(t *testing.T) {
	unloadDefault(t)
	if err := unix.Mount("/dev/null", parser, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(parser, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("no-parser"))
	_, err := pod.TryCreate(d.Sleeper("c", appArmor(profile(runtimeapi.SecurityProfile_RuntimeDefault))))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "apparmor_parser is not installed") {
		t.Errorf("CreateContainer under the default profile = %v, want InvalidArgument with the reason", err)
	}
	if got := pod.Run(d.Sleeper("unasked")).Sh(own); got != "unconfined" {
		t.Errorf("a container that asks for none has %q", got)
	}
}

const mounts = `profile berth-test-mounts flags=(attach_disconnected) {
  file,
  capability,
  signal,
  mount,
  umount,
}
`

// No /proc of a container, and nothing in one, is what a process gets its profile by (CVE-2019-16884, CVE-2025-52881).
func TestProfilesAreNotWrittenToAContainersProc(t *testing.T) {
	loadProfile(t, mounts)
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("fake"))
	fake := t.TempDir()
	files := []string{"exec", "current", "apparmor/exec", "apparmor/current", "attr/exec", "attr/apparmor/exec"}
	for _, name := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(fake, name)), 0o777); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(fake, name), "")
	}
	for i, target := range []string{"/proc/self/attr", "/proc/thread-self/attr", "/proc/1/attr", "/proc/self"} {
		c, err := pod.TryCreate(d.Sleeper(fmt.Sprintf("volume%d", i), harness.Mounts(&runtimeapi.Mount{HostPath: fake, ContainerPath: target})))
		if err != nil || c.TryStart() != nil {
			continue // refused
		}
		if got := strings.TrimSpace(c.Host("attr/current")); got != isDefault {
			t.Errorf("with a volume at %s the first process has profile %q", target, got)
		}
	}
	// An image's link leads a volume there.
	layer, err := images.NewBuilder().Symlink("attr", "/proc/thread-self/attr").Symlink("folder", "/proc/self").Layer()
	if err != nil {
		t.Fatal(err)
	}
	image := harness.PushImage(t, "test/attr", ocispec.ImageConfig{}, layer)
	d.Pull(image.Ref)
	for i, target := range []string{"/attr", "/folder/attr"} {
		linked, err := pod.TryCreate(d.Sleeper(fmt.Sprintf("linked%d", i), harness.Image(image.Ref), harness.Mounts(&runtimeapi.Mount{HostPath: fake, ContainerPath: target})))
		if err != nil || linked.TryStart() != nil {
			continue // refused
		}
		if got := strings.TrimSpace(linked.Host("attr/current")); got != isDefault {
			t.Errorf("with a volume at %s of the image the first process has profile %q", target, got)
		}
	}
	c := pod.Run(d.Sleeper("inside", appArmor(localhost("berth-test-mounts")), harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		s.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined)
	}), harness.Mounts(&runtimeapi.Mount{HostPath: fake, ContainerPath: "/fake"})))
	c.Sh("mount -t tmpfs none /proc && for d in self thread-self; do mkdir /proc/$d && cp -r /fake/attr /proc/$d/; done && mount -o bind /fake/attr /proc/thread-self/attr")
	done := make(chan error, 1)
	go func() {
		_, err := c.TryExec(0, "sleep", "1000")
		done <- err
	}()
	var pid string
	d.Eventually(harness.Timeout, "the exec runs", func() bool {
		procs, _ := filepath.Glob(cgroupFolder(c) + "/exec-*/cgroup.procs")
		for _, p := range procs {
			if text, err := os.ReadFile(p); err == nil && len(text) > 0 {
				pid = strings.TrimSpace(string(text))
			}
		}
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		return err == nil && string(comm) == "sleep\n"
	})
	if got := read(t, "/proc/"+pid+"/attr/current"); got != "berth-test-mounts (enforce)" {
		t.Errorf("the exec has profile %q", got)
	}
	for _, name := range files {
		if got := read(t, filepath.Join(fake, name)); got != "" {
			t.Errorf("%q was written to the fake %s", got, name)
		}
	}
	c.Stop(0)
	<-done
}
