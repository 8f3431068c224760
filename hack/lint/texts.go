package main

import (
	"bytes"
	"go/format"
	"regexp"
	"strconv"
	"strings"
)

// machine matches paths and hosts that exist on one machine only. It is put together from parts, so as not to match itself.
var machine = regexp.MustCompile(`(^|[^A-Za-z0-9_.])/(` + `work|farm|Users` + `)/|/home/[a-z][a-z0-9]*/|\.\./` + `shared\b` + `|proxy\.` + `golang\.org|deb\.` + `debian\.org`)

// unfinished matches words that stand for work that was not done. A reminder that names its issue is no such word.
var unfinished = regexp.MustCompile(`\b(FIX` + `ME|XX` + `X)\b|\bTO` + `DO(\([^#)]*\))?($|[^(A-Za-z])`)

func checkText(path string, text []byte) []finding {
	if path == "go.sum" || path == "LICENSE" || bytes.IndexByte(text, 0) >= 0 {
		return nil
	}
	var found []finding
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if m := machine.FindString(line); m != "" {
			found = append(found, finding{where: place(path, number), text: "a path or host of one machine: " + strings.TrimSpace(m)})
		}
		if m := unfinished.FindString(line); m != "" {
			found = append(found, finding{where: place(path, number), text: "unfinished work without an issue: " + strings.TrimSpace(m)})
		}
	}
	if strings.HasSuffix(path, ".go") {
		if formatted, err := format.Source(text); err == nil && !bytes.Equal(formatted, text) {
			found = append(found, finding{where: path, text: "gofmt would change this file"})
		}
	}
	return found
}

func place(path string, line int) string { return path + ":" + strconv.Itoa(line) }
