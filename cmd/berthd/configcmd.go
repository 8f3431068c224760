package main

import (
	"fmt"
	"io"
	"strings"
)

// configUsage is what `berthd config --help` prints.
const configUsage = `berthd config prints and checks configuration; see berth-config(5).

Usage:
  berthd config default         print a file with every key and its default
  berthd config check [FILE]    read FILE (default ` + defaultConfig + `) and FILE.d/*.toml, and name file, line and key of each error
  berthd config manual          print the keys as a section of a manual page
`

// configCommand runs `berthd config`, and returns the exit status.
func configCommand(args []string, stdout, stderr io.Writer) int {
	var err error
	switch command := strings.Join(args[:min(1, len(args))], ""); {
	case command == "help" || command == "--help" || command == "-h":
		fmt.Fprint(stdout, configUsage)
	case command == "default" && len(args) == 1:
		fmt.Fprint(stdout, "# Configuration of berthd: every key and its default. See berth-config(5).\n\n")
		err = keys.Default(stdout)
	case command == "manual" && len(args) == 1:
		err = keys.Manual(stdout)
	case command == "check" && len(args) <= 2:
		read, path := readDefaultConfig, defaultConfig
		if len(args) == 2 {
			read, path = readConfig, args[1]
		}
		var c config
		if c, err = read(path); err == nil {
			fmt.Fprintf(stdout, "no errors in %d files\n%s", len(c.values.Files), lines(c.values.Files))
		}
	default:
		fmt.Fprintf(stderr, "berthd: want berthd config default, check [FILE] or manual\nhint: berthd config --help\n")
		return exitUsage
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	return 0
}

// lines writes each text on a line of its own.
func lines(texts []string) string {
	var b strings.Builder
	for _, t := range texts {
		b.WriteString("  " + t + "\n")
	}
	return b.String()
}
