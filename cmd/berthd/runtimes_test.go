package main

import (
	"context"
	"strings"
	"testing"

	"github.com/berthd/berth/oci/runtime"
)

func TestRuntimes(t *testing.T) {
	c, err := readConfig(write(t, `
[runtime]
default = "runc"
[runtimes.runc]
type = "oci"
path = "/usr/sbin/../sbin/runc"
options = ["--debug"]
[runtimes.quick]
type = "native"
`))
	if err != nil {
		t.Fatal(err)
	}
	placeRuntimes(c.runtimes, "/s")
	runc := c.runtimes["runc"]
	if runc == nil || runc.Path != "/usr/sbin/runc" || runc.Root != "/s/runtimes/runc" || c.runtimes[""] != runc {
		t.Errorf("runc = %+v, default = %+v", runc, c.runtimes[""])
	}
	for _, name := range []string{"berth", "quick"} {
		if program, known := c.runtimes[name]; !known || program != nil {
			t.Errorf("%s = %+v, %t, want the native engine", name, program, known)
		}
	}
	all := c.handlers(context.Background(), runtime.Features{})
	if len(all) != 4 || all[0].Name != "" {
		t.Errorf("handlers = %+v, want four, the default one first", all)
	}
	c, err = readConfig(write(t, ""))
	if program, known := c.runtimes[""]; err != nil || !known || program != nil {
		t.Errorf("without configuration the default is %+v, %t, %v", program, known, err)
	}
}

func TestRuntimesThatAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"[runtimes.Runc]\ntype = \"oci\"\npath = \"/r\"":                         "not a handler's name",
		"[runtimes.berth]\ntype = \"oci\"\npath = \"/r\"":                        "built-in",
		"[runtimes.r]\ntype = \"vm\"\npath = \"/r\"":                             "runtimes.r.type",
		"[runtimes.r]\npath = \"/r\"":                                            "runtimes.r.type",
		"[runtimes.r]\ntype = \"oci\"":                                           "runtimes.r.path",
		"[runtimes.r]\ntype = \"oci\"\npath = \"runc\"":                          "runtimes.r.path",
		"[runtimes.r]\ntype = \"native\"\npath = \"/r\"":                         "has no path",
		"[runtimes.r]\ntype = \"oci\"\npath = \"/r\"\noptions = [\"a\"]":         "runtimes.r.options",
		"[runtimes.r]\ntype = \"oci\"\npath = \"/r\"\nroot = \"/x\"":             "unknown key runtimes.r.root",
		"[runtimes.r]\ntype = \"oci\"\npath = \"/r\"\noptions = [\"--root=/x\"]": "berthd's to say",
		"[runtime]\ndefault = \"none\"":                                          "runtime.default",
	} {
		if _, err := readConfig(write(t, text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want an error with %q", text, err, says)
		}
	}
}
