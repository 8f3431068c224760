package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// manifestKeys are the members of manifests and indexes that mean something.
var manifestKeys = keySet("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "fsLayers", "digest", "size",
	"urls", "platform", "architecture", "os", "os.version", "os.features", "variant", "annotations", "subject")

// freeObjects have members that anybody may name.
var freeObjects = keySet("annotations", "labels", "volumes", "exposedports")

type keys map[string]string // folded -> as it must be written

func keySet(names ...string) keys {
	set := keys{}
	for _, name := range names {
		set[fold(name)] = name
	}
	return set
}

// fold writes a key as encoding/json compares it: two keys that it takes for one have one spelling. To it ſ (U+017F) is an s.
func fold(key string) string {
	return strings.Map(func(r rune) rune {
		for next := unicode.SimpleFold(r); ; next = unicode.SimpleFold(r) {
			if next <= r {
				return next // the smallest
			}
			r = next
		}
	}, key)
}

// CheckConfigJSON refuses a config that two readers may read in two ways; see checkJSON.
func CheckConfigJSON(raw []byte) error { return checkJSON(raw, keys{}) }

// checkJSON refuses what two readers may read in two ways: a key that stands twice in one object, or a known key in
// another case (encoding/json ignores case and takes the last, others do not). It refuses deep nesting, too.
func checkJSON(raw []byte, known keys) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	c := checker{dec: dec, known: known}
	if err := c.value(0, fixed); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("there is something after the JSON value")
	}
	return nil
}

// naming says who names the members of an object.
type naming int

const (
	fixed naming = iota // the specification
	free                // anybody
)

type checker struct {
	dec   *json.Decoder
	known keys
}

func (c *checker) value(depth int, names naming) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	token, err := c.dec.Token()
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	switch token {
	case json.Delim('{'):
		return c.object(depth, names)
	case json.Delim('['):
		for c.dec.More() {
			if err := c.value(depth+1, fixed); err != nil {
				return err
			}
		}
		_, err = c.dec.Token()
		return err
	}
	return nil
}

func (c *checker) object(depth int, names naming) error {
	seen := map[string]bool{}
	for c.dec.More() {
		token, err := c.dec.Token()
		if err != nil {
			return fmt.Errorf("not JSON: %w", err)
		}
		key, _ := token.(string)
		folded := key
		if names == fixed {
			folded = fold(key)
			if want, ok := c.known[folded]; ok && want != key {
				return fmt.Errorf("key %q must be written %q", printable(key), want)
			}
		}
		if seen[folded] {
			return fmt.Errorf("key %q stands twice", printable(key))
		}
		seen[folded] = true
		inner := fixed
		if _, ok := freeObjects[fold(key)]; ok {
			inner = free
		}
		if err := c.value(depth+1, inner); err != nil {
			return err
		}
	}
	_, err := c.dec.Token()
	return err
}
