package berthd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build puts the project's binaries into dir and returns the folder that holds them: dir, or BERTH_BIN.
// More packages of the module may be named, to be built beside them.
func Build(dir string, packages ...string) (string, error) {
	bin := os.Getenv("BERTH_BIN")
	if bin == "" {
		bin = dir
		packages = append(packages, "./cmd/...")
	}
	if len(packages) == 0 {
		return bin, nil
	}
	top, err := Top()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-tags=grpcnotrace", "-ldflags", "-s -w", "-o", dir + "/"}, packages...)...)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %v: %w\n%s", packages, err, out)
	}
	return bin, nil
}

// Top is the folder of the module.
func Top() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", fmt.Errorf("find the module: no go.mod above the current folder")
		}
	}
}
