package berthd

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Isolate completes a configuration so that its daemon takes nothing that stands on this host for another: plugins of the node, which it would
// start, and CDI specifications are looked for in dir. A test's own plugins have the time that they need on a busy machine. What the configuration says of
// them by itself stays.
func Isolate(config, dir string) string {
	for _, own := range []struct{ table, key, value string }{
		{"nri", "plugin_path", fmt.Sprintf("%q", filepath.Join(dir, "nri"))},
		{"nri", "plugin_config_path", fmt.Sprintf("%q", filepath.Join(dir, "nri.conf"))},
		{"cdi", "spec_dirs", fmt.Sprintf("[%q]", filepath.Join(dir, "cdi"))},
		{"nri", "plugin_registration_timeout", `"20s"`}, {"nri", "plugin_synchronization_timeout", `"20s"`}, {"nri", "plugin_request_timeout", `"20s"`},
	} {
		header, line := "["+own.table+"]\n", own.key+" = "
		if !strings.Contains("\n"+config, "\n"+header) {
			config = header + "\n" + config
		}
		if !strings.Contains(config, "\n"+line) {
			config = strings.Replace(config, header, header+line+own.value+"\n", 1)
		}
	}
	return config
}
