package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

// What is run: the specs of these names.
const defaultFocus = `\[k8s\.io\] (Container|Multiple Containers|Image|Idempotence|PodSandbox|Networking|Runtime info|Security Context|Streaming|NRI)`

// What is run once more over WebSocket.
const webSocketFocus = `\[k8s\.io\] Streaming`

var webSocketFlags = []string{"--websocket-exec=true", "--websocket-attach=true", "--websocket-portforward=true"}

// What is not: a digest of a public image that nobody else can make.
const defaultSkip = `public image with digest`

type runner struct {
	dir, focus, skip, handler string
	programs                  string   // folder of what images are made of; "": they are found
	show                      bool     // print the output of a run with a failure
	flags                     []string // more of critest's
	nri                       bool
	berthd                    *berthd.Process
	before                    invariants.Items
}

func main() {
	r := &runner{}
	seeds := flag.Int("seeds", 5, "number of random orders")
	flag.StringVar(&r.focus, "focus", defaultFocus, "specs to run")
	flag.StringVar(&r.skip, "skip", defaultSkip, "specs to leave out")
	flag.StringVar(&r.handler, "handler", "", "OCI runtime on PATH that makes the containers, as runc; none is the native engine")
	flag.StringVar(&r.programs, "programs", "", "folder of programs that -collect has made: nothing is downloaded")
	flag.BoolVar(&r.show, "show", false, "print the output of a run with a failure")
	into := flag.String("collect", "", "put the programs that images are made of into an empty folder, and end")
	nri := flag.Bool("nri", true, "run the specs of plugins too")
	webSocket := flag.Bool("websocket", false, "stream over WebSocket in every order")
	flag.Parse()
	r.nri = *nri
	if *webSocket {
		r.flags = webSocketFlags
	}
	if *into != "" {
		if err := collect(*into); err != nil {
			fmt.Fprintln(os.Stderr, "critest:", err)
			os.Exit(2)
		}
		return
	}
	failures, err := r.run(context.Background(), *seeds, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		os.Exit(2)
	}
	if failures > 0 {
		fmt.Printf("critest: %d of the orders failed\n", failures)
		os.Exit(1)
	}
}

func (r *runner) run(ctx context.Context, n int, named []string) (failures int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root")
	}
	if _, err := exec.LookPath("critest"); err != nil {
		return 0, err
	}
	var seeds []int64
	for _, s := range named {
		seed, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("seed %q: %w", s, err)
		}
		seeds = append(seeds, seed)
	}
	for len(named) == 0 && len(seeds) < n {
		seeds = append(seeds, 1+rand.Int64N(1<<31-2))
	}
	if r.dir, err = os.MkdirTemp("/var/tmp", "bc"); err != nil {
		return 0, err
	}
	defer func() {
		if failures == 0 {
			err = errors.Join(err, os.RemoveAll(r.dir))
		}
	}()
	if r.programs == "" {
		r.programs = filepath.Join(r.dir, "programs")
		if err := errors.Join(os.Mkdir(r.programs, 0o755), collect(r.programs)); err != nil {
			return 0, err
		}
	}
	registry, err := serve(r.programs)
	if err != nil {
		return 0, err
	}
	defer registry.Close()
	end, err := r.start(ctx, registry)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, end()) }()
	all := make([]round, len(seeds))
	for i, seed := range seeds {
		all[i] = round{name: fmt.Sprintf("order %d", i+1), seed: seed, focus: r.focus, flags: r.flags}
	}
	if r.focus == defaultFocus && len(seeds) > 0 {
		all = append(all, round{name: "WebSocket", seed: seeds[0], focus: webSocketFocus, flags: webSocketFlags})
	}
	for _, one := range all {
		ok, err := r.play(ctx, one)
		if err != nil {
			return failures, err
		}
		if !ok {
			failures++
		}
	}
	return failures, nil
}

