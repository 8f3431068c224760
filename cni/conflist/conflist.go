package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	maxBytes = 1 << 20

	// grace is how long the last good contents serve when a file turns bad: longer than an installer takes to write it.
	grace = 5 * time.Second

	// settled is the age from which a file's times tell whether it has changed: file systems count time in ticks.
	settled = 50 * time.Millisecond
)

var extensions = []string{".conflist", ".conf", ".json"}

// List is a configuration that can be used. It is not changed after it was read.
type List struct {
	*libcni.NetworkConfigList
	File   string          // where it was read
	Config json.RawMessage // all of it, with every plugin; Parse reads it
}

// Parse reads what List.Config holds.
func Parse(config []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(config)
	if err != nil {
		return nil, err
	}
	return list, validate(list)
}

// Folder is a configuration folder.
type Folder struct {
	dir string

	mu    sync.Mutex
	seen  signature
	list  *List     // what is in use; nil: nothing is configured, or it is bad
	good  *List     // what was in use last
	err   error     // why there is no list
	since time.Time // when err came up
}

// Open returns the folder, which need not exist.
func Open(dir string) *Folder { return &Folder{dir: dir} }

// Path is where it is.
func (f *Folder) Path() string { return f.dir }

// Current returns the configuration, nil when there is none, or an error that names the file that cannot be used.
func (f *Folder) Current() (*List, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if s := f.look(now); s.racy || s != f.seen || f.seen == (signature{}) {
		f.load(now)
		f.seen = f.look(now)
	}
	if f.err != nil && f.good != nil && now.Sub(f.since) < grace {
		return f.good, nil
	}
	return f.list, f.err
}

// signature tells whether a folder has changed. It is comparable.
type signature struct {
	racy                 bool // changed so recently that the next change may look the same
	folder, file, folded stamp
}

type stamp struct {
	exists       bool
	device, node uint64
	size         int64
	mtime, ctime unix.Timespec
}

// look takes the signature of the folder and of the file that counts. Preconditions: f.mu held.
func (f *Folder) look(now time.Time) signature {
	s := signature{folder: stampOf(f.dir)}
	if path := f.path(); path != "" {
		s.file = stampOf(path)
		if f.list != nil && !f.list.LoadOnlyInlinedPlugins {
			s.folded = stampOf(filepath.Join(f.dir, f.list.Name))
		}
	}
	for _, x := range []stamp{s.folder, s.file, s.folded} {
		for _, t := range []unix.Timespec{x.mtime, x.ctime} {
			if age := now.Sub(time.Unix(t.Unix())); x.exists && age < settled {
				s.racy = true
			}
		}
	}
	return s
}

// path is the file whose contents are known. Preconditions: f.mu held.
func (f *Folder) path() string {
	var bad *FileError
	switch {
	case f.list != nil:
		return f.list.File
	case errors.As(f.err, &bad):
		return bad.File
	}
	return ""
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}
	}
	return stamp{true, uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
}

// load reads the folder. Preconditions: f.mu held.
func (f *Folder) load(now time.Time) {
	list, err := read(f.dir)
	if err != nil && f.err == nil {
		f.since = now
	}
	f.list, f.err = list, err
	if err == nil {
		f.good = list // also nil: what was removed does not come back
	}
}

// FileError says which file cannot be used, and why.
type FileError struct {
	File string
	Err  error
}

func (e *FileError) Error() string { return "CNI configuration " + e.File + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// Files lists what could be a configuration, in the order in which they count.
func Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &FileError{dir, err}
	}
	var all []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains(extensions, filepath.Ext(e.Name())) {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all, nil
}

func read(dir string) (*List, error) {
	files, err := Files(dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	list, err := readList(files[0])
	if err != nil {
		return nil, &FileError{files[0], err}
	}
	return list, nil
}

func readList(path string) (*List, error) {
	b, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" {
		list, err = libcni.NetworkConfFromBytes(b)
	} else {
		list, err = single(b)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("network name %q: %s", list.Name, err.Msg)
	}
	if err := fold(path, list); err != nil {
		return nil, err
	}
	if err := validate(list); err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, list.Bytes); err != nil {
		return nil, err
	}
	return &List{NetworkConfigList: list, File: path, Config: compact.Bytes()}, nil
}

// ReadFile reads a regular file of a sane size; it never waits for a FIFO.
func ReadFile(path string) (_ []byte, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("is not a regular file"))
	}
	b, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxBytes:
		return nil, errors.New("is larger than 1 MiB")
	case bytes.IndexByte(b, 0) >= 0:
		return nil, errors.New("contains a NUL byte")
	}
	return b, nil
}

// single makes a list of a file with one plugin.
func single(b []byte) (*libcni.NetworkConfigList, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, errors.New("has no \"type\": a list of plugins must be named .conflist")
	}
	list, err := libcni.ConfListFromConf(conf)
	if err == nil {
		list.LoadOnlyInlinedPlugins = true
	}
	return list, err
}

// fold takes the plugins of the folder that is named like the network into the list, CNI spec 1.1 "loadOnlyInlinedPlugins".
func fold(path string, list *libcni.NetworkConfigList) error {
	if list.LoadOnlyInlinedPlugins {
		return nil
	}
	dir := filepath.Join(filepath.Dir(path), list.Name)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return nil
	}
	added := false
	for _, e := range entries {
		if e.IsDir() || filepath.Ext(e.Name()) != ".conf" {
			continue
		}
		b, err := ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("plugin file %s: %w", filepath.Join(dir, e.Name()), err)
		}
		conf, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return fmt.Errorf("plugin file %s: %w", filepath.Join(dir, e.Name()), err)
		}
		list.Plugins = append(list.Plugins, conf)
		added = true
	}
	if !added {
		return nil
	}
	all := make(map[string]any)
	if err := json.Unmarshal(list.Bytes, &all); err != nil {
		return err
	}
	plugins := make([]json.RawMessage, 0, len(list.Plugins))
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	all["plugins"], all["loadOnlyInlinedPlugins"] = plugins, true
	list.Bytes, err = json.Marshal(all)
	return err
}

// validate applies the rules that libcni leaves to the moment of execution.
func validate(list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 {
		return errors.New("names no plugin")
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name %q: %s", list.Name, err.Msg)
	}
	if list.CNIVersion != "" {
		newer, err := version.GreaterThan(list.CNIVersion, version.Current())
		if err != nil {
			return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
		}
		if newer {
			return fmt.Errorf("cniVersion %q is newer than %s", list.CNIVersion, version.Current())
		}
	}
	for i, p := range list.Plugins {
		kind := p.Network.Type
		if kind == "" || kind == "." || kind == ".." || len(kind) > 255 || strings.ContainsAny(kind, "/\\\x00") {
			return fmt.Errorf("plugin %d: type %q is not the name of a plugin", i, kind)
		}
		if p.Network.IPAM.Type != "" && strings.ContainsAny(p.Network.IPAM.Type, "/\\\x00") {
			return fmt.Errorf("plugin %d: ipam type %q is not the name of a plugin", i, p.Network.IPAM.Type)
		}
	}
	return nil
}
