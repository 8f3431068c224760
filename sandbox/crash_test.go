package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/sandbox/store"
	"github.com/berthd/berth/test/wait"
)

// crash is a fault that kills a Manager, as far as a Manager can be killed inside its process: at the n-th effect, and from then on, every
// goroutine that wants to do something to the host stops for good.
type crash struct {
	at  int
	end chan struct{}

	mu    sync.Mutex
	steps []string
	died  chan struct{}
}

func (c *crash) effect(step string) error {
	c.mu.Lock()
	c.steps = append(c.steps, step)
	n := len(c.steps)
	if n == c.at {
		close(c.died)
	}
	c.mu.Unlock()
	if c.at == 0 || n < c.at {
		return nil
	}
	<-c.end
	return errors.New("the daemon is dead")
}

// life is everything that is done with one sandbox and one container. It ends early with the first error.
func life(ctx context.Context, m *Manager) error {
	p, err := m.RunPod(ctx, podConfig("a"), "")
	if err != nil {
		return err
	}
	c, err := m.CreateContainer(ctx, createRequest(p, "c", "sleep 1000"))
	if err != nil {
		return err
	}
	if err := m.StartContainer(ctx, c); err != nil {
		return err
	}
	if _, err := m.ExecSync(ctx, c, []string{"true"}, time.Second); err != nil {
		return err
	}
	if err := m.StopContainer(ctx, c, 0); err != nil {
		return err
	}
	if err := m.RemoveContainer(ctx, c); err != nil {
		return err
	}
	second, err := m.CreateContainer(ctx, createRequest(p, "d", "sleep 1000"))
	if err != nil {
		return err
	}
	if err := m.StartContainer(ctx, second); err != nil {
		return err
	}
	if err := m.StopPod(ctx, p); err != nil {
		return err
	}
	return m.RemovePod(ctx, p)
}

// handlers are the worlds that a life is tried in.
var handlers = map[string]func(t testing.TB) *world{
	"native":   newWorld,
	"external": func(t testing.TB) *world { return newWorld(t).external() },
}

// steps counts the effects of one life.
func steps(t *testing.T, w *world) []string {
	c := &crash{end: w.end}
	m := w.open(c.effect)
	if err := life(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	w.empty()
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.steps)
}

func TestKillAtEveryStep(t *testing.T) {
	for name, newWorld := range handlers {
		t.Run(name, func(t *testing.T) { killAtEveryStep(t, newWorld) })
	}
}

func killAtEveryStep(t *testing.T, newWorld func(t testing.TB) *world) {
	all := steps(t, newWorld(t))
	t.Logf("%d steps: %s", len(all), strings.Join(all, ", "))
	for n := 1; n <= len(all); n++ {
		t.Run(fmt.Sprintf("%02d %s", n, all[n-1]), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c := &crash{at: n, end: w.end, died: make(chan struct{})}
			dead := w.open(c.effect)
			finished := make(chan struct{})
			w.callers.Go(func() { life(t.Context(), dead); close(finished) })
			select {
			case <-c.died:
			case <-finished: // the order of what runs at once differs: this time there was one step less
			case <-time.After(time.Minute):
				t.Fatal("neither dead nor finished")
			}
			time.Sleep(100 * time.Millisecond) // let what was between two effects come to its next one
			m := w.open(nil)
			w.recovered(m)
			checkTruth(t, w, m)
			retry(t, w, m)
		})
	}
}

func TestKillTwiceAtEveryStepOfRecovery(t *testing.T) {
	for n := 1; n <= 40; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.open(nil)
			a, b, stopped := run(t, m, podConfig("a")), run(t, m, podConfig("b")), run(t, m, podConfig("s"))
			start(t, m, createRequest(a, "c", "sleep 1000"))
			start(t, m, createRequest(b, "c", "sleep 1000"))
			if err := m.StopPod(t.Context(), stopped); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			half(t, w, "half")
			w.monitorOf(b).kill()
			for range 2 {
				c := &crash{at: n, end: w.end, died: make(chan struct{})}
				again := w.open(c.effect)
				select {
				case <-c.died:
				case <-time.After(300 * time.Millisecond): // it had fewer steps, or comes to that one while it is being closed
					closed := make(chan struct{})
					w.callers.Go(func() { again.Close(t.Context()); close(closed) })
					select {
					case <-c.died:
					case <-closed:
					}
				}
				time.Sleep(100 * time.Millisecond)
			}
			m = w.open(nil)
			w.recovered(m)
			checkTruth(t, w, m)
			if got, err := m.Pod(a); err != nil || got.State != PodReady {
				t.Errorf("the healthy sandbox is %+v, %v", got, err)
			}
			if got, err := m.Pod(b); err != nil || got.State != PodNotReady {
				t.Errorf("the sandbox without a monitor is %+v, %v", got, err)
			}
			for _, p := range m.Pods() {
				remove(t, m, p.ID)
			}
			w.empty()
		})
	}
}

