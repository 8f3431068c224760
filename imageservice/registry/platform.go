package registry

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"
)

// Platform is what a machine can run, best first, as "os/architecture/variant" with default variants left out.
type Platform []string

// HostPlatform is what this machine can run.
func HostPlatform() Platform { return platformOf(runtime.GOARCH, amd64Level()) }

// platformOf lists what a linux machine can run. level is 1 to 4 for amd64 and means nothing elsewhere.
func platformOf(arch string, level int) Platform {
	switch arch {
	case "amd64":
		var p Platform
		for ; level > 1; level-- {
			p = append(p, fmt.Sprintf("linux/amd64/v%d", level))
		}
		return append(p, "linux/amd64", "linux/386")
	case "arm64":
		return Platform{"linux/arm64", "linux/arm/v8", "linux/arm", "linux/arm/v6", "linux/arm/v5"}
	case "arm":
		return Platform{"linux/arm", "linux/arm/v6", "linux/arm/v5"}
	}
	return Platform{"linux/" + arch}
}

// amd64Level is the microarchitecture level of the x86-64 psABI.
func amd64Level() int {
	x := cpu.X86
	switch {
	case !x.HasSSE3 || !x.HasSSSE3 || !x.HasSSE41 || !x.HasSSE42 || !x.HasPOPCNT:
		return 1
	case !x.HasAVX || !x.HasAVX2 || !x.HasBMI1 || !x.HasBMI2 || !x.HasFMA || !x.HasOSXSAVE:
		return 2
	case !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512CD || !x.HasAVX512DQ || !x.HasAVX512VL:
		return 3
	}
	return 4
}

// platformName writes a platform in one spelling.
func platformName(os, arch, variant string) string {
	os, arch, variant = strings.ToLower(os), strings.ToLower(arch), strings.ToLower(variant)
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "aarch64":
		arch = "arm64"
	case "i386", "i686":
		arch = "386"
	}
	switch {
	case arch == "amd64" && variant == "v1", arch == "arm64" && (variant == "v8" || variant == "8"), arch == "arm" && (variant == "v7" || variant == "7"):
		variant = "" // the default of its architecture
	}
	if variant == "" {
		return os + "/" + arch
	}
	return os + "/" + arch + "/" + variant
}

// rank is the place of a platform in p, lower is better; -1 if it cannot be run.
func (p Platform) rank(os, arch, variant string) int {
	name := platformName(os, arch, variant)
	for i, want := range p {
		if want == name {
			return i
		}
	}
	return -1
}

// Runs says whether a config's platform can be run. Empty fields, from old tools, say nothing and pass.
func (p Platform) Runs(os, arch, variant string) bool {
	if os == "" {
		os = "linux"
	}
	if arch == "" {
		return strings.EqualFold(os, "linux")
	}
	if p.rank(os, arch, variant) >= 0 {
		return true
	}
	// A config may name a variant that the list does not know, such as arm64/v8.2; the architecture decides.
	return p.rank(os, arch, "") >= 0 && arch != "arm" && arch != "amd64"
}

// choose returns the best of an index's descriptors: by platform, then by their order. One without a platform is taken
// only if it is alone.
func (p Platform) choose(all []wireDescriptor) (wireDescriptor, error) {
	best, bestRank := -1, len(p)
	var offered []string
	for i, d := range all {
		if d.Platform == nil {
			if len(all) == 1 {
				return d, nil
			}
			continue
		}
		if len(offered) < 16 {
			offered = append(offered, printable(platformName(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)))
		}
		if r := p.rank(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant); r >= 0 && r < bestRank {
			best, bestRank = i, r
		}
	}
	if best < 0 {
		return wireDescriptor{}, fmt.Errorf("%w: this machine runs %s, the index has %s", ErrNoPlatform, p[0], strings.Join(offered, ", "))
	}
	return all[best], nil
}
