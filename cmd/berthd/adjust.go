package main

import (
	"github.com/berthd/berth/oci/adjust/cdi"
	"github.com/berthd/berth/oci/adjust/hooks"
	"github.com/berthd/berth/sandbox"
)

// adjustConfig is what changes containers besides their requests.
type adjustConfig struct {
	cdiDirs, hookDirs []string
}

// adjusters are in the order in which containers pass them.
func (c *adjustConfig) adjusters() []sandbox.Adjuster {
	all := []sandbox.Adjuster{&cdi.Devices{Folders: c.cdiDirs}}
	if len(c.hookDirs) > 0 {
		all = append(all, hooks.Folders(c.hookDirs))
	}
	return all
}
