package integration_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/selinux"
	"github.com/berthd/berth/test/harness"
)

type security = runtimeapi.LinuxContainerSecurityContext

func with(f func(*security)) harness.ContainerOption { return harness.Security(f) }

func value(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// accounts is an image with users and groups of its own.
func accounts(t testing.TB, user string) string {
	t.Helper()
	layer := registrytestLayer(t, func(b *builder) {
		b.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nalice:x:1001:2001:Alice:/home/alice:/bin/sh\nbob:x:1002:2002::/:/bin/sh\n", 0o644)
		b.File("etc/group", "root:x:0:\nalice:x:2001:\nbob:x:2002:\nwheel:x:50:alice,bob\naudio:x:60:alice\n", 0o644)
	})
	return harness.PushImage(t, fmt.Sprintf("test/user-%x", sha256.Sum256([]byte(user))), imageConfig(func(c *ocispecConfig) { c.User = user }), layer).Ref
}

func TestUsersAndGroups(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("users"))
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	for _, tc := range []struct {
		name, image string
		change      func(*security)
		want        string // uid gid groups
	}{
		{"root", "", func(*security) {}, "0 0 0"},
		{"image names a user", "alice", func(*security) {}, "1001 2001 2001 50 60"},
		{"image names user and group", "alice:bob", func(*security) {}, "1001 2002 2002 50 60"},
		{"image has a number", "1002", func(*security) {}, "1002 2002 2002 50"},
		{"image has a number without an account", "4242", func(*security) {}, "4242 0 0"},
		{"image has numbers", "4242:77", func(*security) {}, "4242 77 77"},
		{"request has a number", "alice", func(s *security) { s.RunAsUser = value(1002) }, "1002 2002 2002 50"},
		{"request has a name", "bob", func(s *security) { s.RunAsUsername = "alice" }, "1001 2001 2001 50 60"},
		{"request has user and group", "", func(s *security) { s.RunAsUser, s.RunAsGroup = value(7), value(8) }, "7 8 8"},
		{"supplemental groups", "alice", func(s *security) { s.SupplementalGroups = []int64{999} }, "1001 2001 2001 50 60 999"},
		{"supplemental groups, strict", "alice", func(s *security) { s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{999}, strict }, "1001 2001 2001 999"},
		{"strict alone", "alice", func(s *security) { s.SupplementalGroupsPolicy = strict }, "1001 2001 2001"},
		{"large number", "", func(s *security) { s.RunAsUser = value(2147483647) }, "2147483647 0 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ref := accounts(t, tc.image)
			d.Pull(ref)
			c := pod.Run(d.Sleeper("c", harness.Image(ref), with(tc.change)))
			defer c.Remove()
			if got := c.Sh("echo $(id -u) $(id -g) $(grep Groups /proc/self/status | cut -f2)"); !sameGroups(got, tc.want) {
				t.Errorf("exec runs as %q, want %q", got, tc.want)
			}
			status := c.Host("status")
			field := func(name string) string {
				_, rest, _ := strings.Cut(status, "\n"+name+":")
				line, _, _ := strings.Cut(rest, "\n")
				return strings.Join(strings.Fields(line), " ")
			}
			first := func(s string) string { w, _, _ := strings.Cut(s, " "); return w }
			if got := first(field("Uid")) + " " + first(field("Gid")) + " " + field("Groups"); !sameGroups(got, tc.want) {
				t.Errorf("first process runs as %q, want %q", got, tc.want)
			}
			u := c.Status().GetUser().GetLinux()
			told := []string{strconv.FormatInt(u.GetUid(), 10), strconv.FormatInt(u.GetGid(), 10)}
			for _, g := range u.GetSupplementalGroups() {
				told = append(told, strconv.FormatInt(g, 10))
			}
			if !sameGroups(strings.Join(told, " "), tc.want) {
				t.Errorf("status says user %v, want %s", u, tc.want)
			}
		})
	}
}

// sameGroups compares "uid gid groups", the groups in any order.
func sameGroups(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	if len(x) < 2 || len(y) < 2 || x[0] != y[0] || x[1] != y[1] {
		return false
	}
	groups := func(w []string) map[string]bool {
		m := map[string]bool{w[1]: true}
		for _, g := range w[2:] {
			m[g] = true
		}
		return m
	}
	g, h := groups(x), groups(y)
	if len(g) != len(h) {
		return false
	}
	for k := range g {
		if !h[k] {
			return false
		}
	}
	return true
}

