package registry

import (
	"net/url"
	"strings"
)

// challenge is one entry of WWW-Authenticate: the scheme in lower case, and parameters with names in lower case.
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110 section 11.6.1). What it does not understand it leaves out.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		s := scanner{h}
		for !s.end() {
			word := s.token()
			if word == "" {
				if !s.skip(',') {
					break
				}
				continue
			}
			if s.skip('=') { // a parameter of the challenge before
				value := s.value()
				if len(all) > 0 {
					if p := all[len(all)-1].params; p[strings.ToLower(word)] == "" {
						p[strings.ToLower(word)] = value
					}
				}
				continue
			}
			all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
		}
	}
	return all
}

// scanner reads the words of a header.
type scanner struct{ rest string }

func (s *scanner) end() bool {
	s.rest = strings.TrimLeft(s.rest, " \t")
	return s.rest == ""
}

func (s *scanner) skip(c byte) bool {
	if s.end() || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) token() string {
	if s.end() {
		return ""
	}
	i := strings.IndexAny(s.rest, " \t,=\"")
	if i < 0 {
		i = len(s.rest)
	}
	word := s.rest[:i]
	s.rest = s.rest[i:]
	return word
}

func (s *scanner) value() string {
	if !s.skip('"') {
		if s.end() {
			return ""
		}
		i := strings.IndexAny(s.rest, " \t,")
		if i < 0 {
			i = len(s.rest)
		}
		word := s.rest[:i]
		s.rest = s.rest[i:]
		return word
	}
	var b strings.Builder
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String()
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	s.rest = ""
	return b.String()
}

// find returns the first challenge of a scheme.
func find(all []challenge, scheme string) (challenge, bool) {
	for _, c := range all {
		if c.scheme == scheme {
			return c, true
		}
	}
	return challenge{}, false
}

// origin is scheme://host:port in one spelling.
func origin(u *url.URL) string {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)]
	}
	return strings.ToLower(u.Scheme) + "://" + host + ":" + port
}
