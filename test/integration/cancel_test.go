package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/invariants"
	"github.com/berthd/berth/test/wait"
)

// request is one request with what it needs. It is made again, the same.
type request struct {
	// call makes it and returns what of the answer must be the same each time.
	call func(ctx context.Context, via *berthd.Client) (answer string, err error)
	// check looks at what has become of it; nil: nothing can be seen.
	check func(answer string) error
	// end takes away what it made; nil: nothing.
	end func() error
	// done is the code of a repetition after the call was carried through and the caller could have heard of it; OK: there is none.
	done codes.Code
}

// subject is what requests are made of by one worker.
type subject struct {
	next func(round int) (request, error) // makes what one request needs
	end  func() error                     // nil: nothing
}

// sweep is the giving up of one or more methods. Each worker has a subject of its own, with a name of its own.
type sweep struct {
	methods string // separated by spaces
	rounds  int    // 0: as many as are usual
	open    func(name string) (subject, error)
}

// sweepWorkers is how many requests of a sweep are under way at a time.
const sweepWorkers = 4

// sweepRounds is how often the calls of a sweep are given up.
func sweepRounds(t testing.TB) int {
	if n, err := strconv.Atoi(os.Getenv("BERTH_TEST_CANCELS")); err == nil {
		return n
	}
	if harness.Handler != "" {
		return 10
	}
	return 40
}

