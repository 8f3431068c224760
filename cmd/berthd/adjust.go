package main

import (
	"context"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
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
	noAppArmor        bool
	blockIO           string
	plugins           pluginConfig
	devicePolicy      spec.DevicePolicy
}

// complete completes the facts about the host by what the configuration allows.
func (c *adjustConfig) complete(facts *spec.Host) error {
	facts.DevicePolicy = c.devicePolicy
	if c.noAppArmor {
		facts.AppArmor = spec.AppArmor{}
	}
	if !c.seLinux || !selinux.Enabled() {
		return nil
	}
	labels, err := selinux.Read("/")
	facts.SELinux = spec.SELinux{Enabled: true, Process: labels.Process, File: labels.File}
	return err
}

func (c *adjustConfig) devices() *cdi.Devices { return &cdi.Devices{Folders: c.cdiDirs} }

// setDevices parses devices for all containers: a path on the host, which may be followed by one in the container and by permissions.
func setDevices(c *config, list []string) error {
	c.adjust.devicePolicy.ForAll = nil
	for _, text := range list {
		parts := strings.Split(text, ":")
		d := &runtimeapi.Device{HostPath: parts[0], ContainerPath: parts[0], Permissions: "rwm"}
		if len(parts) > 1 && parts[1] != "" {
			d.ContainerPath = parts[1]
		}
		if len(parts) > 2 {
			d.Permissions = parts[2]
		}
		if len(parts) > 3 {
			return fmt.Errorf("%q is not HOST, HOST:CONTAINER or HOST:CONTAINER:PERMISSIONS", text)
		}
		if err := spec.CheckDevice(d); err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
		c.adjust.devicePolicy.ForAll = append(c.adjust.devicePolicy.ForAll, d)
	}
	return nil
}

// adjusters are in the order in which containers pass them.
func (c *adjustConfig) adjusters(plugins *plugins) []sandbox.Adjuster {
	all := []sandbox.Adjuster{c.devices(), classes.BlockIO(c.blockIO)}
	if plugins != nil {
		all = append(all, plugins)
	}
	if len(c.hookDirs) > 0 {
		all = append(all, hooks.Folders(c.hookDirs))
	}
	return append(all, classes.Service(classes.Resctrl))
}

// blockIOClass gives a container a class that its request does not name.
func (c *adjustConfig) blockIOClass(ctx context.Context, container *adjust.Container, class string) error {
	asked := *container
	asked.Config = &runtimeapi.ContainerConfig{Metadata: container.Config.GetMetadata(), Annotations: map[string]string{classes.BlockIOAnnotation: class}}
	return classes.BlockIO(c.blockIO).Adjust(ctx, &asked)
}
