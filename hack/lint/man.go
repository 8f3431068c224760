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
	helpFlag    = regexp.MustCompile(`(?m)^\s+(?:-[a-zA-Z], )?--?([a-z][a-z0-9-]+)`)
	manFlag     = regexp.MustCompile(`\\-\\-([a-z][a-z0-9\\-]+)`)
	subcommands = regexp.MustCompile(`(?m)^  ([a-z]+)  `)
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
