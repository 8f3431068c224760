package integration_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/containerd/nri/pkg/api"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/images"
)

func TestMain(m *testing.M) {
	if os.Getenv(pluginRole) != "" || os.Getenv(api.PluginNameEnvVar) != "" {
		bePlugin()
	}
	harness.Main(m)
}

type ocispecConfig = ocispec.ImageConfig

func imageConfig(change func(*ocispecConfig)) ocispec.ImageConfig {
	var c ocispec.ImageConfig
	change(&c)
	return c
}

// cgroupFile finds a file of a cgroup by its v1 controller and name, or by the unified hierarchy's name.
func cgroupFile(t testing.TB, path, controller, v1, v2 string) string {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return filepath.Join("/sys/fs/cgroup", path, v2)
	}
	return filepath.Join("/sys/fs/cgroup", controller, path, v1)
}

// cgroupOf is the container's cgroup, as its first process sees it from the host.
func cgroupOf(c *harness.Container, controller string) string {
	c.T.Helper()
	for line := range strings.Lines(c.Host("cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == controller || f[1] == "" && isUnified() {
			return f[2]
		}
	}
	c.T.Fatalf("no cgroup of %s in %s", controller, c.Host("cgroup"))
	return ""
}

func isUnified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func namespace(t testing.TB, pid, name string) string {
	t.Helper()
	target, err := os.Readlink("/proc/" + pid + "/ns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

type builder = images.Builder

// registrytestLayer makes a layer.
func registrytestLayer(t testing.TB, fill func(*builder)) registrytest.Layer {
	t.Helper()
	b := images.NewBuilder()
	fill(b)
	layer, err := b.Layer()
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func mustBusybox(t testing.TB) string {
	t.Helper()
	path, err := images.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// expected tells whether an error is what the state of an object explains.
func expected(err error) bool {
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.NotFound:
		return true
	}
	return false
}
