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
	configKey   = regexp.MustCompile("toml:\"([a-z_]+)\"")
	manKey      = regexp.MustCompile(`(?m)^\.(?:B [a-z]+|BI [a-z]+\. NAME )\.([a-z_]+)$`)
	notBuilt    = regexp.MustCompile(`(?m)^\t"([A-Z][A-Za-z]+)": `)
	subcommands = regexp.MustCompile(`(?m)^  ([a-z]+)  `)
)

// What the rest of the texts is held against.
const (
	configSource   = "cmd/berthd/config.go"
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
	found = append(found, compare(top, configSource, configKey, configPage, manKey)...)
	return append(found, compare(top, notBuiltSource, notBuilt, readme, nil)...)
}

// tables are the configuration's sections, which keys begin with.
var tables = []string{"registry", "network", "runtime", "runtimes", "streaming", "log"}

// compare looks for what source defines in a text: as a match of says, or anywhere if says is nil.
func compare(top, source string, defines *regexp.Regexp, page string, says *regexp.Regexp) (found []finding) {
	code, err := os.ReadFile(filepath.Join(top, source))
	if err != nil {
		return []finding{{where: source, text: err.Error()}}
	}
	text, err := os.ReadFile(filepath.Join(top, page))
	if err != nil {
		return []finding{{where: page, text: err.Error()}}
	}
	words := map[string]bool{}
	if says == nil {
		for _, w := range regexp.MustCompile(`[A-Za-z]+`).FindAllString(string(text), -1) {
			words[w] = true
		}
	} else {
		for _, m := range says.FindAllStringSubmatch(string(text), -1) {
			words[m[1]] = true
		}
	}
	for _, m := range defines.FindAllStringSubmatch(string(code), -1) {
		if !words[m[1]] && !slices.Contains(tables, m[1]) {
			found = append(found, finding{where: page, text: "says nothing about " + m[1] + ", which stands in " + source})
		}
		delete(words, m[1])
	}
	for word := range words {
		if says != nil {
			found = append(found, finding{where: page, text: "describes " + word + ", which does not stand in " + source})
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
