package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/adjust"
)

// maxBytes bounds a file.
const maxBytes = 1 << 20

// Folders are those that hooks are configured in.
type Folders []string

// Adjust gives c the hooks that are meant for it.
func (f Folders) Adjust(_ context.Context, c *adjust.Container) error {
	files, err := f.files()
	if err != nil {
		return fmt.Errorf("read hooks: %w", err)
	}
	for _, path := range files {
		h, err := read(path)
		if err != nil {
			return fmt.Errorf("hook %s: %w", path, err)
		}
		if h.fits(c) {
			h.add(c.Spec)
		}
	}
	return nil
}

// files lists the files that count.
func (f Folders) files() ([]string, error) {
	byName := map[string]string{}
	for _, folder := range f {
		entries, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") && !e.IsDir() {
				byName[e.Name()] = filepath.Join(folder, e.Name())
			}
		}
	}
	var paths []string
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		paths = append(paths, byName[name])
	}
	return paths, nil
}

// file is a hook as it is written.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    when       `json:"when"`
	Stages  []string   `json:"stages"`
}

// when says which containers a hook is for: those that meet all of the conditions that there are.
type when struct {
	Always        *bool             `json:"always"`
	Annotations   map[string]string `json:"annotations"`
	Commands      []string          `json:"commands"`
	HasBindMounts *bool             `json:"hasBindMounts"`
}

// hook is a file that has been checked.
type hook struct {
	file
	annotations []pair
	commands    []*regexp.Regexp
}

// pair matches an annotation.
type pair struct{ key, value *regexp.Regexp }

func read(path string) (*hook, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxBytes {
		return nil, fmt.Errorf("it must be a regular file of at most %d bytes", maxBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	return parse(text)
}

func parse(text []byte) (*hook, error) {
	h := &hook{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&h.file); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("something follows the hook's object")
	}
	switch {
	case h.Version != "1.0.0":
		return nil, fmt.Errorf("version %q is not 1.0.0", h.Version)
	case !filepath.IsAbs(h.Hook.Path):
		return nil, fmt.Errorf("hook.path %q is not an absolute path", h.Hook.Path)
	case h.Hook.Timeout != nil && *h.Hook.Timeout <= 0:
		return nil, fmt.Errorf("hook.timeout %d is not above 0", *h.Hook.Timeout)
	case len(h.Stages) == 0:
		return nil, errors.New("stages is empty")
	}
	for _, stage := range h.Stages {
		if stageOf(&specs.Hooks{}, stage) == nil {
			return nil, fmt.Errorf("stages: %q is not a stage", stage)
		}
		if st, err := os.Stat(h.Hook.Path); stage != "startContainer" && (err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0) {
			return nil, fmt.Errorf("hook.path %s is not a program on this node", h.Hook.Path) // of startContainer it is the container's
		}
	}
	for _, e := range h.Hook.Env {
		if strings.Index(e, "=") <= 0 {
			return nil, errors.New("hook.env: an entry has no name") // its value may be a secret
		}
	}
	return h, h.compile()
}

func (h *hook) compile() error {
	for _, key := range slices.Sorted(maps.Keys(h.When.Annotations)) {
		k, err := regexp.Compile(key)
		if err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
		v, err := regexp.Compile(h.When.Annotations[key])
		if err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
		h.annotations = append(h.annotations, pair{k, v})
	}
	for _, command := range h.When.Commands {
		c, err := regexp.Compile(command)
		if err != nil {
			return fmt.Errorf("when.commands: %w", err)
		}
		h.commands = append(h.commands, c)
	}
	return nil
}

// fits tells whether the hook is for c. One without conditions is for none.
func (h *hook) fits(c *adjust.Container) bool {
	conditions := 0
	if a := h.When.Always; a != nil {
		if !*a {
			return false
		}
		conditions++
	}
	if b := h.When.HasBindMounts; b != nil {
		if !*b || len(c.Config.GetMounts()) == 0 {
			return false
		}
		conditions++
	}
	for _, p := range h.annotations {
		if !p.matches(c.Pod.GetAnnotations()) && !p.matches(c.Config.GetAnnotations()) {
			return false
		}
		conditions++
	}
	if len(h.commands) > 0 {
		args := c.Spec.Process.Args
		if len(args) == 0 || !slices.ContainsFunc(h.commands, func(r *regexp.Regexp) bool { return r.MatchString(args[0]) }) {
			return false
		}
		conditions++
	}
	return conditions > 0
}

func (p pair) matches(annotations map[string]string) bool {
	for key, value := range annotations {
		if p.key.MatchString(key) && p.value.MatchString(value) {
			return true
		}
	}
	return false
}

// add puts the hook into a specification, once for each of its stages.
func (h *hook) add(s *specs.Spec) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	stages := slices.Clone(h.Stages)
	slices.Sort(stages)
	for _, stage := range slices.Compact(stages) {
		list := stageOf(s.Hooks, stage)
		*list = append(*list, h.Hook)
	}
}

// stageOf is the list of a stage's hooks, or nil.
func stageOf(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated, and in use
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}