// half leaves a sandbox that was being made when the daemon was killed.
func half(t *testing.T, w *world, name string) {
	t.Helper()
	diesAt(t, w, "write hosts", func(m *Manager) { m.RunPod(t.Context(), podConfig(name), "") })
}

// diesAt kills a daemon at an effect of a call.
func diesAt(t *testing.T, w *world, at string, call func(*Manager)) {
	t.Helper()
	var once sync.Once
	died := make(chan struct{})
	m := w.open(func(step string) error {
		if step == at {
			once.Do(func() { close(died) })
		}
		select {
		case <-died:
			<-w.end
			return errors.New("the daemon is dead")
		default:
			return nil
		}
	})
	w.recovered(m)
	w.callers.Go(func() { call(m) })
	<-died
}

// checkTruth holds the lists against the processes.
func checkTruth(t *testing.T, w *world, m *Manager) {
	t.Helper()
	for _, c := range m.Containers() {
		var pids []int
		wait.Until(20*time.Second, 5*time.Millisecond, func() bool { // what was killed takes a moment to be gone
			var err error
			if pids, err = w.cgroups.PIDs(w.cgroups.Tree() + "/" + c.SandboxID + "/" + c.ID); err != nil {
				t.Error(err)
			}
			return len(pids) == 0 || c.State == ContainerRunning
		})
		if running := len(pids) > 0; running != (c.State == ContainerRunning) {
			t.Errorf("container %s is %s, and has processes %v", c.ID, c.State, pids)
		}
		// All of these tests' recoveries can be carried through.
		if p, _ := m.Pod(c.SandboxID); c.State == ContainerRunning && p.State != PodReady {
			t.Errorf("container %s runs in a sandbox that is %s", c.ID, p.State)
		}
	}
	for _, p := range m.Pods() {
		if p.State == PodReady && (w.monitorOf(p.ID) == nil || !m.pins.Pinned(p.ID) || len(p.IPs) == 0) {
			t.Errorf("sandbox %s is Ready without monitor, network namespace or address: %+v", p.ID, p)
		}
		if p.State == PodCreating {
			t.Errorf("sandbox %s is Creating after recovery", p.ID)
		}
	}
}

