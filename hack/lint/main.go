package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// finding is one breach of one rule, or a note that does not fail the run.
type finding struct {
	where string // file:line or package
	text  string
	note  bool
}

// source is one parsed Go file.
type source struct {
	path string // relative to the top of the tree
	text []byte
	fset *token.FileSet
	file *ast.File
}

func (s *source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(p).Line)
}

func (s *source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func main() {
	bin := flag.String("bin", "", "folder of the built binaries, to compare --help with the manual pages")
	top := flag.String("top", ".", "top of the tree")
	write := flag.Bool("write", false, "bring the manual page of the configuration up to date, and check nothing")
	flag.Parse()
	if *write {
		if err := writeKeys(*top, filepath.Join(*bin, "berthd")); err != nil {
			fmt.Fprintln(os.Stderr, "lint:", err)
			os.Exit(2)
		}
		return
	}
	findings, err := lint(*top, *bin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(2)
	}
	breaches := 0
	for _, f := range findings {
		if f.note {
			fmt.Printf("note: %s: %s\n", f.where, f.text)
			continue
		}
		breaches++
		fmt.Printf("%s: %s\n", f.where, f.text)
	}
	if breaches > 0 {
		fmt.Printf("lint: %d breaches\n", breaches)
		os.Exit(1)
	}
	fmt.Println("lint: clean")
}

// lint runs every rule over the tree at top. An empty bin leaves out the manual pages.
func lint(top, bin string) ([]finding, error) {
	paths, err := files(top)
	if err != nil {
		return nil, err
	}
	var all []finding
	tests := testSet{}
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Join(top, path))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, checkText(path, text)...)
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			all = append(all, finding{where: path, text: err.Error()})
			continue
		}
		s := &source{path: path, text: text, fset: fset, file: file}
		tests.add(s)
		all = append(all, checkBudgets(s)...)
		all = append(all, checkImports(s)...)
	}
	all = append(all, checkFeatures(top, tests)...)
	all = append(all, checkMonitor(top)...)
	all = append(all, checkGo(top, runtime.GOARCH, "vet", "./...")...)
	all = append(all, checkGo(top, "arm64", "build", "./...")...)
	if bin != "" {
		all = append(all, checkManuals(top, bin)...)
	}
	slices.SortStableFunc(all, func(a, b finding) int { return cmp.Compare(a.where, b.where) })
	return all, nil
}

// files lists what git tracks or would track; without git, everything but hidden and built folders.
func files(top string) ([]string, error) {
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	cmd.Dir = top
	if out, err := cmd.Output(); err == nil {
		return slices.Compact(strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })), nil
	}
	var paths []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		if d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || rel == "bin") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			paths = append(paths, rel)
		}
		return nil
	})
	return paths, err
}

// checkGo runs a go command for an architecture, and takes each line that it prints for a finding.
func checkGo(top, arch string, args ...string) []finding {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	where := "go " + args[0] + " for " + arch
	var found []finding
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			found = append(found, finding{where: where, text: line})
		}
	}
	return append(found, finding{where: where, text: err.Error()})
}
