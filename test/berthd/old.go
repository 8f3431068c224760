package berthd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoHistory means that the repository has no such commit, and could not get it: the tree is no clone, or a shallow one.
var ErrNoHistory = errors.New("the commit is not in the repository's history")

// BuildAt builds berthd and its monitor of a commit of this repository into dir, and returns the folder that holds them.
func BuildAt(ctx context.Context, dir, commit string) (string, error) {
	top, err := Top()
	if err != nil {
		return "", err
	}
	if err := fetch(ctx, top, commit); err != nil {
		return "", err
	}
	source, bin := filepath.Join(dir, "source"), filepath.Join(dir, "bin")
	if err := os.MkdirAll(source, 0o755); err != nil {
		return "", fmt.Errorf("build commit %s: %w", commit, err)
	}
	archive := source + ".tar"
	for _, c := range []*exec.Cmd{
		git(ctx, top, "archive", "--format=tar", "--output="+archive, commit),
		exec.CommandContext(ctx, "tar", "-x", "-f", archive, "-C", source),
		exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin+"/", "./cmd/berthd", "./cmd/berth-monitor"),
	} {
		if c.Args[0] == "go" {
			c.Dir, c.Env = source, append(os.Environ(), "CGO_ENABLED=0")
		}
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build commit %s: %s: %w\n%s", commit, c.Args[0], err, out)
		}
	}
	return bin, errors.Join(os.RemoveAll(source), os.Remove(archive))
}

// fetch gets the commit if it is not here.
func fetch(ctx context.Context, top, commit string) error {
	has := func() error { return git(ctx, top, "cat-file", "-e", commit+"^{commit}").Run() }
	if has() == nil {
		return nil
	}
	// Not every server hands out a commit by its name; then the whole history is asked for.
	out, err := git(ctx, top, "fetch", "--quiet", "--depth=1", "origin", commit).CombinedOutput()
	if err != nil || has() != nil {
		out, err = git(ctx, top, "fetch", "--quiet", "--unshallow", "origin").CombinedOutput()
	}
	if err != nil || has() != nil {
		return fmt.Errorf("%w: %s (git fetch: %v: %s)", ErrNoHistory, commit, err, bytes.TrimSpace(out))
	}
	return nil
}

// git runs in the repository, also when that belongs to another user than root, who runs the tests.
func git(ctx context.Context, top string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", top, "-c", "safe.directory=*"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
	return cmd
}
