package main

import (
	"fmt"
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// featuresPage says what berth has of a fixed list of features, each with a number, and by which test that is shown.
const featuresPage = "docs/features.md"

// featuresCount is how many there are.
const featuresCount = 125

// testName is how the page names a test: `sandbox/cgroup.TestLimits`.
var testName = regexp.MustCompile("`([a-z0-9_/]+)\\.(Test[A-Za-z0-9_]+)`")

// testSet is the tests of the tree: FOLDER.NAME.
type testSet map[string]bool

func (t testSet) add(s *source) {
	if !s.isTest() {
		return
	}
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
			t[path.Dir(s.path)+"."+f.Name.Name] = true
		}
	}
}

// checkFeatures holds the page against the tests that there are.
func checkFeatures(top string, tests testSet) []finding {
	text, err := os.ReadFile(filepath.Join(top, featuresPage))
	if err != nil {
		return []finding{{where: featuresPage, text: err.Error()}}
	}
	return featureFindings(string(text), tests)
}

func featureFindings(text string, tests testSet) (found []finding) {
	line, next := 0, 1
	add := func(format string, args ...any) {
		found = append(found, finding{where: place(featuresPage, line), text: fmt.Sprintf(format, args...)})
	}
	for row := range strings.Lines(text) {
		line++
		cells := strings.Split(strings.TrimSpace(row), "|")
		if len(cells) < 2 {
			continue
		}
		number, err := strconv.Atoi(strings.TrimSpace(cells[1]))
		if err != nil {
			continue // a heading
		}
		if len(cells) != 6 {
			add("feature %d has %d columns, not 4", number, len(cells)-2)
			continue
		}
		if number != next {
			add("feature %d where %d is due", number, next)
		}
		next = number + 1
		has, shown := strings.TrimSpace(cells[3]), strings.TrimSpace(cells[4])
		named := testName.FindAllStringSubmatch(shown, -1)
		for _, n := range named {
			if !tests[n[1]+"."+n[2]] {
				add("feature %d: there is no test %s in %s", number, n[2], n[1])
			}
		}
		switch {
		case has != "yes" && has != "part" && has != "no":
			add("feature %d: berth has it: %q, not yes, part or no", number, has)
		case has != "no" && len(named) == 0:
			add("feature %d: no test shows it", number)
		case has == "no" && shown == "":
			add("feature %d: no reason", number)
		}
	}
	if next != featuresCount+1 {
		add("the last feature is %d, not %d", next-1, featuresCount)
	}
	return found
}
