package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
	"github.com/berthd/berth/test/wait"
)

// Timeout bounds every call that a test makes.
const Timeout = 30 * time.Second

// Daemon is a berthd of one test.
type Daemon struct {
	*berthd.Process
	T       testing.TB
	Dir     string // folder of the test: root, state, configuration, logs
	CNIConf string // CNI configurations; empty at first
	CNIBin  string
	Hosts   string // HOST/hosts.toml
	Subnet  string // the bridge's, "10.250.N"; IPv6 is fd00:be27:N::/64
	Log     string // the daemon's log

	before invariants.Items
	config []string
	pods   int
	mu     sync.Mutex
}

// Option changes a daemon before it starts.
type Option func(*Daemon, *berthd.Options)

// WithConfig adds a piece of configuration.
func WithConfig(toml string) Option {
	return func(d *Daemon, _ *berthd.Options) { d.config = append(d.config, toml) }
}

// WithEnv adds NAME=VALUE to the daemon's environment.
func WithEnv(env ...string) Option {
	return func(_ *Daemon, o *berthd.Options) { o.Env = append(o.Env, env...) }
}

// WithRoot puts the daemon's root on another file system.
func WithRoot(dir string) Option {
	return func(_ *Daemon, o *berthd.Options) { o.Root = dir }
}

// WithState puts the daemon's state on another file system. The path must be short: there are sockets in it.
func WithState(dir string) Option {
	return func(_ *Daemon, o *berthd.Options) { o.State = dir }
}

// WithBin starts the binaries of a folder, and not those of this tree.
func WithBin(dir string) Option {
	return func(_ *Daemon, o *berthd.Options) { o.Bin = dir }
}

// WithCgroupParent names a cgroup parent that the test gives its pods. It is made in all hierarchies and removed at the end.
func WithCgroupParent(path string) Option {
	return func(_ *Daemon, o *berthd.Options) { o.CgroupParents = append(o.CgroupParents, path) }
}

// WithCgroupDriver configures the cgroup driver.
func WithCgroupDriver(name string) Option {
	return func(d *Daemon, o *berthd.Options) {
		o.Systemd = name == "systemd"
		d.config = append(d.config, fmt.Sprintf("[cgroup]\ndriver = %q\n", name))
	}
}

// built is the folder of binaries that were built for this test process.
var built string

var binaries = sync.OnceValues(func() (_ string, err error) {
	if built, err = os.MkdirTemp("", "berth-bin"); err != nil {
		return "", err
	}
	return berthd.Build(built)
})

// Main is what TestMain calls: it runs the tests, with a daemon's umask, and takes away what they shared.
func Main(m *testing.M) {
	unix.Umask(0o022)
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// Start starts a daemon and arranges the checks of the test's end. The test fails for anybody but root.
func Start(t testing.TB, options ...Option) *Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces, mounts, cgroups, links")
	}
	bin := Bin(t)
	base := os.Getenv("BERTH_TEST_DIR")
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "bt")
	if err != nil {
		t.Fatal(err)
	}
	n := number(t, dir)
	d := &Daemon{T: t, Dir: dir, CNIConf: filepath.Join(dir, "net.d"), CNIBin: filepath.Join(dir, "cni"), Hosts: filepath.Join(dir, "certs.d"),
		Subnet: fmt.Sprintf("10.250.%d", n), Log: filepath.Join(dir, "berthd.log")}
	opts := berthd.Options{Bin: bin, Root: filepath.Join(dir, "r"), State: filepath.Join(dir, "s"), Config: filepath.Join(dir, "config.toml"),
		Bridge: fmt.Sprintf("bt%d", n), Log: d.Log, Verbosity: 4, Systemd: underSystemd()}
	for _, o := range options {
		o(d, &opts)
	}
	for _, sub := range []string{d.CNIConf, d.CNIBin, d.Hosts} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if Handler != "" {
		d.config = append(d.config, runtimeConfig(t))
	}
	config := fmt.Sprintf("[registry]\nconfig_path = %q\n\n[network]\nconf_dir = %q\nbin_dirs = [%q]\nbridge = %q\nsubnets = [\"%s.0/24\", \"fd00:be27:%d::/64\"]\n%s\n",
		d.Hosts, d.CNIConf, d.CNIBin, opts.Bridge, d.Subnet, n, strings.Join(d.config, "\n"))
	if opts.Bin == bin { // an older one does not know all of these keys
		config = berthd.Isolate(config, dir)
	}
	d.Write(opts.Config, config)
	if d.Process, err = berthd.New(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	d.Start()
	d.warmUp()
	return d
}

