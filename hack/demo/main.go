package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/hack/turns"
	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

const socket = "/run/berth/berth.sock"

// demo is what the steps hand on to each other.
type demo struct {
	dir, bin string
	berthd   *berthd.Process
	registry *registrytest.Registry
	image    registrytest.Pushed

	before        invariants.Items
	pod           string
	page, sidecar string // containers
	address       string // of the pod
	port          int    // of the host
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{}
	err := d.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func (d *demo) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts, cgroups, links (try: sudo make demo)")
	}
	if conn, err := net.Dial("unix", socket); err == nil {
		conn.Close()
		return fmt.Errorf("a berthd serves %s already: the demonstration starts one on its defaults, so end that one first", socket)
	}
	if d.dir, err = os.MkdirTemp("/var/tmp", "berth-demo"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.clear()) }()
	if d.bin, err = berthd.Build(d.dir, "./hack/demo/web"); err != nil {
		return err
	}
	for _, s := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"start berthd on its defaults", d.start},
		{"make an image of two layers, serve it on loopback", d.serve},
		{"berth pull", d.pull},
		{"run a pod of two containers, with a host port", d.runPod},
		{"fetch the page by the pod's address", d.byAddress},
		{"fetch the page by the host's port", d.byPort},
		{"run a command in the pod", d.exec},
		{"berth logs", d.logs},
		{"berth pods, berth ps", d.lists},
		{"kill -9 berthd; the page is still served", d.kill},
		{"start berthd again; same pod, same address", d.again},
		{"stop and remove everything", d.remove},
		{"nothing is left", d.nothing},
	} {
		start := time.Now()
		text, err := s.do(ctx)
		took := time.Since(start)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", s.what, err, d.logTail())
		}
		fmt.Printf("%9.2f ms  %s\n", float64(took.Microseconds())/1000, s.what)
		for line := range strings.Lines(text) {
			fmt.Printf("              %s\n", strings.TrimRight(line, "\n"))
		}
	}
	return d.measure(ctx)
}

// measure quotes berth's times beside the floor's.
func (d *demo) measure(ctx context.Context) error {
	if _, err := exec.LookPath("gcc"); err != nil {
		fmt.Println("\nThe kernel's floor is not measured: it needs gcc, which is not there.")
		return nil
	}
	t, err := turns.Open(d.dir)
	if err != nil {
		return err
	}
	berth := &turns.Peer{Client: d.berthd.Client}
	err = t.Serve(d.registry)
	if err == nil {
		err = t.Add(ctx, berth)
	}
	if err == nil {
		err = t.Run(ctx, 3, 3) // everything is touched once before it is timed
	}
	t.Floor, berth.Side = turns.Side{}, turns.Side{}
	if err == nil {
		err = t.Run(ctx, 15, 3)
	}
	if err := errors.Join(err, d.berthd.RemovePods(ctx), t.Close(ctx)); err != nil {
		return err
	}
	fmt.Printf("\n%-12s %12s %12s\n", "median, ms", "berth", "the kernel")
	for _, row := range []struct {
		what   string
		ours   []time.Duration
		floors []time.Duration
	}{
		{"pod ready", berth.Ready, t.Floor.Ready}, {"exec", berth.Exec, t.Floor.Exec}, {"pod gone", berth.Gone, t.Floor.Gone},
	} {
		fmt.Printf("%-12s %12.2f %12.2f   %.1f times the floor\n", row.what, turns.At(row.ours, .5), turns.At(row.floors, .5), turns.Multiple(row.ours, row.floors))
	}
	return nil
}

// clear ends what runs, also after a failure, and takes away what was made and was not there before.
func (d *demo) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if d.berthd != nil {
		if d.berthd.PID() == 0 && d.pod != "" {
			errs = append(errs, d.berthd.Start(ctx))
		}
		errs = append(errs, d.removePod(ctx), d.berthd.Stop(), d.berthd.Close())
		after := d.berthd.Daemon()
		if items, err := invariants.Take(after); err == nil && d.before != nil && d.before[invariants.Item{Kind: invariants.Link, Name: after.Bridge}] == 0 &&
			len(items.Names(invariants.Record)) == 0 {
			errs = append(errs, berthd.Sweep(after)) // bridge, firewall table and cgroup root were made for the demonstration
		}
	}
	if d.registry != nil {
		d.registry.Close()
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// logTail is the end of berthd's log, for a step that failed.
func (d *demo) logTail() string {
	text, err := os.ReadFile(filepath.Join(d.dir, "berthd.log"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
