package main

import (
	"context"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/keyfile"
	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/adjust/nri"
	"github.com/berthd/berth/sandbox"
)

// pluginSocket is the plugins' socket in the state folder.
const pluginSocket = "nri.sock"

// pluginConfig is what the configuration says of plugins.
type pluginConfig struct {
	disable bool
	nri.Config
}

// pluginKeys are those of table nri.
var pluginKeys = []keyfile.Key[config]{
	{Name: "nri.disable", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.plugins.disable }), Doc: `
Without plugins: they cannot connect to STATE/nri.sock by the Node Resource Interface, and none are started.`},
	{Name: "nri.plugin_path", Default: nri.DefaultPluginPath, Set: path(func(c *config) *string { return &c.adjust.plugins.PluginPath }), Doc: `
Folder of plugins that berthd starts, programs with names like 10-name, before it serves the CRI.
It may be missing; a program with another name, or whose configuration cannot be read, is left out, and the log says so.`},
	{Name: "nri.plugin_config_path", Default: nri.DefaultConfigPath, Set: path(func(c *config) *string { return &c.adjust.plugins.ConfigPath }), Doc: `
Folder of the configuration of those plugins: 10-name.conf, or name.conf.`},
	{Name: "nri.plugin_registration_timeout", Default: nri.DefaultRegistrationTimeout.String(),
		Set: duration(func(c *config) *time.Duration { return &c.adjust.plugins.RegistrationTimeout }, time.Millisecond), Doc: `
How long a plugin may take to register once it has connected; one that takes longer is dropped.`},
	{Name: "nri.plugin_request_timeout", Default: nri.DefaultRequestTimeout.String(),
		Set: duration(func(c *config) *time.Duration { return &c.adjust.plugins.RequestTimeout }, time.Millisecond), Doc: `
How long a plugin may take to answer; one that takes longer is dropped, and what waited for it goes on without it, unless the plugin asked for another policy.
Pods and containers wait for plugins for so long.`},
	{Name: "nri.plugin_synchronization_timeout", Default: nri.DefaultSyncTimeout.String(),
		Set: duration(func(c *config) *time.Duration { return &c.adjust.plugins.SyncTimeout }, time.Millisecond), Doc: `
How long a plugin that joins may take to deal with the pods and containers that there are.
Pods and containers that are being made wait for it meanwhile.`},
	{Name: "nri.default_validator.enable", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.Enable }), Doc: `
The built-in validator refuses containers by what plugins adjusted of them.`},
	{Name: "nri.default_validator.reject_oci_hook_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectOCIHookAdjustment }), Doc: `
It refuses hooks.`},
	{Name: "nri.default_validator.reject_runtime_default_seccomp_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectRuntimeDefaultSeccompAdjustment }), Doc: `
It refuses another seccomp profile in the place of the default one.`},
	{Name: "nri.default_validator.reject_unconfined_seccomp_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectUnconfinedSeccompAdjustment }), Doc: `
It refuses a seccomp profile where the pod asks for none.`},
	{Name: "nri.default_validator.reject_custom_seccomp_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectCustomSeccompAdjustment }), Doc: `
It refuses another seccomp profile in the place of one that the pod names.`},
	{Name: "nri.default_validator.reject_namespace_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectNamespaceAdjustment }), Doc: `
It refuses other namespaces.`},
	{Name: "nri.default_validator.reject_sysctl_adjustment", Default: false,
		Set: onOff(func(c *config) *bool { return &c.adjust.plugins.Validator.RejectSysctlAdjustment }), Doc: `
It refuses kernel parameters.`},
	{Name: "nri.default_validator.required_plugins", Default: []string{},
		Set: set(func(c *config, v []string) error { c.adjust.plugins.Validator.RequiredPlugins = v; return nil }), Doc: `
It refuses containers that these plugins have not seen, which holds for static pods too.`},
	{Name: "nri.default_validator.tolerate_missing_plugins_annotation", Default: "",
		Set: set(func(c *config, v string) error { c.adjust.plugins.Validator.TolerateMissingAnnotation = v; return nil }), Doc: `
Annotation of pods that may do without required plugins.`},
}

// plugins are those of the node; nil: they are disabled.
type plugins struct{ *nri.Plugins }

// prepare makes what start starts.
func (all *adjustConfig) prepare(ctx context.Context, state string) *plugins {
	c := all.plugins
	if c.disable {
		return nil
	}
	logger := klog.FromContext(ctx)
	c.Devices, c.BlockIO = all.devices().Adjust, all.blockIOClass
	c.Version, c.Socket = version, filepath.Join(state, pluginSocket)
	c.Log = func(level nri.LogLevel, text string) {
		switch level {
		case nri.LogDebug:
			logger.V(4).Info("Heard of plugins", "what", text)
		case nri.LogInfo:
			logger.Info("Heard of plugins", "what", text)
		default:
			logger.Error(nil, "Heard of plugins", "what", text)
		}
	}
	return &plugins{nri.New(c.Config)}
}

func (p *plugins) told() sandbox.Plugins {
	if p == nil {
		return nil
	}
	return p
}

// start lets plugins connect. They see what there is.
func (p *plugins) start(runtime adjust.Runtime) error {
	if p == nil {
		return nil
	}
	return p.Start(runtime)
}

func (p *plugins) close(ctx context.Context) error {
	if p == nil {
		return nil
	}
	return p.Close(ctx)
}