// start starts a berthd that finds the public images at registry.
func (r *runner) start(ctx context.Context, registry *registrytest.Registry) (end func() error, err error) {
	bin, err := berthd.Build(filepath.Join(r.dir, "bin"))
	if err != nil {
		return nil, err
	}
	opts := berthd.Options{Bin: bin, Root: filepath.Join(r.dir, "r"), State: filepath.Join(r.dir, "s"), Config: filepath.Join(r.dir, "config.toml"),
		Bridge: fmt.Sprintf("crit%d", os.Getpid()%100000), Log: filepath.Join(r.dir, "berthd.log"), Verbosity: 4}
	config := fmt.Sprintf("[registry]\nconfig_path = %q\n\n[network]\nconf_dir = %q\nbridge = %q\nsubnets = [\"10.247.0.0/16\", \"fd00:be29::/64\"]\n",
		filepath.Join(r.dir, "certs.d"), filepath.Join(r.dir, "net.d"), opts.Bridge)
	if r.handler != "" {
		program, err := exec.LookPath(r.handler)
		if err != nil {
			return nil, err
		}
		config += fmt.Sprintf("\n[runtimes.%s]\ntype = \"oci\"\npath = %q\n", r.handler, program)
	}
	if err := os.WriteFile(opts.Config, []byte(berthd.Isolate(config, r.dir)), 0o600); err != nil {
		return nil, err
	}
	for _, host := range []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"} {
		dir := filepath.Join(r.dir, "certs.d", host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		text := fmt.Sprintf("server = \"https://%s\"\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", host, registry.URL)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if r.berthd, err = berthd.New(opts); err != nil {
		return nil, err
	}
	if err := r.berthd.Start(ctx); err != nil {
		return nil, err
	}
	if r.before, err = invariants.Steady(ctx, r.berthd.Daemon(), invariants.Take); err != nil {
		return nil, err
	}
	return func() error {
		d := r.berthd.Daemon()
		d.PID = 0
		return errors.Join(r.berthd.Stop(), r.berthd.Close(), berthd.Sweep(d), os.RemoveAll(opts.Root), os.RemoveAll(opts.State))
	}, nil
}

var ansi = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// round is one run of critest.
type round struct {
	name, focus string
	seed        int64
	flags       []string // more of critest's
}

// play runs critest once and tells whether every spec passed and nothing was left.
func (r *runner) play(ctx context.Context, one round) (bool, error) {
	crictl := filepath.Join(r.dir, "crictl.yaml")
	endpoint := "unix://" + r.berthd.Options().Socket
	if err := os.WriteFile(crictl, []byte("runtime-endpoint: "+endpoint+"\nimage-endpoint: "+endpoint+"\n"), 0o600); err != nil {
		return false, err
	}
	path := filepath.Join(r.dir, strings.ReplaceAll(one.name, " ", "-")+".log")
	out, err := os.Create(path)
	if err != nil {
		return false, err
	}
	defer out.Close()
	start := time.Now()
	cmd := exec.CommandContext(ctx, "critest", append([]string{"--config", crictl, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint}, r.arguments(one)...)...)
	cmd.Stdout, cmd.Stderr = out, out
	runErr := cmd.Run()
	res, err := read(path)
	if err != nil {
		return false, err
	}
	fmt.Printf("%s, seed %d: %s (%.0f s)\n", one.name, one.seed, res.summary, time.Since(start).Seconds())
	for _, line := range slices.Concat(res.skipped, res.failed) {
		fmt.Println("   ", line)
	}
	left, err := r.left(ctx)
	if err != nil {
		return false, err
	}
	for _, line := range left {
		fmt.Println("   ", line)
	}
	if runErr != nil {
		fmt.Printf("    output: %s, berthd's log: %s\n", path, r.berthd.Options().Log)
		if r.show {
			return false, show(path)
		}
	}
	return runErr == nil && len(left) == 0, nil
}

// show prints a file, but for what passed.
func show(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for spec := range strings.SplitSeq(string(text), "\n------------------------------\n") {
		if strings.Contains(spec, "[FAILED]") || strings.Contains(spec, "Summarizing") {
			fmt.Println(spec)
		}
	}
	return nil
}

// arguments are critest's that say what is run, and how.
func (r *runner) arguments(one round) []string {
	plugins := ""
	if r.nri {
		plugins = filepath.Join(r.berthd.Options().State, "nri.sock")
	}
	return append([]string{"--ginkgo.no-color", "--ginkgo.v", "--ginkgo.timeout", "20m", "--ginkgo.seed", strconv.FormatInt(one.seed, 10),
		"--ginkgo.focus", one.focus, "--ginkgo.skip", r.skip, "--runtime-handler", r.handler, "--nri-socket", plugins}, one.flags...)
}

// left removes what specs did not, and tells what stays all the same.
func (r *runner) left(ctx context.Context) ([]string, error) {
	if err := r.berthd.RemovePods(ctx); err != nil {
		return []string{err.Error()}, nil
	}
	return invariants.Settle(ctx, func(context.Context) ([]string, error) {
		after, err := invariants.Take(r.berthd.Daemon())
		return invariants.Diff(r.berthd.Daemon(), r.before, after), err
	})
}

// result is what an output says: ginkgo's summary, the failures, and why specs of the focus skipped themselves.
type result struct {
	summary         string
	failed, skipped []string
}

// tellsReason says that a line is how ginkgo tells why a spec skipped itself. Other lines with that word tell how long that took, and where.
func tellsReason(line string) bool {
	rest, found := strings.CutPrefix(line, "[SKIPPED] ")
	return found && !strings.HasPrefix(rest, "[") && !strings.HasPrefix(rest, "in [")
}

func read(path string) (res result, err error) {
	f, err := os.Open(path)
	if err != nil {
		return res, err
	}
	defer f.Close()
	res.summary = "no summary: critest did not end by itself"
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	inSummary := false
	for lines.Scan() {
		line := strings.TrimSpace(ansi.ReplaceAllString(lines.Text(), ""))
		switch {
		case strings.HasPrefix(line, "Summarizing"):
			inSummary = true
		case inSummary && strings.HasPrefix(line, "[FAIL]"), strings.HasPrefix(line, "[PANICKED"), strings.HasPrefix(line, "[TIMEDOUT"):
			res.failed = append(res.failed, line)
		case tellsReason(line):
			if !slices.Contains(res.skipped, line) {
				res.skipped = append(res.skipped, line)
			}
		case strings.HasPrefix(line, "SUCCESS!") || strings.HasPrefix(line, "FAIL!"):
			res.summary = line
		}
	}
	return res, lines.Err()
}
