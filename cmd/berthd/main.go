package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/hangup"
	"github.com/berthd/berth/cri"
)

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

// How long what is under way may take once the daemon is told to end.
const (
	shutdownCalls   = 3 * time.Second
	shutdownManager = 5 * time.Second
)

const (
	maxVerbosity  = 10  // the highest level of the log
	maxSocketPath = 107 // what the address of a socket can hold (unix(7))
)

// flags are the command line.
type flags struct {
	root, state, socket, config string
	// mustConfig says that --config was given, so that the file must be there.
	mustConfig  bool
	verbosity   int
	showVersion bool
}

// init keeps the process's first thread for main: it never ends, so what leaves a thread changed (monitor.Spawner joins
// cgroups with one) must run on another.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) > 1 && os.Args[1] == "config" {
		os.Exit(configCommand(os.Args[2:], os.Stdout, os.Stderr))
	}
	f, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(exitUsage) // the flag package has said why
	case f.showVersion:
		fmt.Println(describeVersion())
		return
	}
	err = letGo()
	if err == nil {
		err = run(context.Background(), f)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "berthd: %v\n", err)
		os.Exit(exitFailed)
	}
}

// parseFlags reads the command line. What is wrong with it goes to stderr.
func parseFlags(args []string, stderr io.Writer) (flags, error) {
	f := flags{}
	set := flag.NewFlagSet("berthd", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() { usage(set) }
	set.StringVar(&f.root, "root", defaultRoot, "`folder` for what survives a reboot: images, records, writable layers")
	set.StringVar(&f.state, "state", defaultState, "`folder` for what does not: sockets and pins")
	set.StringVar(&f.socket, "socket", "", "`path` of the CRI's socket (default STATE/"+socketName+")")
	set.StringVar(&f.config, "config", defaultConfig, "configuration `file`; drop-ins are FILE.d/*.toml")
	set.IntVar(&f.verbosity, "v", -1, "log `level`: 0 what an operator must see, 2 changes, 4 debug, 5 trace (default from the configuration, else 2)")
	set.BoolVar(&f.showVersion, "version", false, "print the version and exit")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	set.Visit(func(g *flag.Flag) { f.mustConfig = f.mustConfig || g.Name == "config" })
	err := f.check(set.Args())
	if err != nil {
		fmt.Fprintf(stderr, "berthd: %v\nhint: berthd --help\n", err)
	}
	return f, err
}

// usage prints the flags with two dashes, as other programs' are.
func usage(set *flag.FlagSet) {
	w := set.Output()
	fmt.Fprint(w, "berthd serves the Kubernetes CRI: it runs pods and pulls images.\n\nUsage:\n  berthd [flags]\n  berthd config default|check|manual\n\nFlags:\n")
	set.VisitAll(func(g *flag.Flag) {
		kind, text := flag.UnquoteUsage(g)
		if g.DefValue != "" && g.DefValue != "false" && g.DefValue != "-1" {
			text += " (default " + g.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-18s %s\n", strings.TrimSpace("--"+g.Name+" "+kind), text)
	})
}

// check makes paths absolute and clean, and refuses what cannot be meant.
func (f *flags) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unknown argument %q", rest[0])
	}
	if f.socket == "" {
		f.socket = filepath.Join(f.state, socketName)
	}
	for _, p := range []*string{&f.root, &f.state, &f.socket, &f.config} {
		if *p == "" {
			return errors.New("a path is empty")
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("find the working directory: %w", err)
		}
		*p = abs
	}
	if f.root == "/" || f.state == "/" {
		return errors.New("--root and --state must be folders of berthd's own")
	}
	if f.root == f.state {
		return fmt.Errorf("--root and --state are both %s: they must be two folders", f.root)
	}
	if len(f.socket) > maxSocketPath {
		return fmt.Errorf("the socket %s has %d bytes, and may have %d: choose a shorter --state or --socket", f.socket, len(f.socket), maxSocketPath)
	}
	if f.verbosity < -1 || f.verbosity > maxVerbosity {
		return fmt.Errorf("--v %d is not 0 to %d", f.verbosity, maxVerbosity)
	}
	return nil
}

// run is the daemon's life, until a signal.
func run(ctx context.Context, f flags) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	// Nobody may read the log any more. Caught and not ignored: what is ignored stays ignored in other programs.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	c, err := f.readConfig()
	if err != nil {
		return err
	}
	if err := setUpLog(c.verbosity); err != nil {
		return err
	}
	if err := setUpProcess(); err != nil {
		return err
	}
	for _, dir := range []string{f.root, f.state} {
		if err := makeFolder(dir); err != nil {
			return err
		}
		lock, err := lockFolder(ctx, dir)
		if err != nil {
			return unlessEnded(ctx, err)
		}
		defer lock.Close()
	}
	logger := klog.Background()
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logger))
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { trimMemory(ctx) })
	// Clients that come while the parts are opened wait in the socket's queue.
	listener, err := cri.Listen(ctx, f.socket)
	if err != nil {
		return unlessEnded(ctx, err)
	}
	defer listener.Close()
	parts, err := openParts(ctx, f, c, instanceOf(f.root))
	if err != nil {
		return unlessEnded(ctx, err)
	}
	streaming := make(chan error, 1)
	go func() { streaming <- parts.streams.Serve() }()
	reloader := &reloader{flags: f, parts: parts, started: c, now: c}
	reloader.server = parts.server(ctx, c, reloader.facts)
	err = serve(ctx, reloader, listener, streaming)
	closing, stopClosing := context.WithTimeout(context.WithoutCancel(ctx), shutdownManager)
	defer stopClosing()
	return errors.Join(err, parts.close(closing))
}

// unlessEnded is the error of a start that failed; nil when it did because a signal has ended ctx.
func unlessEnded(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		klog.FromContext(ctx).Info("Took a signal to end while it started", "err", err)
		return nil
	}
	return err
}

// setUpLog makes klog write to stderr at a level.
func setUpLog(verbosity int) error {
	var set flag.FlagSet
	klog.InitFlags(&set)
	if err := set.Set("v", strconv.Itoa(verbosity)); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	return nil
}

// setUpProcess sets what the whole process has.
func setUpProcess() error {
	unix.Umask(0o022)
	// A core file of this process could hold registry credentials. A limit on core files would be the containers' too.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}

// serve answers calls, and takes changed configuration over, until ctx ends, or streaming clients are not served any more.
func serve(ctx context.Context, r *reloader, l net.Listener, streaming <-chan error) error {
	logger, server := klog.FromContext(ctx), r.server
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if err := notify("READY=1"); err != nil {
		logger.Info("Left the service manager waiting", "err", err)
	}
	logger.Info("Served the CRI", "version", version, "path", l.Addr().String())
	reloading, stopReloading := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { r.run(reloading, hangup.C) }) // what came during the start is done now
	defer background.Wait()
	defer stopReloading()
	var failed error
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case failed = <-streaming:
	case <-ctx.Done():
		logger.Info("Took a signal to end; pods run on")
	}
	if err := notify("STOPPING=1"); err != nil {
		logger.Info("Left the service manager waiting", "err", err)
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownCalls)
	defer cancel()
	server.Shutdown(deadline)
	return errors.Join(failed, <-served)
}
