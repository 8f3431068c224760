package snapshot

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// FailReads makes the reading of records of this name fail until the returned function is called.
func FailReads(t *testing.T, name string, err error) (end func()) {
	t.Helper()
	end = func() { readFile = os.ReadFile }
	t.Cleanup(end)
	readFile = func(path string) ([]byte, error) {
		if filepath.Base(path) == name {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.ReadFile(path)
	}
	return end
}

// MountInScratch is the way that older kernels need.
func (s *Store) MountInScratch(folders []string) (*os.File, error) { return s.mountInScratch(folders) }
