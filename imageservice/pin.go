package imageservice

import (
	"slices"
	"strings"

	"github.com/berthd/berth/imageservice/reference"
)

// Pin says which images are pinned from now on, in place of those before. A pattern is a reference, which may be short, or
// has asterisks, each of which stands for any text: it is compared with an image's tags, digests and ID.
func (s *Service) Pin(patterns []string) {
	parsed := make([]string, 0, len(patterns))
	for _, p := range patterns {
		if ref, err := reference.Parse(p); err == nil && !strings.Contains(p, "*") {
			parsed = append(parsed, ref.String())
		}
		parsed = append(parsed, p)
	}
	s.catalog.pinned.Store(&parsed)
}

// show makes of an image in the catalog one that a caller may have.
func (s *Service) show(i Image) Image {
	i = i.clone()
	patterns := s.catalog.pinned.Load()
	if patterns == nil {
		return i
	}
	for _, p := range *patterns {
		is := func(name string) bool { return matches(p, name) }
		if is(i.ID) || slices.ContainsFunc(i.RepoTags, is) || slices.ContainsFunc(i.RepoDigests, is) {
			i.Pinned = true
		}
	}
	return i
}

// matches says whether a name is what a pattern with asterisks describes.
func matches(pattern, name string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, first)
	if !ok {
		return false
	}
	for {
		// What stands between two asterisks may be found at its first place: the last part alone is held to the end.
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, part)
		}
		_, behind, found := strings.Cut(name, part)
		if !found {
			return false
		}
		name, rest = behind, after
	}
}