func TestHomeFollowsTheUser(t *testing.T) {
	d := harness.Start(t)
	ref := accounts(t, "alice")
	d.Pull(ref)
	c := d.RunPod(d.Pod("home")).Run(d.Shell("c", "echo $HOME; sleep 1000", harness.Image(ref)))
	c.WaitOutput("alice")
	if got := c.Output(); got != "/home/alice\n" {
		t.Errorf("HOME = %q", got)
	}
}

// TestBadUsers: none of these may ever run as somebody else.
func TestBadUsers(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("users"))
	for name, change := range map[string]func(*security){
		"negative":            func(s *security) { s.RunAsUser = value(-1) },
		"2^31":                func(s *security) { s.RunAsUser = value(1 << 31) },
		"2^32":                func(s *security) { s.RunAsUser = value(1 << 32) },
		"group of 2^32":       func(s *security) { s.RunAsUser, s.RunAsGroup = value(1), value(1<<32) },
		"unknown name":        func(s *security) { s.RunAsUsername = "mallory" },
		"name with a newline": func(s *security) { s.RunAsUsername = "root\nx" },
		"group without user":  func(s *security) { s.RunAsGroup = value(5) },
		"bad supplemental":    func(s *security) { s.SupplementalGroups = []int64{1 << 33} },
	} {
		t.Run(name, func(t *testing.T) {
			ref := harness.Base(t).Ref
			if name == "group without user" {
				ref = accounts(t, "0")
				d.Pull(ref)
				change2 := change
				change = func(s *security) { change2(s); s.RunAsUser, s.RunAsUsername = nil, "" }
			}
			_, err := pod.TryCreate(d.Sleeper("c", harness.Image(ref), with(change)))
			wantCode(t, name, err, codes.InvalidArgument)
		})
	}
	for _, user := range []string{"2147483648", "4294967296", "99999999999999999999", "1:4294967296", "mallory", "alice:nogroup", "-1", "alice:"} {
		t.Run("image "+user, func(t *testing.T) {
			ref := accounts(t, user)
			d.Pull(ref)
			c, err := pod.TryCreate(d.Sleeper("c", harness.Image(ref)))
			if err == nil {
				err = c.TryStart()
				c.Remove()
			}
			if err == nil && user != "alice:" {
				t.Errorf("USER %q is accepted", user)
			}
		})
	}
}

// capabilities decodes a mask of /proc/PID/status.
func capabilities(t testing.TB, status, field string) uint64 {
	t.Helper()
	_, rest, _ := strings.Cut(status, field+":\t")
	mask, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatalf("%s of %q: %v", field, status, err)
	}
	return n
}

const (
	capChown      = 1 << 0
	capKill       = 1 << 5
	capNetAdmin   = 1 << 12
	capNetRaw     = 1 << 13
	capSysAdmin   = 1 << 21
	defaultCaps   = 0xa80425fb // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap
	capLastOnHost = "/proc/sys/kernel/cap_last_cap"
)

