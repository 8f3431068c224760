package cdi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
)

// Devices applies the CDI specifications of some folders.
type Devices struct {
	// Folders are the specifications'. With the same device in several, the last one counts.
	Folders []string
}

// field is where a request names devices; annotations are the older way.
const field = "config.CDI_devices"

// Adjust gives c the devices that it names.
func (d *Devices) Adjust(_ context.Context, c *adjust.Container) error {
	names, err := requested(c)
	if err != nil || len(names) == 0 {
		return err
	}
	if len(d.Folders) == 0 {
		return &spec.InvalidError{Field: field, Value: names[0], Rule: "is not supported: the configuration has no folders for CDI specifications"}
	}
	// A cache that lives for one container: applying a device's edits completes them in place by what is on the host now.
	cache, err := cdi.NewCache(cdi.WithSpecDirs(d.Folders...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specifications: %w", err)
	}
	unresolved, err := inject(cache, c.Spec, names)
	if len(unresolved) > 0 {
		rule := "is not a device that the CDI specifications in " + strings.Join(d.Folders, ", ") + " have"
		return &spec.InvalidError{Field: field, Value: strings.Join(unresolved, ", "), Rule: rule + broken(cache)}
	}
	if err != nil {
		return fmt.Errorf("apply CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// requested are the devices that the request names, each once: those of its field, then those of annotations.
func requested(c *adjust.Container) ([]string, error) {
	var names []string
	add := func(where, name string) error {
		if !parser.IsQualifiedName(name) {
			return &spec.InvalidError{Field: where, Value: name, Rule: "must be a CDI device's name, such as vendor.com/class=name"}
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	}
	for _, device := range c.Config.GetCDIDevices() {
		if err := add(field, device.GetName()); err != nil {
			return nil, err
		}
	}
	annotations := c.Config.GetAnnotations()
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if err := add("config.annotations["+key+"]", name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// broken names the specifications that could not be used.
func broken(cache *cdi.Cache) string {
	files := cache.GetErrors()
	text := ""
	for _, path := range slices.Sorted(maps.Keys(files)) {
		text += fmt.Sprintf("; %s: %v", path, errors.Join(files[path]...))
	}
	return strings.ReplaceAll(text, "\n", " ")
}

// inject applies the devices' edits, and keeps the library from what it does not know to leave alone: it would add cgroup rules where the host has
// none to add to, and give device nodes to the container's user by IDs that mean another one in a user namespace.
func inject(cache *cdi.Cache, s *specs.Spec, names []string) (unresolved []string, err error) {
	noRules := len(s.Linux.Resources.Devices) == 0
	user := &s.Process.User
	uid, gid := user.UID, user.GID
	if len(s.Linux.UIDMappings) > 0 {
		user.UID, user.GID = 0, 0
	}
	unresolved, err = cache.InjectDevices(s, names...)
	user.UID, user.GID = uid, gid
	if noRules {
		s.Linux.Resources.Devices = nil
	}
	return unresolved, err
}
