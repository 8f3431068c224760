// Command fakeplugin is a CNI plugin for tests: it does what a script says, see cnitest.PluginConf.
package main

import (
	"os"

	"github.com/berthd/berth/cni/cnitest"
)

func main() { os.Exit(cnitest.Plugin()) }
