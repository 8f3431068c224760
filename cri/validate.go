package cri

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
)

// Limits of a request's parts. What the kubelet sends comes from an object of at most 1.5 MiB, and from the secrets that its
// environment names.
const (
	// maxConfigBytes bounds a sandbox's and a container's configuration, which stays in memory and on disk.
	maxConfigBytes = 8 << 20
	// maxMapKeys bounds labels, and annotations.
	maxMapKeys = 1 << 16
	// maxIDBytes bounds what is looked up as an ID. IDs have 64.
	maxIDBytes = 256
)

// invalid makes the error for a value that breaks a rule.
func invalid(field, value, rule string) error {
	return &spec.InvalidError{Field: field, Value: bounded(value), Rule: rule}
}

// notBuilt makes the error for a field that asks for what is not built.
func notBuilt(field, sentence string) error {
	return fmt.Errorf("%s: %s: %w", field, sentence, errNotBuilt)
}

// checkID refuses what cannot be an ID or the start of one.
func checkID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, id, "must not be empty")
	case len(id) > maxIDBytes:
		return invalid(field, id, "must have at most "+strconv.Itoa(maxIDBytes)+" bytes")
	}
	return nil
}

// checkReference refuses what cannot name an image.
func checkReference(image *runtimeapi.ImageSpec) error {
	if image.GetImage() == "" {
		return invalid("image.image", "", "must not be empty")
	}
	return nil
}

// handlers are those that a request may name.
type handlers struct{ now atomic.Pointer[[]Handler] }

func (h *handlers) set(all []Handler) { h.now.Store(&all) }

func (h *handlers) all() []Handler { return *h.now.Load() }

// check refuses a handler that is not configured. It is InvalidArgument: the request can succeed only when it, or the
// configuration, changes.
func (h *handlers) check(handler string) error {
	var names []string
	for _, known := range h.all() {
		if known.Name == handler {
			return nil
		}
		names = append(names, strconv.Quote(known.Name))
	}
	slices.Sort(names)
	return invalid("runtime_handler", handler, "must be one of "+strings.Join(names, ", "))
}

// checkSandboxConfig looks at what every package below relies on. The rules of each field are package spec's.
func checkSandboxConfig(c *runtimeapi.PodSandboxConfig) error {
	if c == nil {
		return invalid("config", "", "must be set")
	}
	meta := c.GetMetadata()
	for _, f := range []struct{ field, value string }{
		{"config.metadata.name", meta.GetName()},
		{"config.metadata.namespace", meta.GetNamespace()},
		{"config.metadata.uid", meta.GetUid()},
	} {
		if f.value == "" {
			return invalid(f.field, "", "must not be empty")
		}
	}
	if err := checkSize(c, c.GetLabels(), c.GetAnnotations()); err != nil {
		return err
	}
	return checkSandboxBuilt(c)
}

// checkContainerConfig looks at what every package below relies on. The rules of each field are package spec's.
func checkContainerConfig(c *runtimeapi.ContainerConfig) error {
	if c == nil {
		return invalid("config", "", "must be set")
	}
	if c.GetMetadata().GetName() == "" {
		return invalid("config.metadata.name", "", "must not be empty")
	}
	if c.GetImage().GetImage() == "" {
		return invalid("config.image.image", "", "must not be empty")
	}
	if err := checkSize(c, c.GetLabels(), c.GetAnnotations()); err != nil {
		return err
	}
	return checkContainerBuilt(c)
}

// checkSize bounds a configuration.
func checkSize(c proto.Message, labels, annotations map[string]string) error {
	if n := proto.Size(c); n > maxConfigBytes {
		return invalid("config", strconv.Itoa(n)+" bytes", "must have at most "+strconv.Itoa(maxConfigBytes)+" bytes")
	}
	for _, m := range []struct {
		field string
		keys  int
	}{{"config.labels", len(labels)}, {"config.annotations", len(annotations)}} {
		if m.keys > maxMapKeys {
			return invalid(m.field, strconv.Itoa(m.keys)+" keys", "must have at most "+strconv.Itoa(maxMapKeys)+" keys")
		}
	}
	return nil
}

// checkSandboxBuilt refuses what is not built, so that no pod runs without something that it asked for.
func checkSandboxBuilt(c *runtimeapi.PodSandboxConfig) error {
	if c.GetWindows() != nil {
		return notBuilt("config.windows", "berth runs on Linux")
	}
	return nil
}

// checkContainerBuilt refuses what is not built, so that no container runs without something that it asked for.
func checkContainerBuilt(c *runtimeapi.ContainerConfig) error {
	if c.GetWindows() != nil {
		return notBuilt("config.windows", "berth runs on Linux")
	}
	return nil
}

// maxTimeout is the longest time that a duration can hold, in whole seconds.
const maxTimeout = math.MaxInt64 / int64(time.Second)

// seconds turns a request's timeout into a duration. What is longer than a duration can be is the longest one.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid(field, strconv.FormatInt(n, 10), "must not be negative")
	}
	return time.Duration(min(n, maxTimeout)) * time.Second, nil
}