// warmUp runs a pod, so that what is opened once for all pods is open, and then takes what is there as the state before.
func (d *Daemon) warmUp() {
	d.T.Helper()
	cold := d.Take()
	d.RunPod(d.Pod("warm-up")).Remove()
	lines, err := invariants.Settle(d.T.Context(), func(context.Context) (_ []string, err error) {
		if d.before, err = invariants.Take(d.Process.Daemon()); err != nil {
			return nil, err
		}
		return slices.DeleteFunc(invariants.Diff(d.Process.Daemon(), cold, d.before), func(line string) bool {
			return strings.Contains(line, string(invariants.Descriptor))
		}), nil
	})
	if err != nil || len(lines) > 0 {
		d.T.Fatalf("after a first pod: %q, %v", lines, err)
	}
}

// number takes a number of 0 to 255 that no other test on this host has, until the test ends: the daemon's subnet and bridge. The file
// of a number names the folder of the test that has it. A file that nobody holds is of a test that was killed: what that left is swept.
func number(t testing.TB, dir string) int {
	t.Helper()
	for n := range 256 {
		f, err := os.OpenFile(fmt.Sprintf("/tmp/berth-test-%d", n), os.O_CREATE|os.O_RDWR, 0o600) // for all tests of the host, whatever their TMPDIR
		if err != nil {
			t.Fatal(err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !stands(f) {
			f.Close()
			continue
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if old := string(text); old != "" {
			t.Logf("sweeping what a killed test left in %s: %v", old, berthd.Sweep(invariants.Daemon{
				Root: filepath.Join(old, "r"), State: filepath.Join(old, "s"), Bridge: fmt.Sprintf("bt%d", n)}))
			os.RemoveAll(old)
		}
		if inUse(t, n) {
			f.Close()
			continue
		}
		if err := errors.Join(f.Truncate(0), writeAt(f, dir)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			os.Remove(f.Name())
			f.Close()
		})
		return n
	}
	t.Fatal("256 tests run at the same time")
	return 0
}

// stands tells whether a file still has its name: another test may have removed it before it was locked here.
func stands(f *os.File) bool {
	mine, err := f.Stat()
	named, err2 := os.Stat(f.Name())
	return err == nil && err2 == nil && os.SameFile(mine, named)
}

// inUse tells whether the host has an address of the subnet, from whatever else.
func inUse(t testing.TB, n int) bool {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(addresses, func(a net.Addr) bool { return strings.HasPrefix(a.String(), fmt.Sprintf("10.250.%d.", n)) })
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// Start starts the daemon again after Kill or Stop.
func (d *Daemon) Start() {
	d.T.Helper()
	if err := d.Process.Start(d.Context()); err != nil {
		d.T.Fatal(err)
	}
}

// Kill ends the daemon with SIGKILL.
func (d *Daemon) Kill() {
	d.T.Helper()
	if err := d.Process.Kill(); err != nil {
		d.T.Fatal(err)
	}
}

// Stop ends the daemon in an orderly way.
func (d *Daemon) Stop() {
	d.T.Helper()
	if err := d.Process.Stop(); err != nil {
		d.T.Fatal(err)
	}
}

// Restart kills the daemon and starts it again.
func (d *Daemon) Restart() {
	d.T.Helper()
	d.Kill()
	d.Start()
}

// Upgrade kills the daemon and starts this tree's in its place. Descriptors are counted anew: another daemon may keep others open.
func (d *Daemon) Upgrade() {
	d.T.Helper()
	d.Kill()
	d.Use(Bin(d.T))
	d.DropIn("isolated.toml", berthd.Isolate("", d.Dir))
	d.Start()
	d.RunPod(d.Pod("upgraded")).Remove()
	now := d.Take()
	maps.DeleteFunc(d.before, func(i invariants.Item, _ int) bool { return i.Kind == invariants.Descriptor })
	maps.DeleteFunc(now, func(i invariants.Item, _ int) bool { return i.Kind != invariants.Descriptor })
	maps.Copy(d.before, now)
}

// Bin is the folder of this tree's binaries.
func Bin(t testing.TB) string {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Context is for one call: it ends with the test, or after a time in which a machine that stands still for a while has come back.
func (d *Daemon) Context() context.Context {
	ctx, cancel := context.WithTimeout(d.T.Context(), 4*Timeout)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// Write writes a file, or fails the test.
func (d *Daemon) Write(path, text string) string {
	d.T.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		d.T.Fatal(err)
	}
	return path
}

// Check holds the host against records and lists now.
func (d *Daemon) Check() {
	d.T.Helper()
	invariants.Check(d.T, d.Process.Daemon(), d.Runtime)
}

// Take collects what is on the host once it has come to rest.
func (d *Daemon) Take() invariants.Items {
	d.T.Helper()
	items, err := invariants.Steady(d.T.Context(), d.Process.Daemon(), invariants.Take)
	if err != nil {
		d.T.Fatal(err)
	}
	return items
}

// AsBefore fails the test if anything differs from before the test's first pod.
func (d *Daemon) AsBefore() {
	d.T.Helper()
	invariants.AsBefore(d.T, d.Process.Daemon(), d.before)
}

// end makes the checks that every test ends with, and clears the host.
func (d *Daemon) end() {
	t := d.T
	ctx, cancel := context.WithTimeout(context.Background(), 4*Timeout)
	defer cancel()
	if d.PID() != 0 {
		if !t.Failed() {
			d.Check()
		}
		if err := d.RemovePods(ctx); err != nil {
			t.Errorf("remove all pods: %v", err)
		}
		if !t.Failed() {
			d.AsBefore()
		}
	}
	if t.Failed() {
		d.showLog()
	}
	described := d.Process.Daemon()
	described.PID = 0
	if err := d.Process.Stop(); err != nil {
		t.Errorf("stop berthd: %v", err)
		d.Process.Kill()
	}
	d.Process.Close()
	if err := berthd.Sweep(described); err != nil {
		t.Errorf("sweep: %v", err)
	}
	if t.Failed() && os.Getenv("BERTH_TEST_KEEP") != "" {
		t.Logf("kept %s", d.Dir)
		return
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		t.Errorf("sweep: %v", err)
	}
}

// showLog prints the end of the daemon's log.
func (d *Daemon) showLog() {
	text, err := os.ReadFile(d.Log)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	d.T.Logf("berthd's log ends with:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
}

// Status asks for the daemon's conditions by name.
func (d *Daemon) Status() map[string]*runtimeapi.RuntimeCondition {
	d.T.Helper()
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		d.T.Fatalf("Status: %v", err)
	}
	all := map[string]*runtimeapi.RuntimeCondition{}
	for _, c := range r.GetStatus().GetConditions() {
		all[c.Type] = c
	}
	return all
}

// Patience is the least time that is waited for what comes about: no test fails because the machine is slow or busy.
const Patience = 20 * time.Second

// Eventually polls until ok, or fails the test after a time, which is Patience at least.
func (d *Daemon) Eventually(within time.Duration, what string, ok func() bool) {
	d.T.Helper()
	within = max(within, Patience)
	if !wait.Until(within, 10*time.Millisecond, ok) {
		d.T.Fatalf("not within %s: %s", within, what)
	}
}

// Reboot takes away what a reboot would: processes, mounts, links, cgroups and the state folder. The daemon must not run.
func (d *Daemon) Reboot() {
	d.T.Helper()
	if err := berthd.Sweep(d.Process.Daemon()); err != nil {
		d.T.Fatal(err)
	}
	if err := os.RemoveAll(d.Options().State); err != nil {
		d.T.Fatal(err)
	}
}

// StartSecond tries to start another berthd with the same folders. One that started is ended, and nil is returned.
func StartSecond(d *Daemon) error {
	opts := d.Options()
	opts.Socket, opts.Log = filepath.Join(d.Dir, "second.sock"), filepath.Join(d.Dir, "second.log")
	second, err := berthd.New(opts)
	if err != nil {
		return nil
	}
	defer second.Close()
	if err := second.Start(d.Context()); err != nil {
		return err
	}
	return second.Kill()
}

// DropIn adds a file to the daemon's configuration, for its next start or reload.
func (d *Daemon) DropIn(name, text string) {
	d.T.Helper()
	folder := filepath.Join(d.Dir, "config.toml.d")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		d.T.Fatal(err)
	}
	d.Write(filepath.Join(folder, name), text)
}