func TestCapabilities(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("caps", harness.Privileged))
	own := capabilities(t, readRaw(t, "/proc/self/status"), "CapPrm")
	for _, tc := range []struct {
		name   string
		change func(*security)
		want   uint64
	}{
		{"default", func(*security) {}, defaultCaps},
		{"add", func(s *security) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}} }, defaultCaps | capNetAdmin},
		{"add with prefix, in small letters", func(s *security) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"cap_net_admin"}} }, defaultCaps | capNetAdmin},
		{"drop", func(s *security) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"CHOWN", "CAP_KILL"}}
		}, defaultCaps &^ (capChown | capKill)},
		{"add all", func(s *security) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}} }, own},
		{"drop all", func(s *security) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}} }, 0},
		{"drop all, add one", func(s *security) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_RAW"}}
		}, capNetRaw},
		{"add all, drop one", func(s *security) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_ADMIN"}}
		}, own &^ capSysAdmin},
		{"privileged", func(s *security) { s.Privileged = true }, own},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := pod.Run(d.Sleeper("c", with(tc.change)))
			defer c.Remove()
			for who, status := range map[string]string{"first process": c.Host("status"), "exec": c.Sh("cat /proc/self/status")} {
				for _, field := range []string{"CapPrm", "CapEff", "CapBnd"} {
					if got := capabilities(t, status, field); got != tc.want&own {
						t.Errorf("%s of the %s = %x, want %x", field, who, got, tc.want&own)
					}
				}
				for _, field := range []string{"CapInh", "CapAmb"} {
					if got := capabilities(t, status, field); got != 0 {
						t.Errorf("%s of the %s = %x, want none", field, who, got)
					}
				}
			}
		})
	}
	_, err := pod.TryCreate(d.Sleeper("c", with(func(s *security) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH"}} })))
	wantCode(t, "unknown capability", err, codes.InvalidArgument)
	user := pod.Run(d.Sleeper("user", with(func(s *security) { s.RunAsUser = value(1000) })))
	if got := capabilities(t, user.Host("status"), "CapEff"); got != 0 {
		t.Errorf("CapEff of a user = %x, want none", got)
	}
	if got := capabilities(t, user.Host("status"), "CapBnd"); got != defaultCaps&own {
		t.Errorf("CapBnd of a user = %x", got)
	}
	ambient := pod.Run(d.Sleeper("ambient", with(func(s *security) {
		s.RunAsUser, s.Capabilities = value(1000), &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_RAW"}}
	})))
	for who, status := range map[string]string{"first process": ambient.Host("status"), "exec": ambient.Sh("cat /proc/self/status")} {
		for _, field := range []string{"CapEff", "CapAmb"} {
			if got := capabilities(t, status, field); got != capNetRaw&own {
				t.Errorf("%s of a user's %s = %x, want %x", field, who, got, capNetRaw&own)
			}
		}
	}
}

// TestPortsAndPingOfAnyUser: what an image made for containerd's defaults expects.
func TestPortsAndPingOfAnyUser(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("ports"))
	user := with(func(s *security) {
		s.RunAsUser, s.RunAsGroup, s.NoNewPrivs, s.Capabilities = value(1000), value(1000), true, &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	})
	pod.Run(d.Container("server", []string{"probe", "serve", ":80", "page of anybody"}, user))
	wantPage(d, pod.IPs()[0]+":80", "page of anybody")
	c := pod.Run(d.Sleeper("c", user))
	if got := c.Exec("probe", "call", "socket-ping").Stdout; got != "ok\n" {
		t.Errorf("ping: %s", got)
	}
}

func TestNoNewPrivileges(t *testing.T) {
	d := harness.Start(t)
	layer := registrytestLayer(t, func(b *builder) { b.Program("bin/su-id", mustBusybox(t)) })
	layer.Files[len(layer.Files)-1].Mode = 0o4755
	image := harness.PushImage(t, "test/setuid", imageConfig(func(*ocispecConfig) {}), layer)
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("nnp"))
	for _, nnp := range []bool{true, false} {
		c := pod.Run(d.Sleeper("c", harness.Image(image.Ref), with(func(s *security) { s.RunAsUser, s.NoNewPrivs = value(1000), nnp })))
		want := map[bool]string{true: "1", false: "0"}[nnp]
		if got := c.Sh("grep NoNewPrivs /proc/self/status | cut -f2"); got != want {
			t.Errorf("NoNewPrivs = %s, want %s", got, want)
		}
		if got := c.Sh("cp /bin/su-id /tmp/ 2>/dev/null; stat -c %a /bin/su-id"); got != "4755" {
			t.Errorf("mode of the program = %s", got)
		}
		c.Remove()
	}
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("paths"))
	c := pod.Run(d.Sleeper("c", with(func(s *security) {
		s.MaskedPaths = []string{"/bin/ls", "/etc", "/no/such/path"}
		s.ReadonlyPaths = []string{"/tmp", "/no/such/path"}
	})))
	if r := c.Exec("sh", "-c", "/bin/ls"); r.Code == 0 {
		t.Errorf("/bin/ls is not masked: %+v", r)
	}
	if r := c.Exec("/bin/cat", "/proc/self/status"); r.Code != 0 {
		t.Errorf("/bin/cat went with /bin/ls: %+v", r)
	}
	if got := c.Sh("busybox ls /etc; echo x >/etc/x && echo written; true"); strings.Contains(got, "passwd") || strings.Contains(got, "written") {
		t.Errorf("/etc is not masked: %q", got)
	}
	if r := c.Exec("touch", "/tmp/x"); r.Code == 0 {
		t.Error("/tmp is not read-only")
	}
	if r := c.Exec("cat", "/proc/timer_list"); r.Code != 0 || len(r.Stdout) == 0 {
		t.Errorf("a path that the request does not name is masked: %+v", r)
	}
	plain := pod.Run(d.Sleeper("plain"))
	if got := plain.Sh("cat /proc/timer_list | wc -c; busybox ls /sys/firmware | wc -l"); got != "0\n0" {
		t.Errorf("default masked paths = %q", got)
	}
	for _, name := range []string{"write-proc", "write-sys"} {
		if got := plain.Exec("probe", "call", name).Stdout; got != "EROFS\n" {
			t.Errorf("%s = %q, want EROFS", name, got)
		}
	}
}