// TestEveryCallGivenUp gives up every method of both services at points spread over the time that it takes: the client cancels it, its deadline
// ends, or the client's connection goes. Then, or meanwhile, the same request is made again: it gets the same object, or a plain success.
// Nothing is left of any of them.
func TestEveryCallGivenUp(t *testing.T) {
	seed := sweepSeed(t)
	d := harness.Start(t)
	left := map[string]bool{}
	for _, name := range append(methodsOf(&runtimeapi.RuntimeService_ServiceDesc), methodsOf(&runtimeapi.ImageService_ServiceDesc)...) {
		left[name] = true
	}
	reading := readingCalls(d.RunPod(d.Pod("read")).Run(d.Sleeper("c")))
	for _, s := range reading { // what is read opens files that stay open
		if err := once(d, s); err != nil {
			t.Fatalf("%s: %v", s.methods, err)
		}
	}
	for i, s := range append(changingCalls(d), reading...) {
		for name := range strings.FieldsSeq(s.methods) {
			delete(left, name)
		}
		t.Run(s.methods, func(t *testing.T) { s.run(t, d, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	for name := range left {
		t.Errorf("method %s is not given up here", name)
	}
}

// sweepSeed is what the points and the ways of giving up are drawn from. It is printed.
func sweepSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BERTH_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BERTH_TEST_SEED=%d", seed)
	return seed
}

// slowPlugin is a CNI plugin in shell that takes its time, also in the middle of what it does, and refuses to do it twice.
const slowPlugin = `#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
ADD)
	mkdir "%[1]s/$CNI_CONTAINERID" || exit 1
	sleep 0.01
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"2001:db8::1:'"$(printf %%.4s "$CNI_CONTAINERID")"'/64","interface":0}]}' ;;
DEL)
	sleep 0.01
	rm -rf "%[1]s/$CNI_CONTAINERID" ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
`

// TestNetworkCallsGivenUp gives up the calls that run a CNI plugin: the plugin, perhaps ended half-way, is left with nothing that it attached.
func TestNetworkCallsGivenUp(t *testing.T) {
	seed := sweepSeed(t)
	d := harness.Start(t)
	d.Sleeper("pulled before")
	attached := filepath.Join(d.Dir, "attached")
	if err := os.Mkdir(attached, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.Write(d.CNIBin+"/slow", fmt.Sprintf(slowPlugin, attached)), 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(d.CNIConf+"/10-slow.conflist", `{"cniVersion":"1.0.0","name":"slownet","plugins":[{"type":"slow"}]}`)
	d.Eventually(10*time.Second, "a pod gets its address from the plugin", func() bool {
		pod := d.RunPod(d.Pod("plugged"))
		defer pod.Remove()
		return strings.HasPrefix(pod.IPs()[0], "2001:db8::1:")
	})
	for i, s := range changingCalls(d)[:3] {
		t.Run(s.methods, func(t *testing.T) { s.run(t, d, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	left, err := os.ReadDir(attached)
	if err != nil || len(left) > 0 {
		t.Errorf("the plugin still has attached: %v, %v", left, err)
	}
}

// TestPluginCallsGivenUp gives up the calls that plugins of the node are told of. Each of them hears of the end of whatever it was told of.
func TestPluginCallsGivenUp(t *testing.T) {
	seed := sweepSeed(t)
	d := harness.Start(t)
	d.Sleeper("pulled before")
	slow := rand.New(rand.NewPCG(seed, 1)) // plugins are asked one after the other
	p := join(d, "10-slow", func(p *nodePlugin) {
		p.told = func(string) error {
			time.Sleep(time.Duration(slow.IntN(int(2 * time.Millisecond))))
			return nil
		}
	})
	for i, s := range changingCalls(d)[:8] {
		t.Run(s.methods, func(t *testing.T) { s.run(t, d, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	count := func() map[string]int {
		told := map[string]int{}
		for _, event := range p.log() {
			told[strings.Fields(event)[0]]++
		}
		return told
	}
	var told map[string]int
	if !wait.Until(harness.Timeout, 20*time.Millisecond, func() bool {
		told = count()
		return told["RunPodSandbox"] == told["RemovePodSandbox"] && told["CreateContainer"] == told["RemoveContainer"]
	}) {
		t.Errorf("the plugin was told of %v", told)
	}
}

// once makes a call of a sweep's that nobody gives up.
func once(d *harness.Daemon, s sweep) error {
	what, err := s.open("once")
	if err != nil {
		return err
	}
	req, err := what.next(0)
	if err != nil {
		return err
	}
	_, err = req.call(d.Context(), d.Client)
	return err
}

// run makes the requests of a sweep and gives them up.
func (s sweep) run(t *testing.T, d *harness.Daemon, r *rand.Rand) {
	begin := time.Now()
	before, err := invariants.Steady(t.Context(), d.Process.Daemon(), takeAll)
	if err != nil {
		t.Fatal(err)
	}
	rounds := s.rounds
	if rounds == 0 {
		rounds = sweepRounds(t)
	}
	w := &wave{d: d, rounds: rounds}
	var workers sync.WaitGroup
	for i := range sweepWorkers {
		own := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		workers.Go(func() {
			if err := w.work(s, fmt.Sprintf("%s-%d", strings.ToLower(strings.Fields(s.methods)[0]), i), own); err != nil {
				t.Error(err)
			}
		})
	}
	workers.Wait()
	d.Eventually(2*time.Minute, "what was removed of images is deleted", func() bool {
		left, err := os.ReadDir(filepath.Join(d.Options().Root, "images", "trash"))
		return err != nil || len(left) == 0
	})
	invariants.Check(t, d.Process.Daemon(), d.Runtime)
	lines, err := invariants.Settle(t.Context(), func(context.Context) ([]string, error) {
		after, err := takeAll(d.Process.Daemon())
		return invariants.Diff(d.Process.Daemon(), before, after), err
	})
	if err != nil || len(lines) > 0 {
		t.Errorf("not as before: %v\n  %s", err, strings.Join(lines, "\n  "))
	}
	t.Logf("%d times, over %v: %d first calls were given up, %d had succeeded unheard; %v", w.begun.Load(), w.usual(), w.given.Load(), w.unheard.Load(), time.Since(begin))
}

// takeAll collects what is on the host of a daemon's, and the names in its store of images.
func takeAll(d invariants.Daemon) (invariants.Items, error) {
	items, err := invariants.Take(d)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(d.Root, "images")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if depth := strings.Count(rel, "/"); depth == 1 {
			items[invariants.Item{Kind: "image store", Name: rel}]++
			if e.IsDir() {
				return fs.SkipDir
			}
		}
		return err
	})
	return items, err
}

// wave is one sweep under way.
type wave struct {
	d      *harness.Daemon
	rounds int

	begun, given, unheard atomic.Int64

	mu    sync.Mutex
	times []time.Duration // of calls that nobody gave up
}

// work makes requests with one subject until there have been enough. The first two are not given up: they tell how long that takes.
func (w *wave) work(s sweep, name string, r *rand.Rand) (err error) {
	what, err := s.open(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		if what.end != nil {
			err = errors.Join(err, what.end())
		}
	}()
	for n := 0; ; n++ {
		round := int(w.begun.Add(1)) - 1
		if round >= w.rounds+2*sweepWorkers {
			return nil
		}
		req, err := what.next(n)
		if err != nil {
			return fmt.Errorf("%s, before call %d: %w", name, n, err)
		}
		if n < 2 {
			err = w.measure(req)
		} else {
			at := float64(round-2*sweepWorkers) + r.Float64()
			err = w.giveUp(req, time.Duration(at/float64(w.rounds)*1.3*float64(w.usual())), r)
		}
		if req.end != nil {
			err = errors.Join(err, req.end())
		}
		if err != nil {
			return fmt.Errorf("%s, call %d: %w", name, n, err)
		}
	}
}

// usual is how long a call takes that nobody gives up. The first ones, which all come at once, take longer: it is the lower quartile.
func (w *wave) usual() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.times) == 0 {
		return 10 * time.Millisecond
	}
	slices.Sort(w.times)
	return w.times[len(w.times)/4]
}

// measure makes a call that nobody gives up.
func (w *wave) measure(req request) error {
	begin := time.Now()
	answer, err := req.call(w.d.Context(), w.d.Client)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.times = append(w.times, time.Since(begin))
	w.mu.Unlock()
	if req.check == nil {
		return nil
	}
	return req.check(answer)
}

// outcome is what came of a call.
type outcome struct {
	answer string
	err    error
}

// giveUp makes a request, gives it up after a time, and makes it again.
func (w *wave) giveUp(req request, after time.Duration, r *rand.Rand) error {
	ctx, cancel := context.WithCancel(w.d.Context())
	defer cancel()
	via, how := w.d.Client, "cancelled"
	switch r.IntN(8) {
	case 0: // the connection goes
		own, err := berthd.Dial(w.d.Options().Socket)
		if err != nil {
			return err
		}
		defer own.Close()
		via, how = own, "disconnected"
		time.AfterFunc(after, func() { own.Close() })
	case 1, 2, 3:
		how = "out of time"
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, after)
		defer end()
	default:
		time.AfterFunc(after, cancel)
	}
	firsts := make(chan outcome, 1)
	go func() {
		answer, err := req.call(ctx, via)
		firsts <- outcome{answer, err}
	}()
	var first, second outcome
	pause, joined := time.Duration(0), false
	switch r.IntN(4) {
	case 0: // beside the first
		joined = true
		time.Sleep(time.Duration(r.Float64() * float64(after)))
		second.answer, second.err = req.call(w.d.Context(), w.d.Client)
		first = <-firsts
	case 1: // when that may have been undone
		first = <-firsts
		pause = time.Duration(r.Float64() * float64(w.usual()))
		time.Sleep(pause)
		second.answer, second.err = req.call(w.d.Context(), w.d.Client)
	default: // at once
		first = <-firsts
		second.answer, second.err = req.call(w.d.Context(), w.d.Client)
	}
	if first.err == nil && !joined && req.done != codes.OK && status.Code(second.err) == req.done {
		second = first // it was heard, and is not to be repeated
	}
	told := fmt.Sprintf("%s after %v (%v, %q), repeated %v later (beside it: %t)", how, after, first.err, first.answer, pause, joined)
	if first.err != nil {
		w.given.Add(1)
	}
	if code := status.Code(first.err); code != codes.OK && !w.leaves(code) && (!joined || code != req.done) {
		return fmt.Errorf("the first call, %s: %w", told, first.err)
	}
	if req.done != codes.OK && status.Code(second.err) == req.done {
		w.unheard.Add(1)
		second.err = nil
	}
	if second.err != nil {
		return fmt.Errorf("%s: %w", told, second.err)
	}
	if first.err == nil && first.answer != second.answer {
		return fmt.Errorf("%s: another answer: %q", told, second.answer)
	}
	if req.check == nil {
		return nil
	}
	if err := req.check(second.answer); err != nil {
		return fmt.Errorf("%s: %w", told, err)
	}
	return nil
}

// leaves tells whether a client that gives up sees a code. Code Unknown is of errors that are no status: a stream's.
func (w *wave) leaves(c codes.Code) bool {
	return c == codes.Canceled || c == codes.DeadlineExceeded || c == codes.Unavailable || c == codes.Unknown
}
