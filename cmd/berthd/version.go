package main

import (
	"regexp"
	"runtime/debug"
	"strings"
)

// version is berthd's. The build sets it: -ldflags "-X main.version=...".
var version = baseVersion

// baseVersion is the version that is being worked on.
const baseVersion = "0.1.0-dev"

var (
	semantic    = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?)$`)
	notSemantic = regexp.MustCompile(`[^0-9A-Za-z.-]+`)
)

// semanticVersion is the version as the CRI wants it, semver-compatible: what a build calls itself that has no tag becomes build metadata.
func semanticVersion(v string) string {
	if m := semantic.FindStringSubmatch(v); m != nil {
		return m[1]
	}
	return baseVersion + "+" + strings.Trim(notSemantic.ReplaceAllString(v, "-"), "-")
}

// describeVersion is what --version prints: the version, and the commit if the build knew it.
func describeVersion() string {
	text := "berthd " + semanticVersion(version)
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				text += " (" + s.Value[:min(12, len(s.Value))] + ")"
			}
		}
		text += " " + b.GoVersion
	}
	return text
}
