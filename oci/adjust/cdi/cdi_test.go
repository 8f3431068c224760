package cdi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
)

var update = flag.Bool("update", false, "write the golden files")

// plain is a container before its devices.
func plain() *adjust.Container {
	return &adjust.Container{Config: &runtimeapi.ContainerConfig{}, Spec: &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "LANG=C"}, User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{7}}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/etc/gpu", Type: "bind", Source: "/before", Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Devices: []specs.LinuxDevice{{Path: "/dev/gpu0", Type: "c", Major: 1, Minor: 3}}},
	}}
}

func name(names ...string) func(*adjust.Container) {
	return func(c *adjust.Container) {
		for _, n := range names {
			c.Config.CDIDevices = append(c.Config.CDIDevices, &runtimeapi.CDIDevice{Name: n})
		}
	}
}

var devices = Devices{Folders: []string{"testdata/none", "testdata/specs"}}

// The golden files tell what devices do to a container.
func TestDevicesGolden(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*adjust.Container)
	}{
		{"none", func(*adjust.Container) {}},
		{"one", name("vendor.test/gpu=one")},
		{"twice-and-annotated", func(c *adjust.Container) {
			name("vendor.test/gpu=one", "vendor.test/gpu=one")(c)
			c.Config.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "vendor.test/gpu=two,vendor.test/gpu=one", "other": "x"}
		}},
		{"rdt-and-net", name("vendor.test/gpu=rdt", "vendor.test/gpu=net")},
		{"no-device-rules", func(c *adjust.Container) {
			name("vendor.test/gpu=one")(c)
			c.Spec.Linux.Resources.Devices = nil
		}},
		{"user-namespace", func(c *adjust.Container) {
			name("vendor.test/gpu=one")(c)
			c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
			c.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 131072, Size: 65536}}
			c.Spec.Linux.GIDMappings = c.Spec.Linux.UIDMappings
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := plain()
			tc.change(c)
			if err := devices.Adjust(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			e := json.NewEncoder(&got)
			e.SetIndent("", "\t")
			if err := e.Encode(c.Spec); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tc.name+".json")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("not as in %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	broken := t.TempDir()
	if err := os.WriteFile(broken+"/b.yaml", []byte("cdiVersion: 1.1.0\nkind: vendor.test/other\ndevices: 7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		folders []string
		change  func(*adjust.Container)
		field   string // of an InvalidError
		says    []string
	}{
		{"unknown", devices.Folders, name("vendor.test/gpu=one", "vendor.test/gpu=seven"), field, []string{`"vendor.test/gpu=seven"`, "testdata/specs"}},
		{"no name", devices.Folders, name("gpu"), field, []string{`"gpu"`, "vendor.com/class=name"}},
		{"annotation", devices.Folders, func(c *adjust.Container) { c.Config.Annotations = map[string]string{"cdi.k8s.io/a": "x,y"} },
			"config.annotations[cdi.k8s.io/a]", []string{`"x"`}},
		{"broken", []string{broken}, name("vendor.test/other=one"), field, []string{`"vendor.test/other=one"`, broken + "/b.yaml"}},
		{"no folder", nil, name("vendor.test/gpu=one"), field, []string{"no folders"}},
		{"gone", devices.Folders, name("vendor.test/gpu=absent"), "", []string{"vendor.test/gpu=absent", "/dev/no-such-device-here"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := plain()
			tc.change(c)
			err := (&Devices{Folders: tc.folders}).Adjust(context.Background(), c)
			if err == nil {
				t.Fatal("no error")
			}
			if invalid := (*spec.InvalidError)(nil); errors.As(err, &invalid) != (tc.field != "") || tc.field != "" && invalid.Field != tc.field {
				t.Errorf("error %#v, want one about %q", err, tc.field)
			}
			for _, part := range tc.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

// Specifications that come, change and go count from the next container on.
func TestFoldersAreReadAnew(t *testing.T) {
	dir := t.TempDir()
	d := &Devices{Folders: []string{dir}}
	env := func() []string {
		c := plain()
		name("vendor.test/late=it")(c)
		if d.Adjust(t.Context(), c) != nil {
			return nil
		}
		return c.Spec.Process.Env[2:]
	}
	if got := env(); got != nil {
		t.Errorf("before: %q", got)
	}
	for _, value := range []string{"A=1", "B=2"} {
		text := `{"cdiVersion": "0.6.0", "kind": "vendor.test/late", "devices": [{"name": "it", "containerEdits": {"env": ["` + value + `"]}}]}`
		if err := os.WriteFile(dir+"/late.json", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := env(); !cmp.Equal(got, []string{value}) {
			t.Errorf("env %q, want %q", got, value)
		}
	}
}
