package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/keyfile"
	"github.com/berthd/berth/cri"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/external"
)

// handlerNative is the built-in engine's own name among the handlers; "" is that of the default one.
const handlerNative = "berth"

// Types of a runtime.
const (
	typeNative = "native"
	typeOCI    = "oci"
)

// ownOptions of a program are given by berthd, or contradict how it uses cgroups.
var ownOptions = []string{"root", "log", "log-format", "systemd-cgroup"}

// handlerRule is Kubernetes' for the handler of a RuntimeClass: a label of DNS (RFC 1123).
var handlerRule = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// runtimeFile is one table of runtimes.
type runtimeFile struct {
	Type, Path string
	Options    []string
}

// runtimeKey makes the setter of a key of a runtime, whose values keep a rule. Whether there must be a value is program's to say.
func runtimeKey[T any](rule func(T) error, put func(*runtimeFile, T)) setter {
	return func(c *config, name string, value any) error {
		if c.runtimeFiles == nil {
			c.runtimeFiles = map[string]runtimeFile{}
		}
		f := c.runtimeFiles[name]
		put(&f, value.(T))
		c.runtimeFiles[name] = f
		return rule(value.(T))
	}
}

func runtimeType(name string) error {
	switch name {
	case "", typeNative, typeOCI:
		return nil
	}
	return fmt.Errorf("%q is neither %q nor %q", name, typeNative, typeOCI)
}

func runtimePath(path string) error {
	if path == "" {
		return nil
	}
	return absolute(path)
}

func runtimeOptions(options []string) error {
	for _, o := range options {
		option, _, _ := strings.Cut(o, "=")
		switch {
		case !strings.HasPrefix(o, "-") || strings.ContainsRune(o, 0):
			return fmt.Errorf("%q: each must begin with - and hold its value after =", o)
		case slices.Contains(ownOptions, strings.TrimLeft(option, "-")):
			return fmt.Errorf("%q is berthd's to say", option)
		}
	}
	return nil
}

// makeRuntimes makes the handlers of a configuration; nil is the native engine. The programs' roots are left for the caller, who knows the
// state folder.
func makeRuntimes(c *config) error {
	handlers := map[string]*external.Program{handlerNative: nil}
	for _, name := range slices.Sorted(maps.Keys(c.runtimeFiles)) {
		program, err := c.runtimeFiles[name].program(name)
		if err != nil {
			return err
		}
		handlers[name] = program
	}
	program, known := handlers[c.defaultRuntime]
	if !known {
		return keyfile.At("runtime.default", "%q is not one of the handlers %q", c.defaultRuntime, slices.Sorted(maps.Keys(handlers)))
	}
	handlers[""], c.runtimes = program, handlers
	return nil
}

// program checks a runtime's table; nil is the native engine.
func (f runtimeFile) program(name string) (*external.Program, error) {
	bad := func(key, format string, args ...any) error { return keyfile.At("runtimes."+name+key, format, args...) }
	switch {
	case !handlerRule.MatchString(name):
		return nil, bad("", "not a handler's name (1 to 63 of a-z 0-9 -)")
	case name == handlerNative:
		return nil, bad("", "is the built-in handler's name")
	case f.Type == typeNative && (f.Path != "" || len(f.Options) > 0):
		return nil, bad("", "a runtime of type %q has no path and no options", typeNative)
	case f.Type == typeNative:
		return nil, nil
	case f.Type == "":
		return nil, bad(".type", "must be %q or %q", typeNative, typeOCI)
	case f.Path == "":
		return nil, bad(".path", "must be set for a runtime of type %q", typeOCI)
	}
	return &external.Program{Path: filepath.Clean(f.Path), Options: f.Options}, nil
}

// placeRuntimes gives each program a folder for its state: two handlers with one program share nothing.
func placeRuntimes(handlers map[string]*external.Program, state string) {
	for name, program := range handlers {
		if program != nil && name != "" { // "" is the same program as another one
			program.Root = filepath.Join(state, "runtimes", name)
		}
	}
}

// lookTimeout bounds how long programs that hang hold up the start.
const lookTimeout = 2 * time.Second

// logMissing says of each program that cannot be used now, and why. Pods of other handlers run without it, and nothing needs a restart when it comes.
func (c config) logMissing(ctx context.Context) {
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(c.runtimes)) {
		program := c.runtimes[name]
		if program == nil || name == "" { // "" is the same program as another one
			continue
		}
		all.Go(func() {
			if err := c.prober.Usable(looking, program); err != nil {
				klog.FromContext(ctx).Info("Runtime of a handler cannot be used", "handler", name, "path", program.Path, "default", program == c.runtimes[""], "err", err)
			}
		})
	}
	all.Wait()
}

// handlers are what Status tells of the handlers, the default one first; native are the engine's features.
func (c config) handlers(ctx context.Context, native runtime.Features) []cri.Handler {
	logger := klog.FromContext(ctx)
	var all []cri.Handler
	for _, name := range slices.Sorted(maps.Keys(c.runtimes)) {
		program := c.runtimes[name]
		if program == nil {
			all = append(all, cri.Handler{Name: name, Features: func(context.Context) *runtimeapi.RuntimeHandlerFeatures { return features(native) }})
			continue
		}
		problem := func(ctx context.Context) error { return c.prober.Usable(ctx, program) }
		all = append(all, cri.Handler{Name: name, Problem: problem, Features: func(ctx context.Context) *runtimeapi.RuntimeHandlerFeatures {
			f, err := c.prober.Features(ctx, program)
			if err != nil {
				logger.V(4).Info("Could not learn a runtime's features", "handler", name, "err", err)
			}
			return features(f)
		}})
	}
	return all
}

func features(f runtime.Features) *runtimeapi.RuntimeHandlerFeatures {
	return &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: f.RecursiveReadOnlyMounts, UserNamespaces: f.UserNamespaces}
}
