package registry

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
)

func capabilities(names []string) (capability, error) {
	var caps capability
	for _, name := range names {
		switch strings.ToLower(name) {
		case "pull":
			caps |= canPull
		case "resolve":
			caps |= canResolve
		case "push":
		default:
			return 0, fmt.Errorf("capability %q must be pull, resolve or push", name)
		}
	}
	return caps, nil
}

// paths reads a string or a list of strings as file names.
func paths(v any, folder string) ([]string, error) {
	var out []string
	switch v := v.(type) {
	case nil:
	case string:
		out = append(out, absolute(v, folder))
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%T in a list of file names", e)
			}
			out = append(out, absolute(s, folder))
		}
	default:
		return nil, fmt.Errorf("%T must be a file name or a list of them", v)
	}
	return out, nil
}

// pairs reads "file", ["file", ...] or [["cert", "key"], ...].
func pairs(v any, folder string) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		files, err := paths(v, folder)
		if err != nil || len(files) == 0 {
			return nil, err
		}
		return [][2]string{{files[0], ""}}, nil
	}
	var out [][2]string
	for _, e := range list {
		files, err := paths(e, folder)
		if err != nil {
			return nil, err
		}
		pair := [2]string{}
		if n := copy(pair[:], files); n != len(files) || n == 0 || pair[0] == folder {
			return nil, errors.New("a pair must be a certificate and a key")
		}
		if len(files) == 2 && files[1] == folder {
			pair[1] = "" // ["cert", ""]: the key is in the same file
		}
		out = append(out, pair)
	}
	return out, nil
}

func absolute(file, folder string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(folder, file)
}

func header(m map[string]any) (http.Header, error) {
	h := http.Header{}
	for key, v := range m {
		switch v := v.(type) {
		case string:
			h.Add(key, v)
		case []any:
			for _, e := range v {
				s, ok := e.(string)
				if !ok {
					return nil, fmt.Errorf("header %q: %T must be a string", key, e)
				}
				h.Add(key, s)
			}
		default:
			return nil, fmt.Errorf("header %q: %T must be a string or a list of strings", key, v)
		}
	}
	return h, nil
}
