package main

import (
	"bytes"
	"fmt"
	"go/ast"
)

// The budgets. Raise one only with the reason in the commit.
const (
	fileSoft   = 350 // lines
	fileHard   = 500 // lines
	funcLines  = 80
	ifaceSize  = 8  // methods
	funcParams = 5  // then a struct
	structSize = 15 // fields
)

func checkBudgets(s *source) []finding {
	var found []finding
	add := func(n ast.Node, format string, args ...any) {
		found = append(found, finding{where: s.at(n.Pos()), text: fmt.Sprintf(format, args...)})
	}
	if lines := bytes.Count(s.text, []byte("\n")); !s.isTest() && lines > fileSoft {
		found = append(found, finding{where: s.path, text: fmt.Sprintf("%d lines, the budget is %d (hard limit %d)", lines, fileSoft, fileHard),
			note: lines <= fileHard})
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			lines := s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
			if !s.isTest() && lines > funcLines {
				add(n, "func %s has %d lines, the budget is %d", n.Name.Name, lines, funcLines)
			}
		case *ast.FuncType:
			if c := count(n.Params); c > funcParams {
				add(n, "%d parameters, the budget is %d: use a struct", c, funcParams)
			}
			for _, f := range n.Params.List {
				if isBool(f.Type) {
					add(f, "bool parameter: give the two things two names")
				}
			}
		case *ast.InterfaceType:
			if c := count(n.Methods); c > ifaceSize {
				add(n, "interface of %d methods, the budget is %d", c, ifaceSize)
			}
		case *ast.StructType:
			if c := count(n.Fields); c > structSize {
				add(n, "struct of %d fields, the budget is %d", c, structSize)
			}
		}
		return true
	})
	return found
}

// count counts names: "a, b int" is two, an embedded or unnamed field is one.
func count(l *ast.FieldList) int {
	if l == nil {
		return 0
	}
	n := 0
	for _, f := range l.List {
		n += max(1, len(f.Names))
	}
	return n
}

func isBool(e ast.Expr) bool {
	if v, ok := e.(*ast.Ellipsis); ok {
		e = v.Elt
	}
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "bool"
}