func TestPrivileged(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("privileged", harness.Privileged))
	c := pod.Run(d.Sleeper("c", with(func(s *security) { s.Privileged = true })))
	for name, want := range map[string]string{"mount": "ok", "write-proc": "ok", "unshare-mount": "ok", "open-kmsg": "ok", "sethostname": "ok"} {
		if name == "open-kmsg" {
			if _, err := os.Stat("/dev/kmsg"); err != nil {
				continue
			}
		}
		if got := c.Exec("probe", "call", name).Stdout; got != want+"\n" {
			t.Errorf("%s = %q, want %s", name, got, want)
		}
	}
	if got := c.Sh("grep Seccomp: /proc/self/status | cut -f2"); got != "0" {
		t.Errorf("seccomp mode = %s, want none", got)
	}
	if _, err := os.Stat("/dev/loop-control"); err == nil {
		if r := c.Exec("test", "-e", "/dev/loop-control"); r.Code != 0 {
			t.Error("the host's devices are not there")
		}
	}
	plain := d.RunPod(d.Pod("plain")).Run(d.Sleeper("c"))
	for name, want := range map[string]string{"mount": "EPERM", "unshare-mount": "EPERM", "sethostname": "EPERM", "reboot": "EPERM", "open-kmsg": "ENOENT"} {
		if got := plain.Exec("probe", "call", name).Stdout; got != want+"\n" {
			t.Errorf("%s without privileges = %q, want %s", name, got, want)
		}
	}
}

func TestDevices(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("devices"))
	c := pod.Run(d.Sleeper("c", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{
			{HostPath: "/dev/null", ContainerPath: "/dev/my/null", Permissions: "rw"},
			{HostPath: "/dev/zero", ContainerPath: "/dev/read-only-zero", Permissions: "r"},
		}
	}))
	if got := c.Sh("stat -c %t:%T /dev/my/null; echo x > /dev/my/null && echo written"); got != "1:3\nwritten" {
		t.Errorf("device = %q", got)
	}
	// What is not listed is refused by the kernel, even with a node of one's own.
	c2 := pod.Run(d.Sleeper("c2", with(func(s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"MKNOD"}}
	})))
	if r := c2.Exec("sh", "-c", "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg"); r.Code == 0 {
		t.Errorf("the kernel's log can be read: %+v", r)
	}
	if r := c2.Exec("sh", "-c", "mknod /tmp/null c 1 3 && echo x > /tmp/null"); r.Code != 0 {
		t.Errorf("a null device of one's own does not work: %+v", r)
	}
	bad := d.Sleeper("bad", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such-device", ContainerPath: "/dev/x", Permissions: "rwm"}}
	})
	c3, err := pod.TryCreate(bad)
	if err == nil {
		err = c3.TryStart()
	}
	if err == nil || !strings.Contains(err.Error(), "/dev/no-such-device") {
		t.Errorf("a missing device: %v, want an error that names it", err)
	}
}