// retry does what a kubelet does: the same call again. It works at once, or the sandbox is there to be removed.
func retry(t *testing.T, w *world, m *Manager) {
	t.Helper()
	id, err := m.RunPod(t.Context(), podConfig("a"), "")
	if errors.Is(err, ErrNameInUse) {
		if len(m.Pods()) != 1 || m.Pods()[0].State != PodNotReady {
			t.Fatalf("RunPod = %v with %+v", err, m.Pods())
		}
		remove(t, m, m.Pods()[0].ID)
		id, err = m.RunPod(t.Context(), podConfig("a"), "")
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.CreateContainer(t.Context(), createRequest(id, "c", "sleep 1000"))
	if err == nil {
		if err := m.StartContainer(t.Context(), c); err != nil {
			t.Error(err)
		}
	} else if !errors.Is(err, ErrNameInUse) {
		t.Error(err)
	}
	checkTruth(t, w, m)
	remove(t, m, id)
	if len(m.Pods()) != 0 || len(m.Containers()) != 0 {
		t.Errorf("listed after removal: %+v %+v", m.Pods(), m.Containers())
	}
	w.empty()
}

func TestErrorAtEveryStep(t *testing.T) {
	for name, newWorld := range handlers {
		t.Run(name, func(t *testing.T) { errorAtEveryStep(t, newWorld) })
	}
}

func errorAtEveryStep(t *testing.T, newWorld func(t testing.TB) *world) {
	all := steps(t, newWorld(t))
	for n := 1; n <= len(all); n++ {
		t.Run(fmt.Sprintf("%02d %s", n, all[n-1]), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			count := 0
			var mu sync.Mutex
			m := w.open(func(step string) error {
				mu.Lock()
				defer mu.Unlock()
				if count++; count == n {
					return fmt.Errorf("%s: %w", step, syscall.ENOSPC)
				}
				return nil
			})
			err := life(t.Context(), m)
			retry(t, w, m)
			if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrState) {
				t.Errorf("the error does not tell its cause: %v", err)
			}
		})
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	running := start(t, m, createRequest(p, "running", "sleep 1000"))
	ends := start(t, m, createRequest(p, "ends", "while [ ! -e "+w.logs+"/go ]; do sleep 0.01; done; exit 9"))
	created := create(t, m, createRequest(p, "created", "sleep 1000"))
	before := m.Containers()
	podBefore, _ := m.Pod(p)
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(w.logs+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	f := w.monitorOf(p)
	waitFor(t, func() bool { return f.ended(ends) })
	m = w.open(nil)
	if len(m.Pods()) != 1 || len(m.Containers()) != 3 {
		t.Errorf("lists right after the start: %+v %+v", m.Pods(), m.Containers())
	}
	w.recovered(m)
	podAfter, _ := m.Pod(p)
	if podAfter.State != PodReady || podAfter.CreatedAt != podBefore.CreatedAt || podAfter.MonitorPID != podBefore.MonitorPID ||
		!slices.Equal(podAfter.IPs, podBefore.IPs) || podAfter.Attachment == nil || podAfter.Config.GetMetadata().GetName() != "a" {
		t.Errorf("sandbox before %+v, after %+v", podBefore, podAfter)
	}
	for _, b := range before {
		a, err := m.Container(b.ID)
		if err != nil || a.CreatedAt != b.CreatedAt || a.StartedAt != b.StartedAt || a.StopSignal != b.StopSignal || a.LogPath != b.LogPath ||
			a.Config.GetMetadata().GetName() != b.Config.GetMetadata().GetName() || a.User.GetLinux().GetUid() != b.User.GetLinux().GetUid() {
			t.Errorf("container before %+v, after %+v, %v", b, a, err)
		}
	}
	if got, _ := m.Container(ends); got.State != ContainerExited || got.ExitCode != 9 || got.Reason != ReasonError {
		t.Errorf("what ended meanwhile: %+v", got)
	}
	if got, _ := m.Container(running); got.State != ContainerRunning {
		t.Errorf("what runs: %+v", got)
	}
	if result, err := m.ExecSync(t.Context(), running, []string{"echo hi"}, 0); err != nil || string(result.Stdout.Head) != "hi\n" {
		t.Errorf("ExecSync after restart = %q, %v", result.Stdout.Head, err)
	}
	if err := m.StartContainer(t.Context(), created); err != nil {
		t.Errorf("start of what was created before the restart: %v", err)
	}
	if id := run(t, m, podConfig("a")); id != p {
		t.Errorf("RunPod after restart = %s, want %s", id, p)
	}
	if err := m.StopContainer(t.Context(), running, 0); err != nil {
		t.Error(err)
	}
	remove(t, m, p)
	w.empty()
}

func (f *fakeMonitor) ended(containerID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.containers[containerID].done:
		return true
	default:
		return false
	}
}

func TestRebootEndsEverything(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	if err := m.updatePod(m.pods[p], func(rec *store.Pod) { rec.BootID = "another boot" }); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil)
	w.recovered(m)
	if got, _ := m.Pod(p); got.State != PodNotReady {
		t.Errorf("sandbox = %+v", got)
	}
	if got, _ := m.Container(c); got.State != ContainerExited || got.Reason != ReasonUnknown || got.ExitCode != 137 {
		t.Errorf("container = %+v", got)
	}
	w.monitorOf(p).kill() // a reboot would have
	remove(t, m, p)
	w.empty()
}

