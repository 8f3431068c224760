package main

import (
	"github.com/berthd/berth/oci/adjust/cdi"
	"github.com/berthd/berth/oci/adjust/classes"
	"github.com/berthd/berth/oci/adjust/hooks"
	"github.com/berthd/berth/oci/selinux"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox"
)

// adjustConfig is what changes containers besides their requests.
type adjustConfig struct {
	cdiDirs, hookDirs []string
	seLinux           bool
	blockIO           string
	plugins           pluginConfig
}

// readSELinux completes the facts about the host by what the configuration allows.
func (c *adjustConfig) readSELinux(facts *spec.Host) error {
	if !c.seLinux || !selinux.Enabled() {
		return nil
	}
	labels, err := selinux.Read("/")
	facts.SELinux = spec.SELinux{Enabled: true, Process: labels.Process, File: labels.File}
	return err
}

func (c *adjustConfig) devices() *cdi.Devices { return &cdi.Devices{Folders: c.cdiDirs} }

// adjusters are in the order in which containers pass them.
func (c *adjustConfig) adjusters(plugins *plugins) []sandbox.Adjuster {
	all := []sandbox.Adjuster{c.devices()}
	if plugins != nil {
		all = append(all, plugins)
	}
	if len(c.hookDirs) > 0 {
		all = append(all, hooks.Folders(c.hookDirs))
	}
	return append(all, classes.BlockIO(c.blockIO), classes.Service(classes.Resctrl))
}
