package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Version is the kubelet's, and staging that of the modules which its own module requires as v0.0.0.
const (
	Version = "v1.36.3"
	staging = "v0.36.3"
)

const program = "k8s.io/kubernetes/cmd/kubelet"

// Build returns the path of a kubelet, which it compiles if the cache folder has none: some minutes, and 1 GiB of modules and compiled
// packages in Go's own folders. Builds at the same time wait for each other.
func Build(ctx context.Context) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("build the kubelet: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build of the kubelet: %w", err)
	}
	path := filepath.Join(dir, "kubelet")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	module, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", fmt.Errorf("build the kubelet: %w", err)
	}
	defer os.RemoveAll(module)
	if err := writeModule(ctx, module); err != nil {
		return "", err
	}
	const stamp = "-X k8s.io/component-base/version."
	flags := "-s -w " + stamp + "gitVersion=" + Version + " " + stamp + "gitMajor=1 " + stamp + "gitMinor=36"
	if _, err := run(ctx, module, "nice", "go", "build", "-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", "kubelet", program); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(module, "kubelet"), path); err != nil {
		return "", fmt.Errorf("keep the kubelet: %w", err)
	}
	return path, nil
}

// cacheDir is where one version's program is kept.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir() // no HOME: a build environment without a user
	}
	dir := filepath.Join(base, "berth-kubelet", strings.Join([]string{Version, runtime.Version(), runtime.GOARCH}, "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the kubelet's cache folder: %w", err)
	}
	return dir, nil
}

// writeModule writes a go.mod that requires Kubernetes and replaces its staging modules, which in its own repository are folders, by their
// published versions. Go adds everything else, and checks all of it against the checksum database.
func writeModule(ctx context.Context, dir string) error {
	mod := filepath.Join(dir, "go.mod")
	text := "module kubelet\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes " + Version + "\n\n"
	if err := os.WriteFile(mod, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the kubelet's module: %w", err)
	}
	var kubernetes struct{ GoMod string }
	if err := goJSON(ctx, dir, &kubernetes, "mod", "download", "-json", "k8s.io/kubernetes@"+Version); err != nil {
		return err
	}
	var requires struct {
		Require []struct{ Path, Version string }
	}
	if err := goJSON(ctx, dir, &requires, "mod", "edit", "-json", kubernetes.GoMod); err != nil {
		return err
	}
	for _, r := range requires.Require {
		if r.Version == "v0.0.0" {
			text += fmt.Sprintf("replace %s => %s %s\n", r.Path, r.Path, staging)
		}
	}
	if err := os.WriteFile(mod, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the kubelet's module: %w", err)
	}
	return nil
}

func goJSON(ctx context.Context, dir string, into any, args ...string) error {
	out, err := run(ctx, dir, "go", args...)
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		return fmt.Errorf("go %s: %w", args[0], err)
	}
	return nil
}

func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var out, diagnosis bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &diagnosis
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, diagnosis.Bytes())
	}
	return out.Bytes(), nil
}