// The operator's rules for devices: one for all containers, requested ones for the user, and no others for privileged containers.
func TestDevicePolicy(t *testing.T) {
	d := harness.Start(t, harness.WithConfig("[devices]\nadditional = [\"/dev/zero:/dev/for-all:r\"]\nowned_by_user = true\nnone_for_privileged = true\n"))
	pod := d.RunPod(d.Pod("policy", harness.Privileged))
	mine := func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
	}
	c := pod.Run(d.Sleeper("c", mine, with(func(s *security) { s.RunAsUser, s.RunAsGroup = value(1234), value(4321) })))
	if got := c.Sh("stat -c %u:%g /dev/mine; stat -c %t:%T /dev/for-all; head -c 3 /dev/for-all | wc -c"); got != "1234:4321\n1:5\n3" {
		t.Errorf("devices = %q", got)
	}
	strong := pod.Run(d.Sleeper("strong", mine, with(func(s *security) { s.Privileged = true })))
	if got := strong.Sh("ls -d /dev/mine /dev/for-all /dev/kmsg /dev/vda /dev/loop0 2>/dev/null; true"); got != "/dev/for-all\n/dev/mine" && got != "/dev/mine\n/dev/for-all" {
		t.Errorf("a privileged container has %q", got)
	}

	gone := harness.Start(t, harness.WithConfig("[devices]\nadditional = [\"/dev/no-such-device\"]\n[apparmor]\ndisabled = true\n"))
	other := gone.RunPod(gone.Pod("gone"))
	unchanged(gone, func() {
		_, err := other.TryCreate(gone.Sleeper("c"))
		refused(t, "a device for all that is not there", err, codes.InvalidArgument, "devices.additional", "/dev/no-such-device")
	})
}

func profile(t testing.TB, path string, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSeccomp(t *testing.T) {
	d := harness.Start(t)
	local := profile(t, filepath.Join(d.Dir, "no-chroot.json"), map[string]any{
		"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls":      []any{map[string]any{"names": []string{"chroot"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}},
	})
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*security) {
		return func(s *security) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref} }
	}
	pod := d.RunPod(d.Pod("seccomp", harness.Privileged))
	for _, tc := range []struct {
		name   string
		change func(*security)
		mode   string
		calls  map[string]string
	}{
		{"default", seccomp(runtimeapi.SecurityProfile_RuntimeDefault, ""), "2",
			map[string]string{"socket-alg": "", "socket-vsock": "", "keyctl": "EPERM", "userfaultfd": "EPERM", "io_uring": "EPERM", "unshare-user": "EPERM", "bpf": "EPERM", "chroot": "ok", "getcpu": ""}},
		{"unconfined", seccomp(runtimeapi.SecurityProfile_Unconfined, ""), "0", map[string]string{"chroot": "ok", "keyctl": "ok"}},
		{"none named", func(s *security) { s.Seccomp = nil }, "0", map[string]string{"chroot": "ok"}},
		{"localhost", seccomp(runtimeapi.SecurityProfile_Localhost, local), "2", map[string]string{"chroot": "ENOSYS", "keyctl": "ok"}},
		{"localhost, privileged", func(s *security) { seccomp(runtimeapi.SecurityProfile_Localhost, local)(s); s.Privileged = true }, "0", map[string]string{"chroot": "ok"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := pod.Run(d.Sleeper("c", with(tc.change)))
			defer c.Remove()
			for who, status := range map[string]string{"first process": c.Host("status"), "exec": c.Sh("cat /proc/self/status")} {
				_, rest, _ := strings.Cut(status, "Seccomp:\t")
				if got, _, _ := strings.Cut(rest, "\n"); got != tc.mode {
					t.Errorf("seccomp mode of the %s = %s, want %s", who, got, tc.mode)
				}
			}
			for name, want := range tc.calls {
				got := strings.TrimSpace(c.Exec("probe", "call", name).Stdout)
				if want == "" && got == "ok" && strings.HasPrefix(name, "socket-") || want != "" && got != want {
					t.Errorf("%s = %s, want %s", name, got, want)
				}
			}
		})
	}
	notJSON := d.Write(filepath.Join(d.Dir, "bad.json"), "{")
	for name, ref := range map[string]string{"no file": filepath.Join(d.Dir, "missing.json"), "empty": "", "not JSON": notJSON, "relative": "x.json", "a folder": d.Dir} {
		c, err := pod.TryCreate(d.Sleeper("bad", with(seccomp(runtimeapi.SecurityProfile_Localhost, ref))))
		if err == nil {
			err = c.TryStart()
			c.Remove()
		}
		wantCode(t, "localhost profile, "+name, err, codes.InvalidArgument)
		if err != nil && ref != "" && !strings.Contains(err.Error(), ref) {
			t.Errorf("%s: %v does not name the file", name, err)
		}
	}
}

