package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/cni/conflist"
	"github.com/berthd/berth/cni/conftemplate"
)

// What is made of a template.
const (
	renderedName = "10-berth.conflist" // in the configuration folder
	// digestsName is a file in the cache folder: the digests of what was written there, so that what somebody else has put in its place is known.
	digestsName = "rendered"
)

// Rendering is what SetPodRanges did.
type Rendering string

// What it may do.
const (
	NoTemplate        Rendering = "no template is configured"
	OtherConfigured   Rendering = "there is another CNI configuration"
	RenderedUnchanged Rendering = "the CNI configuration is up to date"
	RenderedAnew      Rendering = "the CNI configuration was written"
)

// SetPodRanges is told the address ranges of this node's pods. With a template it makes a CNI configuration of them, unless there is one that it has not
// made. Attachments that are there stay as they are. Errors: ErrInvalid for no ranges or twice the same; those of the template and of the folder.
func (d *Dispatcher) SetPodRanges(_ context.Context, ranges []netip.Prefix) (Rendering, error) {
	for i, r := range ranges {
		if !r.IsValid() || slices.Contains(ranges[:i], r) {
			return "", invalid("pod range", r.String(), "is no range, or there twice")
		}
	}
	if len(ranges) == 0 {
		return "", invalid("pod ranges", "", "are none")
	}
	d.rendering.Lock()
	defer d.rendering.Unlock()
	live := d.live.Load()
	if live.Template == "" {
		return NoTemplate, nil
	}
	text, err := conflist.ReadFile(live.Template)
	if err != nil {
		return "", fmt.Errorf("read CNI template %s: %w", live.Template, err)
	}
	config, err := conftemplate.Render(string(text), ranges)
	if err == nil {
		_, err = conflist.Parse(config)
	}
	if err != nil {
		return "", fmt.Errorf("CNI template %s: %w", live.Template, err)
	}
	return d.publish(live.ConfDir, config)
}

// publish writes the configuration, if it is the only one.
func (d *Dispatcher) publish(folder string, config []byte) (Rendering, error) {
	path := filepath.Join(folder, renderedName)
	others, err := conflist.Files(folder)
	if err != nil {
		return "", err
	}
	others = slices.DeleteFunc(others, func(other string) bool { return other == path })
	present, err := os.ReadFile(path)
	switch {
	case len(others) > 0:
		return OtherConfigured, nil
	case err == nil && string(present) == string(config):
		return RenderedUnchanged, nil
	case err == nil && !d.wrote(present):
		return OtherConfigured, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read CNI configuration: %w", err)
	}
	digests := []string{digest(config)}
	if present != nil {
		digests = append(digests, digest(present)) // what is there until the rename
	}
	if err := replace(filepath.Join(d.cfg.CacheDir, digestsName), []byte(strings.Join(digests, "\n")+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("record CNI configuration: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("make the CNI folder: %w", err)
	}
	if err := replace(path, config, 0o644); err != nil {
		return "", fmt.Errorf("write CNI configuration: %w", err)
	}
	return RenderedAnew, nil
}

// wrote says whether a configuration is as this daemon, or one before it, has written it.
func (d *Dispatcher) wrote(config []byte) bool {
	text, err := os.ReadFile(filepath.Join(d.cfg.CacheDir, digestsName))
	return err == nil && slices.Contains(strings.Fields(string(text)), digest(config))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// replace writes a file so that readers see the old or the new one. What it writes first is hidden from those who look for configurations.
func replace(path string, text []byte, mode fs.FileMode) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(text)
	if err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
