package keyfile

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// anyName is the part of a key that stands for any name.
const anyName = "NAME"

// Key is one key of a configuration that is kept in a C.
type Key[C any] struct {
	Name    string // with dots
	Default any    // of type string, int64, bool or []string
	// Set checks a value, which has the type of Default, and puts it into the configuration; name is what NAME stands for.
	Set func(into *C, name string, value any) error
	// Live says that a change is taken over by a running daemon.
	Live bool
	Doc  string // a sentence a line
}

// Table is all that a configuration may say.
type Table[C any] struct {
	Keys []Key[C]
	// Rules hold over several keys, and are asked when each key is in order.
	Rules []func(*C) error
}

// Values are what files say, and what they leave out.
type Values struct {
	Files []string
	found map[string]entry
}

// entry is a value and where it stands.
type entry struct {
	value any
	file  string
	line  int
	// pattern is the key's name in the table, name what NAME stands for.
	pattern, name string
}

// Error is what is wrong at one place.
type Error struct {
	File         string
	Line, Column int // from 1; 0 is unknown
	Key          string
	Err          error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		for _, n := range []int{e.Line, e.Column} {
			if n > 0 {
				fmt.Fprintf(&b, ":%d", n)
			}
		}
		b.WriteString(": ")
	}
	if e.Key != "" {
		fmt.Fprintf(&b, "key %s: ", e.Key)
	}
	return b.String() + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// At makes the error of a rule about a key.
func At(key, format string, args ...any) error {
	return &Error{Key: key, Err: fmt.Errorf(format, args...)}
}

// DropIns lists path.d/*.toml in the order in which they count. Hidden files, which editors make, do not.
func DropIns(path string) ([]string, error) {
	folder := path + ".d"
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read drop-ins: %w", err)
	}
	var all []string
	for _, e := range entries { // sorted
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			all = append(all, filepath.Join(folder, name))
		}
	}
	return all, nil
}

// Read fills a configuration in: with the defaults, then with what the files say. After an error into holds anything.
func (t Table[C]) Read(into *C, files ...string) (*Values, error) {
	v := &Values{Files: files, found: map[string]entry{}}
	var all []error
	for _, file := range files {
		found, err := t.parse(file)
		all = append(all, err)
		for _, e := range found { // also what another file replaces: it would come to light when that one goes
			all = append(all, t.set(new(C), e))
			v.found[e.key()] = e
		}
	}
	if err := errors.Join(all...); err != nil {
		return v, err
	}
	for _, k := range t.Keys { // their order is that of the setters
		for _, name := range v.names(k.Name) {
			e := entry{value: k.Default, pattern: k.Name, name: name}
			if found, has := v.found[e.key()]; has {
				e = found
			}
			v.found[e.key()] = e
			all = append(all, v.place(t.set(into, e)))
		}
	}
	if err := errors.Join(all...); err != nil {
		return v, err
	}
	for _, rule := range t.Rules {
		all = append(all, v.place(rule(into)))
	}
	return v, errors.Join(all...)
}

// names lists what NAME stands for in a key: "" for one without.
func (v *Values) names(key string) []string {
	table, _, has := strings.Cut(key, "."+anyName)
	if !has {
		return []string{""}
	}
	all := map[string]bool{}
	for _, e := range v.found {
		if e.name != "" && strings.HasPrefix(e.pattern, table+"."+anyName) {
			all[e.name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// set gives a value to the key's setter.
func (t Table[C]) set(into *C, e entry) error {
	k, known := t.key(e.pattern)
	if !known { // a table, which may be empty
		return nil
	}
	if isEmpty(k.Default) && isEmpty(e.value) && e.name == "" {
		return nil
	}
	if err := k.Set(into, e.name, e.value); err != nil {
		return &Error{File: e.file, Line: e.line, Key: e.key(), Err: err}
	}
	return nil
}

// key looks a key up by its name in the table.
func (t Table[C]) key(pattern string) (Key[C], bool) {
	i := slices.IndexFunc(t.Keys, func(k Key[C]) bool { return k.Name == pattern })
	if i < 0 {
		return Key[C]{}, false
	}
	return t.Keys[i], true
}

// key is the key as a file has it.
func (e entry) key() string { return strings.Replace(e.pattern, anyName, e.name, 1) }

// isEmpty says whether a value is as good as none. No number and no boolean is.
func isEmpty(value any) bool {
	switch value := value.(type) {
	case string:
		return value == ""
	case []string:
		return len(value) == 0
	}
	return false
}

// place tells where the keys stand that the errors of a rule are about.
func (v *Values) place(err error) error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, v.place(e))
		}
		return errors.Join(all...)
	}
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) || e.File != "" {
		return err
	}
	placed := *e
	for key := e.Key; key != ""; { // that key, or the table that it could stand in
		if at, has := v.found[key]; has && at.file != "" {
			placed.File, placed.Line = at.file, at.line
			break
		}
		key = key[:max(0, strings.LastIndexByte(key, '.'))]
	}
	return &placed
}

// Changed lists the keys whose values differ between two readings: those that a running daemon takes over, and the others.
func (t Table[C]) Changed(before, now *Values) (live, others []string) {
	all := maps.Clone(before.found)
	maps.Copy(all, now.found)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		a, b := before.found[key].value, now.found[key].value
		k, known := t.key(all[key].pattern)
		switch {
		case !known || reflect.DeepEqual(a, b) || isEmpty(a) && isEmpty(b):
		case k.Live:
			live = append(live, key)
		default:
			others = append(others, key)
		}
	}
	return live, others
}
