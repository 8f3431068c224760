package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

func parse(t *testing.T, path, text string) *source {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return &source{path: path, text: []byte(text), fset: fset, file: file}
}

func TestBudgets(t *testing.T) {
	long := strings.Repeat("\n", 90)
	for _, tc := range []struct{ name, path, text, want string }{
		{"within", "cni/a.go", "package cni\nfunc f(a, b, c, d, e int) {}\n", ""},
		{"six parameters", "cni/a.go", "package cni\nfunc f(a, b, c, d, e, f int) {}\n", "6 parameters"},
		{"bool", "cni/a.go", "package cni\nfunc f(force bool) {}\n", "bool parameter"},
		{"bools", "cni/a.go", "package cni\nfunc f(force ...bool) {}\n", "bool parameter"},
		{"method of an interface", "cni/a.go", "package cni\ntype i interface{ f(bool) }\n", "bool parameter"},
		{"result", "cni/a.go", "package cni\nfunc f() (ok bool) { return }\n", ""},
		{"long function", "cni/a.go", "package cni\nfunc f() {" + long + "}\n", "func f has 91 lines"},
		{"long test", "cni/a_test.go", "package cni\nfunc f() {" + long + "}\n", ""},
		{"wide interface", "cni/a.go", "package cni\ntype i interface{ a(); b(); c(); d(); e(); f(); g(); h(); i() }\n", "9 methods"},
		{"wide struct", "cni/a.go", "package cni\ntype s struct{ a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p int }\n", "16 fields"},
		{"long file", "cni/a.go", "package cni\n" + strings.Repeat("\n", 500), "501 lines"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, checkBudgets(parse(t, tc.path, tc.text)), tc.want) })
	}
}

func TestImports(t *testing.T) {
	file := func(pkg, imported string) string { return fmt.Sprintf("package %s\nimport _ %q\n", pkg, imported) }
	for _, tc := range []struct{ name, path, text, want string }{
		{"down", "cri/a.go", file("cri", module+"/sandbox"), ""},
		{"up", "sandbox/a.go", file("sandbox", module+"/cri"), "sandbox must not import cri"},
		{"strangers", "sandbox/a.go", file("sandbox", module+"/imageservice"), "must not import imageservice"},
		{"strangers too", "imageservice/a.go", file("imageservice", module+"/sandbox"), "must not import sandbox"},
		{"own sub-package", "imageservice/a.go", file("imageservice", module+"/imageservice/layer"), ""},
		{"monitor", "sandbox/monitor/a.go", file("monitor", "google.golang.org/grpc/codes"), "must not import google.golang.org/grpc"},
		{"cri and cgroups", "cri/a.go", file("cri", module+"/sandbox/cgroup"), "cri must not import sandbox/cgroup"},
		{"similar name", "cni/a.go", file("cni", module+"/cnitools"), "must not import cnitools"},
		{"new top-level folder", "pkg/a.go", "package pkg\n", "no rule for this folder"},
		{"util", "sandbox/util/a.go", "package util\n", "package name util"},
		{"test", "sandbox/a_test.go", file("sandbox", module+"/imageservice"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, checkImports(parse(t, tc.path, tc.text)), tc.want) })
	}
}

func TestTexts(t *testing.T) {
	for _, tc := range []struct{ name, path, text, want string }{
		{"machine", "README.md", "see /" + "work/main\n", "one machine"},
		{"part of a path", "README.md", "upper/" + "work/x\n", ""},
		{"reminder", "a.md", "TO" + "DO: write\n", "unfinished"},
		{"reminder with an issue", "a.md", "TO" + "DO(#12): write\n", ""},
		{"format", "a.go", "package a\nvar  x = 1\n", "gofmt"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, checkText(tc.path, []byte(tc.text)), tc.want) })
	}
}

// expect wants one finding that contains want, or none if want is empty.
func expect(t *testing.T, found []finding, want string) {
	t.Helper()
	if want == "" {
		if len(found) > 0 {
			t.Errorf("found %v, want nothing", found)
		}
		return
	}
	for _, f := range found {
		if strings.Contains(f.text, want) && !f.note {
			return
		}
	}
	t.Errorf("found %v, want %q", found, want)
}

func TestFeatures(t *testing.T) {
	tests := testSet{}
	tests.add(parse(t, "test/a/a_test.go", "package a\nfunc TestOne(t *T) {}\nfunc (s) TestTwo() {}\nfunc helper() {}\n"))
	tests.add(parse(t, "test/a/a.go", "package a\nfunc TestThree() {}\n"))
	page := func(first string) string {
		var b strings.Builder
		b.WriteString("# Features\n\n| # | feature | berth | shown |\n|---|---|---|---|\n| | **RPCs** | | |\n" + first)
		for n := 2; n <= featuresCount; n++ {
			fmt.Fprintf(&b, "| %d | x | no | nobody asks for it |\n", n)
		}
		return b.String()
	}
	for _, tc := range []struct{ name, first, want string }{
		{"shown", "| 1 | x | yes | `test/a.TestOne` and critest |\n", ""},
		{"shown in part", "| 1 | x | part | no y: `test/a.TestOne` |\n", ""},
		{"no such test", "| 1 | x | yes | `test/a.TestOne`, `test/a.TestTwo` |\n", "there is no test TestTwo in test/a"},
		{"no test", "| 1 | x | yes | by hand |\n", "no test shows it"},
		{"no reason", "| 1 | x | no | |\n", "no reason"},
		{"no word", "| 1 | x | maybe | y |\n", "not yes, part or no"},
		{"left out", "", "feature 2 where 1 is due"},
		{"a column too many", "| 1 | x | no | a | b |\n| 1 | x | no | a |\n", "5 columns"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, featureFindings(page(tc.first), tests), tc.want) })
	}
}
