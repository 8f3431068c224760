package cri

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
)

func TestVersion(t *testing.T) {
	w := newWorld(t)
	v, err := w.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.GetVersion() != "0.1.0" || v.GetRuntimeName() != "berth" || v.GetRuntimeVersion() != "0.0.1-test" || v.GetRuntimeApiVersion() != "v1" {
		t.Errorf("Version = %v", v)
	}
}

func TestStatusHasBothConditions(t *testing.T) {
	w := newWorld(t)
	for _, err := range []error{nil, errors.New("no bridge at http://u:SECRET@x/y")} {
		w.network.err = err
		s, callErr := w.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if callErr != nil {
			t.Fatal(callErr)
		}
		conditions := map[string]*runtimeapi.RuntimeCondition{}
		for _, c := range s.GetStatus().GetConditions() {
			conditions[c.GetType()] = c
		}
		if !conditions["RuntimeReady"].GetStatus() {
			t.Error("RuntimeReady is false")
		}
		n := conditions["NetworkReady"]
		if n.GetStatus() != (err == nil) {
			t.Errorf("NetworkReady = %v with %v", n.GetStatus(), err)
		}
		if err != nil && (n.GetReason() != "NetworkPluginNotReady" || n.GetMessage() != "no bridge at http://x/y") {
			t.Errorf("condition = %v", n)
		}
		if s.GetInfo() != nil {
			t.Error("information without verbose")
		}
		if len(s.GetRuntimeHandlers()) != 2 || !s.GetFeatures().GetSupplementalGroupsPolicy() {
			t.Errorf("handlers %v, features %v", s.GetRuntimeHandlers(), s.GetFeatures())
		}
	}
}

func TestWarningsAreConditionsThatHold(t *testing.T) {
	w := newWorld(t)
	w.network.warnings = []Warning{{Type: "NoIPv6", Message: "Pods get no IPv6 address"}}
	s, err := w.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	last := s.GetStatus().GetConditions()[2]
	if last.GetType() != "NoIPv6" || !last.GetStatus() || last.GetMessage() == "" {
		t.Errorf("condition = %v", last)
	}
}

func TestHandlersThatCannotBeUsed(t *testing.T) {
	missing := func(context.Context) error {
		return errors.New("look at runtime: stat /opt/runc: no such file or directory")
	}
	w := newWorld(t, func(c *Config) {
		c.Handlers = []Handler{{Name: ""}, {Name: "berth"}, {Name: "runc", Problem: missing}, {Name: "fine", Problem: func(context.Context) error { return nil }}}
	})
	s, err := w.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range s.GetRuntimeHandlers() {
		names = append(names, h.GetName())
	}
	conditions := s.GetStatus().GetConditions()
	if !slices.Equal(names, []string{"", "berth", "fine"}) || !conditions[0].GetStatus() {
		t.Errorf("handlers %q, %v, want those that work, ready", names, conditions[0])
	}
	if c := conditions[2]; c.GetType() != "HandlersMissing" || !c.GetStatus() || !strings.Contains(c.GetMessage(), "runc (look at runtime: stat /opt/runc") {
		t.Errorf("condition = %v", c)
	}
	w = newWorld(t, func(c *Config) {
		c.Handlers = []Handler{{Name: "", Problem: missing}, {Name: "berth"}, {Name: "runc", Problem: missing}}
	})
	if s, err = w.runtime.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if c := s.GetStatus().GetConditions()[0]; c.GetType() != "RuntimeReady" || c.GetStatus() || c.GetReason() == "" || !strings.Contains(c.GetMessage(), "/opt/runc") {
		t.Errorf("condition = %v, want not ready", c)
	}
	if h := s.GetRuntimeHandlers(); len(h) != 1 || h[0].GetName() != "berth" {
		t.Errorf("handlers = %v, want berth alone", h)
	}
}

func TestVerboseStatusIsJSON(t *testing.T) {
	w := newWorld(t)
	w.images.pulls = []imageservice.Progress{{Ref: "r"}}
	s, err := w.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"config", "pulls"} {
		if !json.Valid([]byte(s.GetInfo()[key])) {
			t.Errorf("info[%q] = %q", key, s.GetInfo()[key])
		}
	}
}

func TestRuntimeConfigNamesTheCgroupDriver(t *testing.T) {
	for _, driver := range []runtimeapi.CgroupDriver{runtimeapi.CgroupDriver_CGROUPFS, runtimeapi.CgroupDriver_SYSTEMD} {
		w := newWorld(t, func(c *Config) { c.CgroupDriver = driver })
		c, err := w.runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || c.GetLinux().GetCgroupDriver() != driver {
			t.Errorf("RuntimeConfig = %v, %v", c, err)
		}
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	w := newWorld(t)
	update := func(cidr string) error {
		_, err := w.runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	if err := update(""); err != nil || w.network.ranges != nil {
		t.Errorf("without a range: %v, %v", err, w.network.ranges)
	}
	if err := update("10.0.0.0/24, fd00::/64"); err != nil || len(w.network.ranges) != 2 || w.network.ranges[1].String() != "fd00::/64" {
		t.Errorf("with two ranges: %v, %v", err, w.network.ranges)
	}
	for _, bad := range []string{"10.0.0.0", ",", "10.0.0.0/24,10.0.0.0/24", "10.0.0.0/99", strings.Repeat("10.0.0.0/24,", 1000)} {
		if err := update(bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("UpdateRuntimeConfig(%.40q) = %v, want InvalidArgument", bad, err)
		}
	}
	w.network.err = errors.New("no such template")
	if err := update("10.0.0.0/24"); status.Code(err) == codes.OK || !strings.Contains(err.Error(), "no such template") {
		t.Errorf("UpdateRuntimeConfig = %v, want the network's error", err)
	}
}
