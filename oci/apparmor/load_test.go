package apparmor

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	const enabled, profiles = "/sys/module/apparmor/parameters/enabled", "/sys/kernel/security/apparmor/profiles"
	if text, err := os.ReadFile(enabled); err != nil || !strings.HasPrefix(string(text), "Y") {
		t.Skip("this kernel has no AppArmor")
	}
	for range 2 { // the second one replaces the first
		if err := Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(profiles)
	if err != nil || !strings.Contains(string(text), Name+" (enforce)\n") {
		t.Errorf("%s has %q, %v", profiles, text, err)
	}
}

func TestNoParser(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(before []string) { parserFolders = before }(parserFolders)
	parserFolders = nil
	if err := Load(t.Context()); !errors.Is(err, ErrNoParser) || !strings.Contains(err.Error(), Name) {
		t.Errorf("Load = %v, want ErrNoParser", err)
	}
}

// A parser that says no is quoted.
func TestParserFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/"+parserName, []byte("#!/bin/sh\necho 'syntax error, line 3'; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	if err := Load(t.Context()); err == nil || !strings.Contains(err.Error(), "syntax error, line 3") {
		t.Errorf("Load = %v, want the parser's words", err)
	}
}
