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

// parseRuntimes makes the handlers of a configuration; nil is the native engine. The programs' roots are left for the caller, who knows the
// state folder.
func parseRuntimes(files map[string]runtimeFile, byDefault string) (map[string]*external.Program, error) {
	handlers := map[string]*external.Program{handlerNative: nil}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		bad := func(key, format string, args ...any) error {
			return fmt.Errorf("key runtimes.%s%s: %s", name, key, fmt.Sprintf(format, args...))
		}
		switch {
		case !handlerRule.MatchString(name):
			return nil, bad("", "not a handler's name (1 to 63 of a-z 0-9 -)")
		case name == handlerNative:
			return nil, bad("", "is the built-in handler's name")
		case f.Type == typeNative && (f.Path != "" || len(f.Options) > 0):
			return nil, bad("", "a runtime of type %q has no path and no options", typeNative)
		case f.Type == typeNative:
			handlers[name] = nil
			continue
		case f.Type != typeOCI:
			return nil, bad(".type", "%q is neither %q nor %q", f.Type, typeNative, typeOCI)
		case !filepath.IsAbs(f.Path):
			return nil, bad(".path", "%q is not an absolute path", f.Path)
		}
		for _, o := range f.Options {
			option, _, _ := strings.Cut(o, "=")
			switch {
			case !strings.HasPrefix(o, "-") || strings.ContainsRune(o, 0):
				return nil, bad(".options", "%q: each must begin with - and hold its value after =", o)
			case slices.Contains(ownOptions, strings.TrimLeft(option, "-")):
				return nil, bad(".options", "%q is berthd's to say", option)
			}
		}
		handlers[name] = &external.Program{Path: filepath.Clean(f.Path), Options: f.Options}
	}
	if byDefault == "" {
		byDefault = handlerNative
	}
	program, known := handlers[byDefault]
	if !known {
		return nil, fmt.Errorf("key runtime.default: %q is not one of the handlers %q", byDefault, slices.Sorted(maps.Keys(handlers)))
	}
	handlers[""] = program
	return handlers, nil
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