func TestHungMonitorDoesNotHoldUpTheStart(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	a, b := run(t, m, podConfig("a")), run(t, m, podConfig("b"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := w.monitorOf(a)
	f.mu.Lock()
	f.hung, f.release = true, make(chan struct{})
	f.mu.Unlock()
	late := time.AfterFunc(20*time.Second, func() { close(f.release) })
	m = w.open(nil)
	if len(m.Pods()) != 2 {
		t.Errorf("Open lists %d", len(m.Pods()))
	}
	if _, err := m.CreateContainer(t.Context(), createRequest(b, "c", "true")); err != nil {
		t.Errorf("another sandbox: %v", err)
	}
	if late.Stop() {
		close(f.release)
	} else {
		t.Error("it waited for the monitor that hangs")
	}
	w.recovered(m)
	if got, _ := m.Pod(a); got.State != PodNotReady || got.Message == "" {
		t.Errorf("sandbox = %+v", got)
	}
	remove(t, m, a)
	remove(t, m, b)
	w.empty()
}

// A monitor that is killed while the daemon starts loses its sockets a moment before its process has ended.
func TestMonitorThatDiesWhileTheDaemonStarts(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := w.monitorOf(p)
	f.mu.Lock()
	f.helloErr = syscall.ECONNRESET
	f.mu.Unlock()
	m = w.open(nil)
	waitFor(t, func() bool { return m.linkOf(m.pods[p]) != nil }) // it asks the monitor now
	f.kill()
	w.recovered(m)
	if got, _ := m.Container(c); got.State != ContainerExited || got.Reason != ReasonMonitorLost {
		t.Errorf("container = %+v", got)
	}
	remove(t, m, p)
	w.empty()
}

// A daemon that ends while it starts knows nothing of its monitors: it must not give their sandboxes up.
func TestEndOfTheDaemonWhileItStarts(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := w.monitorOf(p)
	f.mu.Lock()
	f.hung = true
	f.mu.Unlock()
	m = w.open(nil)
	waitFor(t, func() bool { return m.linkOf(m.pods[p]) != nil }) // it asks the monitor now
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.hung = false
	f.mu.Unlock()
	m = w.open(nil)
	w.recovered(m)
	if got, _ := m.Pod(p); got.State != PodReady {
		t.Errorf("sandbox = %+v", got)
	}
	if got, _ := m.Container(c); got.State != ContainerRunning {
		t.Errorf("container = %+v", got)
	}
	remove(t, m, p)
	w.empty()
}

// What the daemon is short of while it asks a monitor says nothing of the monitor, also when the daemon ends meanwhile.
func TestShortageWhileTheDaemonStarts(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := w.monitorOf(p)
	short := func(err error) (m *Manager) {
		t.Helper()
		f.mu.Lock()
		f.helloErr, f.hellos = err, 0
		f.mu.Unlock()
		m = w.open(nil)
		waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.hellos > 0 })
		return m
	}
	if err := short(os.NewSyscallError("socket", syscall.EMFILE)).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = short(os.NewSyscallError("socket", syscall.ENOMEM))
	f.mu.Lock()
	f.helloErr = nil
	f.mu.Unlock()
	w.recovered(m)
	if got, _ := m.Pod(p); got.State != PodReady || got.Message != "" {
		t.Errorf("sandbox = %+v", got)
	}
	if got, _ := m.Container(c); got.State != ContainerRunning {
		t.Errorf("container = %+v", got)
	}
	remove(t, m, p)
	w.empty()
}

