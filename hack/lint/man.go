package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// manuals names the page of each binary.
var manuals = map[string]string{
	"berthd":        "docs/man/berthd.8",
	"berth-monitor": "docs/man/berth-monitor.8",
	"berth":         "docs/man/berth.1",
}

var (
	helpFlag    = regexp.MustCompile(`--([a-z][a-z0-9-]*)`)
	manFlag     = regexp.MustCompile(`\\-\\-([a-z][a-z0-9\\-]*)`)
	notBuilt    = regexp.MustCompile(`(?m)^\t"([A-Z][A-Za-z]+)": `)
	subcommands = regexp.MustCompile(`(?m)^  ([a-z]+)  `)
)

// What the rest of the texts is held against.
const (
	configPage     = "docs/man/berth-config.5"
	notBuiltSource = "cri/unimplemented.go"
	readme         = "README.md"
)

// own are options that libraries add to each command and that no page repeats.
var own = []string{"help", "version"}

// checkManuals compares what each binary prints with --help with its manual page.
func checkManuals(top, bin string) []finding {
	var found []finding
	for _, name := range slices.Sorted(maps.Keys(manuals)) {
		page, err := os.ReadFile(filepath.Join(top, manuals[name]))
		if err != nil {
			found = append(found, finding{where: manuals[name], text: err.Error()})
			continue
		}
		has, err := helpFlags(filepath.Join(bin, name))
		if err != nil {
			found = append(found, finding{where: name, text: err.Error()})
			continue
		}
		says := map[string]bool{}
		for _, m := range manFlag.FindAllStringSubmatch(string(page), -1) {
			says[strings.ReplaceAll(m[1], `\`, "")] = true
		}
		for flag := range has {
			if !says[flag] && !slices.Contains(own, flag) {
				found = append(found, finding{where: manuals[name], text: "does not describe --" + flag})
			}
		}
		for flag := range says {
			if !has[flag] && !slices.Contains(own, flag) {
				found = append(found, finding{where: manuals[name], text: "describes --" + flag + ", which " + name + " does not have"})
			}
		}
	}
	found = append(found, checkKeys(top, filepath.Join(bin, "berthd"))...)
	return append(found, compare(top)...)
}

// checkKeys holds the page of the configuration to the table in the code, of which it is a copy between two headings.
func checkKeys(top, berthd string) []finding {
	page, want, err := keysPage(top, berthd)
	if err != nil {
		return []finding{{where: configPage, text: err.Error()}}
	}
	if page != want {
		return []finding{{where: configPage, text: "is not what the code says about the keys: run `make man`"}}
	}
	return nil
}

// writeKeys brings the page up to date.
func writeKeys(top, berthd string) error {
	_, want, err := keysPage(top, berthd)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(top, configPage), []byte(want), 0o644)
}

// keysPage returns the page of the configuration as it is, and as it should be.
func keysPage(top, berthd string) (is, want string, err error) {
	text, err := os.ReadFile(filepath.Join(top, configPage))
	if err != nil {
		return "", "", err
	}
	keys, err := exec.Command(berthd, "config", "manual").Output()
	if err != nil {
		return "", "", fmt.Errorf("run berthd config manual: %w", err)
	}
	const begin, end = ".SH KEYS\n", ".SH EXAMPLE\n"
	before, rest, has := strings.Cut(string(text), begin)
	_, after, hasToo := strings.Cut(rest, end)
	if !has || !hasToo {
		return "", "", fmt.Errorf("has no %q and %q", begin, end)
	}
	return string(text), before + begin + string(keys) + end + after, nil
}

// compare looks in the README for each call that is not built.
func compare(top string) (found []finding) {
	code, err := os.ReadFile(filepath.Join(top, notBuiltSource))
	if err != nil {
		return []finding{{where: notBuiltSource, text: err.Error()}}
	}
	text, err := os.ReadFile(filepath.Join(top, readme))
	if err != nil {
		return []finding{{where: readme, text: err.Error()}}
	}
	words := map[string]bool{}
	for _, w := range regexp.MustCompile(`[A-Za-z]+`).FindAllString(string(text), -1) {
		words[w] = true
	}
	for _, m := range notBuilt.FindAllStringSubmatch(string(code), -1) {
		if !words[m[1]] {
			found = append(found, finding{where: readme, text: "says nothing about " + m[1] + ", which stands in " + notBuiltSource})
		}
	}
	return found
}

// helpFlags returns the long options of a binary and of its commands.
func helpFlags(binary string) (map[string]bool, error) {
	flags := map[string]bool{}
	read := func(args ...string) (string, error) {
		out, err := exec.Command(binary, append(args, "--help")...).CombinedOutput()
		if len(out) == 0 {
			return "", fmt.Errorf("run %s %v --help: %w", binary, args, err)
		}
		for _, m := range helpFlag.FindAllStringSubmatch(string(out), -1) {
			flags[m[1]] = true
		}
		return string(out), nil
	}
	text, err := read()
	if err != nil {
		return nil, err
	}
	_, commands, ok := strings.Cut(text, "Commands:\n")
	if !ok {
		return flags, nil
	}
	for _, m := range subcommands.FindAllStringSubmatch(commands, -1) {
		if m[1] == "help" || m[1] == "completion" {
			continue
		}
		if _, err := read(m[1]); err != nil {
			return nil, err
		}
	}
	return flags, nil
}
