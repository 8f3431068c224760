// Command lint holds the tree against the project's own rules and prints one line a breach:
//
//	go run ./hack/lint [-bin DIR]
//
// # Rules
//
// Budgets (budgets.go): a file has at most 500 lines (a note from 350 on), a function 80, an interface 8 methods, a
// function type 5 parameters, a struct 15 fields, and no parameter is a bool. Files that end in _test.go may be longer and
// may have longer functions. Import order and package names (imports.go): every rule stands in one table beside its
// reason. Texts (texts.go): gofmt, no path of one machine in a tracked file, no unfinished work. Manual pages (man.go):
// each option that a binary prints with --help is in its page, and the other way round; needs -bin. Features
// (features.go): docs/features.md has each feature, and what berth has of them names a test that there is. Last, go vet, and a build for
// arm64, on which no test runs.
//
// # Exit status
//
// 0 if nothing was found, 1 if something was, 2 if the tree could not be read.
package main