// noDescriptors makes each call that needs a descriptor fail, until the returned function is called.
func noDescriptors(t *testing.T) (end func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3 // those are open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() {
		once.Do(func() {
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(end)
	return end
}

// A monitor that no descriptor can be opened of is tried again, and given up like one that does not answer: nobody would follow its exits.
func TestNoDescriptorForAMonitor(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	id := run(t, m, podConfig("a"))
	start(t, m, createRequest(id, "c", "sleep 1000"))
	reattach := func(m *Manager, timeout time.Duration) (*pod, error) {
		p := m.pods[id]
		rec := m.record(p)
		m.setLink(p, nil)
		ctx, cancel := context.WithTimeout(m.ctx, timeout)
		defer cancel()
		return p, m.reattach(ctx, p, &rec)
	}

	end := noDescriptors(t)
	if err := m.sweepMonitors([]store.Process{m.record(m.pods[id]).Monitor}); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("sweep = %v, want %v", err, syscall.EMFILE)
	}
	time.AfterFunc(200*time.Millisecond, end)
	if p, err := reattach(m, 20*time.Second); err != nil || m.linkOf(p) == nil || m.podState(p) != PodReady {
		t.Errorf("a short while of it: %v, link %v, %s", err, m.linkOf(p), m.podState(p))
	}

	end = noDescriptors(t)
	m.background.cancel()
	p, err := reattach(m, 20*time.Second)
	end()
	if !errors.Is(err, context.Canceled) || m.podState(p) != PodReady {
		t.Errorf("the daemon ends meanwhile: %v, %s", err, m.podState(p))
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	m = w.open(nil)
	w.recovered(m)
	end = noDescriptors(t)
	p, err = reattach(m, 100*time.Millisecond)
	end()
	if !errors.Is(err, syscall.EMFILE) || m.podState(p) != PodNotReady {
		t.Errorf("it lasts: %v, %s", err, m.podState(p))
	}
	remove(t, m, id)
	w.empty()
}

// A process that cannot be looked at, for want of descriptors, has not ended: its sandbox would be given up.
func TestProcessThatCannotBeLookedAt(t *testing.T) {
	started, _, err := processStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = min(few.Cur, 512)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	all := []int{int(null.Fd())}
	for {
		fd, err := syscall.Dup(all[0])
		if err != nil {
			break
		}
		all = append(all, fd)
	}
	for free := range 3 {
		if free > 0 {
			syscall.Close(all[len(all)-1])
			all = all[:len(all)-1]
		}
		fd, err := openProcess(store.Process{PID: os.Getpid(), StartTime: started})
		if errors.Is(err, os.ErrProcessDone) {
			t.Errorf("with %d descriptors free this process has ended", free)
		}
		if err == nil {
			syscall.Close(fd)
		}
	}
	for _, fd := range all[1:] {
		syscall.Close(fd)
	}
	null.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

func TestOrphansAreSwept(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	keep := run(t, m, podConfig("keep"))
	kept := start(t, m, createRequest(keep, "c", "sleep 1000"))
	lost := run(t, m, podConfig("lost"))
	start(t, m, createRequest(lost, "c", "sleep 1000"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.store.RemovePod(lost); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil)
	w.recovered(m)
	waitFor(t, func() bool {
		return !slices.ContainsFunc(w.left(), func(item string) bool { return strings.Contains(item, lost) }) && len(w.rootfs.keys) == 1
	})
	<-w.monitorOf(lost).dead
	if got, _ := m.Container(kept); got.State != ContainerRunning {
		t.Errorf("container = %+v", got)
	}
	remove(t, m, keep)
	w.empty()
}

func TestDamagedRecordsAreQuarantined(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	good, bad := run(t, m, podConfig("good")), run(t, m, podConfig("bad"))
	c := start(t, m, createRequest(good, "c", "sleep 1000"))
	badContainer := start(t, m, createRequest(good, "bad", "sleep 1000"))
	inBadPod := start(t, m, createRequest(bad, "c", "sleep 1000"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	damage(t, w.cfg.Root+"/pods/"+bad+"/pod")
	damage(t, w.cfg.Root+"/pods/"+good+"/containers/"+badContainer+"/container")
	m = w.open(nil)
	w.recovered(m)
	if p, _ := m.Pod(good); p.State != PodReady {
		t.Errorf("the other sandbox = %+v", p)
	}
	if got, _ := m.Container(c); got.State != ContainerRunning {
		t.Errorf("the other container = %+v", got)
	}
	if p, _ := m.Pod(bad); p.State != PodNotReady || p.Message == "" || p.Config.GetMetadata() == nil {
		t.Errorf("the damaged sandbox = %+v", p)
	}
	for _, id := range []string{badContainer, inBadPod} {
		if got, err := m.Container(id); err != nil || got.State != ContainerExited {
			t.Errorf("container %s = %+v, %v", id, got, err)
		}
	}
	remove(t, m, bad)
	remove(t, m, good)
	w.empty()
}

func damage(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-3] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
