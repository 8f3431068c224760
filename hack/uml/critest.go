package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/test/berthd"
)

// critestPackage is the suite that is not a package's tests.
const critestPackage = "./hack/critest"

// guestDir is where the guest finds the folder of what it executes.
const guestDir = "/run/uml"

func isCritest(suite string) bool { return strings.Fields(suite)[0] == critestPackage }

// possible leaves out what needs critest where that is not installed, and says so.
func possible(suites []string) []string {
	if _, err := exec.LookPath("critest"); err == nil {
		return suites
	}
	return slices.DeleteFunc(suites, func(suite string) bool {
		if isCritest(suite) {
			fmt.Printf("uml: left out, because critest is not on PATH: %s\n", suite)
		}
		return isCritest(suite)
	})
}

// sudo is for specs that load an AppArmor profile with it: in the guest everybody is root.
const sudo = "#!/bin/sh\nexec \"$@\"\n"

// buildCritest puts the program that runs critest into dir as "run", with its arguments. What it and critest need besides is beside dir.
func buildCritest(ctx context.Context, dir, suite, _ string) error {
	top, err := berthd.Top()
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	run, shared := filepath.Join(dir, "run"), filepath.Dir(dir)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags=grpcnotrace", "-o", run, critestPackage)
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", critestPackage, err, out)
	}
	programs := filepath.Join(shared, "programs")
	if _, err := os.Stat(programs); errors.Is(err, os.ErrNotExist) {
		if err := prepareCritest(ctx, run, top, shared, programs); err != nil {
			return err
		}
	}
	args := append([]string{"-show", "-programs", guestDir + "/programs"}, strings.Fields(suite)[1:]...)
	return errors.Join(os.WriteFile(filepath.Join(dir, "args"), []byte(strings.Join(args, "\n")), 0o644), os.WriteFile(filepath.Join(dir, "env"), nil, 0o644))
}

// prepareCritest makes what all runs of critest share.
func prepareCritest(ctx context.Context, run, top, shared, programs string) error {
	if err := os.Mkdir(programs, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, run, "-collect", programs)
	cmd.Dir = top
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("collect programs: %w\n%s", err, out)
	}
	critest, err := exec.LookPath("critest")
	if err != nil {
		return err
	}
	return errors.Join(copyProgram(critest, filepath.Join(shared, "critest")), os.WriteFile(filepath.Join(shared, "sudo"), []byte(sudo), 0o755))
}