// TestNothingLeaksIntoTheContainer: no descriptor, no environment and no signal state of berth's.
func TestNothingLeaksIntoTheContainer(t *testing.T) {
	d := harness.Start(t, harness.WithEnv("BERTH_SECRET=swordfish", "AWS_SECRET=swordfish"))
	image := harness.PushImage(t, "test/env", imageConfig(func(c *ocispecConfig) {
		c.Env = []string{"PATH=/bin", "AWS_SECRET", "=y", "GOOD=1"}
	}))
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("leaks"))
	c, err := pod.TryCreate(d.Sleeper("c", harness.Image(image.Ref)))
	if err == nil {
		c.Start()
		for who, env := range map[string]string{"first process": c.Host("environ"), "exec": c.Sh("tr '\\0' '\\n' < /proc/self/environ")} {
			if strings.Contains(env, "swordfish") {
				t.Errorf("the daemon's environment is in the %s's: %q", who, env)
			}
		}
		c.Remove()
	}
	plain := pod.Run(d.Sleeper("plain"))
	plain.WaitOutput("up") // and has no file open that a program opens when it begins
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(plain.Executed()) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, _ := strconv.Atoi(e.Name()); n > 2 && n != 10 { // the shell keeps its own standard input as 10
			target, _ := os.Readlink("/proc/" + strconv.Itoa(plain.PID()) + "/fd/" + e.Name())
			t.Errorf("descriptor %s of the first process is %s", e.Name(), target)
		}
	}
	if got := plain.Sh("echo $(ls /proc/self/fd)"); got != "0 1 2 3" {
		t.Errorf("descriptors of an exec = %q, want 0 1 2 and ls's own 3", got)
	}
	status := pod.Run(d.Container("bare", []string{"sleep", "1000"})).Host("status")
	for _, field := range []string{"SigBlk", "SigIgn"} {
		if got := capabilities(t, status, field); got != 0 {
			t.Errorf("%s of the first process = %x", field, got)
		}
	}
	if got := plain.Sh("cat /proc/self/oom_score_adj"); got != readFile(t, "/proc/self/oom_score_adj") {
		t.Errorf("oom_score_adj = %s", got)
	}
	if got := plain.Sh("umask"); got != "0022" {
		t.Errorf("umask = %s", got)
	}
	for _, dir := range []string{"/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/12"} {
		bad, err := pod.TryCreate(d.Shell("cwd", "pwd; ls ..", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir }))
		if err == nil {
			if err = bad.TryStart(); err == nil {
				bad.Wait(harness.Timeout)
				if out := bad.Output(); strings.Contains(out, "lib64") {
					t.Errorf("working folder %s shows the host: %q", dir, out)
				}
			}
			bad.Remove()
		}
	}
}

// On a host without SELinux, options are checked and then mean nothing, whatever the configuration says.
func TestSELinuxOptionsWithoutSELinux(t *testing.T) {
	if selinux.Enabled() {
		t.Skip("this kernel has a SELinux policy")
	}
	d := harness.Start(t, harness.WithConfig("[selinux]\nenabled = true\n"))
	pod := d.RunPod(d.Pod("selinux", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c1,c2"}
	}))
	dir := folder(t, d, "volume")
	options := func(o *runtimeapi.SELinuxOption) harness.ContainerOption {
		return harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SelinuxOptions = o })
	}
	c := pod.Run(d.Container("c", []string{"sleep", "3600"}, options(&runtimeapi.SELinuxOption{Type: "other_t"}), bind(dir, "/vol", func(m *runtimeapi.Mount) { m.SelinuxRelabel = true })))
	if got := c.Sh("cat /vol/file"); got != "volume" {
		t.Errorf("file = %q", got)
	}
	unchanged(d, func() {
		_, err := pod.TryCreate(d.Sleeper("bad", options(&runtimeapi.SELinuxOption{Level: "very secret"})))
		refused(t, "a level that is none", err, codes.InvalidArgument, "selinux_options.level", "very secret")
	})
}
