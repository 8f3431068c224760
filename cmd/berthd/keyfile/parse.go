package keyfile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxBytes bounds a file.
const maxBytes = 1 << 20

// parse reads one file, in the order of its lines. The error has everything that no value's setter could say.
func (t Table[C]) parse(path string) ([]entry, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		return nil, syntaxError(path, err)
	}
	w := walker[C]{table: t, file: path, lines: linesOf(text)}
	w.walk(tree, nil)
	slices.SortStableFunc(w.found, func(a, b entry) int { return cmp.Compare(a.line, b.line) })
	slices.SortStableFunc(w.wrong, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	var all []error
	for _, e := range w.wrong {
		all = append(all, e)
	}
	return w.found, errors.Join(all...)
}

// read reads a regular file of at most maxBytes.
func read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxBytes {
		return nil, fmt.Errorf("%s: want a regular file of at most %d bytes", path, maxBytes)
	}
	return os.ReadFile(path)
}

// syntaxError tells where a file is no TOML.
func syntaxError(path string, err error) error {
	e := &Error{File: path, Err: err}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		e.Line, e.Column = wrong.Position()
		e.Key = strings.Join(wrong.Key(), ".")
	}
	return e
}

// linesOf tells on which line each key and each table stands first.
func linesOf(text []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	var table []string
	note := func(key []string, n *unstable.Node) {
		for i := range key { // the tables that the key implies too
			if at := strings.Join(key[:i+1], "\x00"); lines[at] == 0 {
				lines[at] = p.Shape(n.Raw).Start.Line
			}
		}
	}
	for p.NextExpression() {
		n := p.Expression()
		key, first := keyOf(n)
		if n.Kind == unstable.KeyValue {
			noteValues(slices.Concat(table, key), n, note)
			continue
		}
		table = key
		note(table, first)
	}
	return lines
}

// noteValues notes a key and, when its value is an inline table, the keys in that.
func noteValues(key []string, n *unstable.Node, note func([]string, *unstable.Node)) {
	_, first := keyOf(n)
	note(key, first)
	if n.Value().Kind != unstable.InlineTable {
		return
	}
	for it := n.Value().Children(); it.Next(); {
		if inner := it.Node(); inner.Kind == unstable.KeyValue {
			more, _ := keyOf(inner)
			noteValues(slices.Concat(key, more), inner, note)
		}
	}
}

// keyOf returns the parts of an expression's key, and the node of the first.
func keyOf(n *unstable.Node) (key []string, first *unstable.Node) {
	if n.Kind != unstable.KeyValue && n.Kind != unstable.Table && n.Kind != unstable.ArrayTable {
		return nil, n
	}
	for it := n.Key(); it.Next(); {
		if first == nil {
			first = it.Node()
		}
		key = append(key, string(it.Node().Data))
	}
	return key, first
}

// walker compares a file's tree with the table.
type walker[C any] struct {
	table Table[C]
	file  string
	lines map[string]int
	found []entry
	wrong []*Error
}

// walk looks at the table at a path.
func (w *walker[C]) walk(tree map[string]any, path []string) {
	for _, part := range slices.Sorted(maps.Keys(tree)) {
		at, value := append(slices.Clone(path), part), tree[part]
		pattern, name := w.table.match(at)
		k, leaf := w.table.key(pattern)
		e := entry{file: w.file, line: w.lines[strings.Join(at, "\x00")], pattern: pattern, name: name}
		refuse := func(key, format string, args ...any) {
			w.wrong = append(w.wrong, &Error{File: w.file, Line: e.line, Key: key, Err: fmt.Errorf(format, args...)})
		}
		below, isTable := value.(map[string]any)
		switch {
		case pattern == "":
			refuse("", "unknown key %s", strings.Join(at, "."))
		case leaf:
			var err error
			if e.value, err = convert(value, k.Default); err != nil {
				refuse(e.key(), "%w", err)
				continue
			}
			w.found = append(w.found, e)
		case !isTable:
			refuse(e.key(), "want a table, have %s", kind(value))
		default:
			w.found = append(w.found, e)
			w.walk(below, at)
		}
	}
}

// match finds the key, or the table of keys, that a path means: its name in the table, "" for none, and what NAME stands for.
func (t Table[C]) match(path []string) (pattern, name string) {
	for _, k := range t.Keys {
		parts := strings.Split(k.Name, ".")
		if len(parts) < len(path) {
			continue
		}
		name, same := "", true
		for i, part := range path {
			if parts[i] == anyName && part != "" {
				name = part
			} else if parts[i] != part {
				same = false
			}
		}
		if same {
			return strings.Join(parts[:len(path)], "."), name
		}
	}
	return "", ""
}

// convert gives a value the type that a key's default has.
func convert(value, like any) (any, error) {
	if list, is := value.([]any); is {
		if _, is := like.([]string); is {
			return texts(list)
		}
	}
	if reflect.TypeOf(value) != reflect.TypeOf(like) {
		return nil, fmt.Errorf("want %s, have %s", kind(like), kind(value))
	}
	return value, nil
}

// texts makes a list of strings.
func texts(list []any) ([]string, error) {
	all := make([]string, 0, len(list))
	for i, value := range list {
		text, is := value.(string)
		if !is {
			return nil, fmt.Errorf("want a list of strings, have %s as number %d", kind(value), i+1)
		}
		all = append(all, text)
	}
	return all, nil
}

// kind names a value's type.
func kind(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case bool:
		return "a boolean"
	case float64:
		return "a floating-point number"
	case []string:
		return "a list of strings"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}
