package main

import (
	"os"
	"strings"
	"testing"
)

func TestReadFindsFailures(t *testing.T) {
	path := t.TempDir() + "/out"
	write(t, path, "noise\n[FAIL] early\nS [SKIPPED] [0.001 seconds]\n  [SKIPPED] The kernel lacks it\n  [SKIPPED] runtime has none\n  [SKIPPED] in [BeforeEach] - pkg/x.go:1\nSummarizing 1 Failure:\n  \x1b[38;5;9m[FAIL]\x1b[0m [k8s.io] Container x\nRan 2 of 3 Specs in 1 seconds\nFAIL! -- 1 Passed | 1 Failed\n")
	res, err := read(path)
	if err != nil || res.summary != "FAIL! -- 1 Passed | 1 Failed" || len(res.failed) != 1 || res.failed[0] != "[FAIL] [k8s.io] Container x" ||
		len(res.skipped) != 2 {
		t.Errorf("read = %+v, %v", res, err)
	}
	write(t, path, "killed\n")
	if res, _ := read(path); res.summary == "" {
		t.Error("a run without an end has no summary")
	}
}

func TestArgumentsHaveTheFlagsOfTheRound(t *testing.T) {
	r := &runner{skip: "x", handler: "runc"}
	args := strings.Join(r.arguments(round{seed: 7, focus: "y", flags: webSocketFlags}), " ")
	for _, want := range append([]string{"--ginkgo.seed 7", "--ginkgo.focus y", "--ginkgo.skip x", "--runtime-handler runc"}, webSocketFlags...) {
		if !strings.Contains(args, want) {
			t.Errorf("%q is not in %q", want, args)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
