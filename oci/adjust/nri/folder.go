package nri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/nri/pkg/api"
)

// viewName is the folder beside the socket that shows the library the plugins that it can start, while it starts them.
const viewName = "nri.plugins"

// startable is the folder of plugins for the library, which starts none, and fails, when one program there is called as no plugin is, or when one
// configuration cannot be read. These are left out, with a word about each. done takes away what was made for that.
func (p *Plugins) startable() (folder string, done func() error, err error) {
	view := filepath.Join(filepath.Dir(p.cfg.Socket), viewName)
	done = func() error { return os.RemoveAll(view) } // it has links alone
	if err := done(); err != nil {                    // of a daemon that was killed
		return "", nil, err
	}
	entries, err := os.ReadDir(p.cfg.PluginPath)
	if err != nil { // the library knows which errors are none
		return p.cfg.PluginPath, done, nil //nolint:nilerr // see above
	}
	var good []string
	bad := false
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.IsDir() || st.Mode()&0o111 == 0 { // for the library neither
			continue
		}
		if err := p.checkPlugin(e.Name()); err != nil {
			p.cfg.Log(LogError, fmt.Sprintf("Left out of the plugins: %s: %v", filepath.Join(p.cfg.PluginPath, e.Name()), err))
			bad = true
			continue
		}
		good = append(good, e.Name())
	}
	if !bad {
		return p.cfg.PluginPath, done, nil
	}
	if err := os.Mkdir(view, 0o700); err != nil {
		return "", nil, err
	}
	for _, name := range good {
		if err := os.Symlink(filepath.Join(p.cfg.PluginPath, name), filepath.Join(view, name)); err != nil {
			return "", nil, errors.Join(err, done())
		}
	}
	return view, done, nil
}

// checkPlugin tells why a program of the folder cannot be started as a plugin.
func (p *Plugins) checkPlugin(program string) error {
	_, name, err := api.ParsePluginName(program)
	if err != nil {
		return err
	}
	for _, file := range []string{program + ".conf", name + ".conf"} {
		_, err := os.ReadFile(filepath.Join(p.cfg.ConfigPath, file))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
