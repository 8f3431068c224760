package imageservice

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
)

// ImageConfig is what an image says about how it wants to be run. HOSTILE: any string may hold anything (NUL, line breaks, ..,
// numbers out of range), and is a request, never a setting.
type ImageConfig struct {
	User, WorkingDir, StopSignal string
	Env, Entrypoint, Cmd         []string
	Labels                       map[string]string
	Volumes                      []string // sorted
}

func (c ImageConfig) clone() ImageConfig {
	c.Env, c.Entrypoint, c.Cmd, c.Volumes = slices.Clone(c.Env), slices.Clone(c.Entrypoint), slices.Clone(c.Cmd), slices.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	return c
}

// wireConfig is an image's config as it stands in JSON (image-spec config.md; Docker's has the same fields).
type wireConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
	Config       *struct {
		User       string              `json:"User"`
		WorkingDir string              `json:"WorkingDir"`
		StopSignal string              `json:"StopSignal"`
		Env        []string            `json:"Env"`
		Entrypoint []string            `json:"Entrypoint"`
		Cmd        []string            `json:"Cmd"`
		Labels     map[string]string   `json:"Labels"`
		Volumes    map[string]struct{} `json:"Volumes"`
	} `json:"config"`
	RootFS *struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []struct {
		EmptyLayer bool `json:"empty_layer"`
	} `json:"history"`
}

// parseConfig checks the bytes of a config.
func parseConfig(raw []byte) (wireConfig, ImageConfig, []digest.Digest, error) {
	var w wireConfig
	invalid := func(err error) (wireConfig, ImageConfig, []digest.Digest, error) {
		return w, ImageConfig{}, nil, fmt.Errorf("read image config: %w: %w", ErrInvalidImage, err)
	}
	if err := registry.CheckConfigJSON(raw); err != nil {
		return invalid(err)
	}
	if err := json.Unmarshal(raw, &w); err != nil {
		return invalid(err)
	}
	if w.RootFS == nil || w.RootFS.Type != "layers" {
		return invalid(fmt.Errorf("its rootfs is not of type layers"))
	}
	if len(w.RootFS.DiffIDs) > registry.MaxLayers {
		return invalid(fmt.Errorf("%d diff_ids are more than %d", len(w.RootFS.DiffIDs), registry.MaxLayers))
	}
	diffIDs := make([]digest.Digest, 0, len(w.RootFS.DiffIDs))
	for _, s := range w.RootFS.DiffIDs {
		d, err := reference.ParseDiffID(s)
		if err != nil {
			return invalid(fmt.Errorf("diff_ids: %w", err))
		}
		diffIDs = append(diffIDs, d)
	}
	filled := 0
	for _, h := range w.History {
		if !h.EmptyLayer {
			filled++
		}
	}
	if filled > len(diffIDs) { // fewer are common: tools that add layers do not write history for those before
		return invalid(fmt.Errorf("its history tells of %d layers, diff_ids of %d", filled, len(diffIDs)))
	}
	config, err := w.image()
	if err != nil {
		return invalid(err)
	}
	return w, config, diffIDs, nil
}

// image takes the part that describes processes, within bounds.
func (w wireConfig) image() (ImageConfig, error) {
	if w.Config == nil {
		return ImageConfig{}, nil
	}
	c := ImageConfig{
		User: w.Config.User, WorkingDir: w.Config.WorkingDir, StopSignal: w.Config.StopSignal,
		Env: w.Config.Env, Entrypoint: w.Config.Entrypoint, Cmd: w.Config.Cmd, Labels: w.Config.Labels,
		Volumes: slices.Sorted(maps.Keys(w.Config.Volumes)),
	}
	labels := make([]string, 0, len(c.Labels))
	for k, v := range c.Labels {
		labels = append(labels, k+v)
	}
	for name, list := range map[string][]string{
		"User": {c.User}, "WorkingDir": {c.WorkingDir}, "StopSignal": {c.StopSignal},
		"Env": c.Env, "Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "Labels": labels, "Volumes": c.Volumes,
	} {
		size := 0
		for _, s := range list {
			size += len(s)
		}
		if len(list) > maxConfigEntries || size > maxConfigString {
			return ImageConfig{}, fmt.Errorf("%s has more than %d entries or %d bytes", name, maxConfigEntries, maxConfigString)
		}
	}
	return c, nil
}
