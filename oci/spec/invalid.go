package spec

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// InvalidError is a value in a request, or in an image's configuration, that breaks a rule.
type InvalidError struct {
	Field string // path in the request, such as config.linux.cgroup_parent
	Value string // empty when it says nothing, or must not be shown
	Rule  string // completes the sentence "Field Value ..."
}

func (e *InvalidError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("invalid %s: %s", e.Field, e.Rule)
	}
	return fmt.Sprintf("invalid %s %.256q: %s", e.Field, e.Value, e.Rule)
}

// invalid is the form in which the rules of this package are written.
func invalid(field, value, rule string, args ...any) error {
	if len(args) > 0 {
		rule = fmt.Sprintf(rule, args...)
	}
	return &InvalidError{Field: field, Value: value, Rule: rule}
}

// Note is something that the container was asked to have and does not get. The caller logs it.
type Note struct {
	Field, Value string
	Rule         string
}

func (n Note) String() string { return fmt.Sprintf("%s %.256q: %s", n.Field, n.Value, n.Rule) }

// Limits of text in a request.
const (
	maxName = 253  // of a pod, container or namespace: a DNS subdomain
	maxPath = 4095 // PATH_MAX without the NUL
)

// checkPrintable refuses text that cannot be shown as it is: not UTF-8, with control characters, or with format characters,
// such as those that turn the direction of writing around.
func checkPrintable(field, s string) error {
	if !utf8.ValidString(s) {
		return invalid(field, s, "must be valid UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
		return invalid(field, s, "must not contain control or format characters")
	}
	return nil
}

// checkName refuses what cannot be one component of a path on the host.
func checkName(field, s string) error {
	switch {
	case s == "":
		return invalid(field, "", "must not be empty")
	case len(s) > maxName:
		return invalid(field, s, "must have at most %d bytes", maxName)
	case s == "." || s == ".." || strings.Contains(s, "/"):
		return invalid(field, s, "must not be a path")
	}
	return checkPrintable(field, s)
}

// checkPath refuses what cannot be an absolute path. It says nothing about its components.
func checkPath(field, s string) error {
	switch {
	case s == "":
		return invalid(field, "", "must not be empty")
	case len(s) > maxPath:
		return invalid(field, s, "must have at most %d bytes", maxPath)
	case strings.ContainsRune(s, 0):
		return invalid(field, s, "must not contain NUL")
	case s[0] != '/':
		return invalid(field, s, "must be an absolute path")
	}
	return nil
}

// climbs tells whether a path has a component that leads upwards.
func climbs(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// digits tells whether s is a number as people write IDs: nothing but digits.
func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
