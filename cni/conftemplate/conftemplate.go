package conftemplate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
)

// Render fills a template in.
func Render(text string, ranges []netip.Prefix) ([]byte, error) {
	trees, err := parse.Parse("template", text, "{{", "}}", map[string]any{})
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	e := evaluation{out: &out, root: fields(ranges)}
	if tree := trees["template"]; tree != nil && tree.Root != nil {
		if err := e.list(tree.Root, e.root); err != nil {
			return nil, err
		}
	}
	return []byte(out.String()), nil
}

// fields are what a template may name.
func fields(ranges []netip.Prefix) map[string]any {
	var cidrs, routes []string
	for _, r := range ranges {
		cidrs = append(cidrs, r.String())
		route := "0.0.0.0/0"
		if r.Addr().Is6() {
			route = "::/0"
		}
		if !slices.Contains(routes, route) {
			routes = append(routes, route)
		}
	}
	first := ""
	if len(cidrs) > 0 {
		first = cidrs[0]
	}
	return map[string]any{"PodCIDR": first, "PodCIDRRanges": cidrs, "Routes": routes}
}

// evaluation is one walk over a template. Values are string, int, []string and the map of the fields.
type evaluation struct {
	out  *strings.Builder
	root map[string]any
	vars []variable
}

type variable struct {
	name  string
	value any
}

func (e *evaluation) list(l *parse.ListNode, dot any) error {
	if l == nil {
		return nil
	}
	for _, n := range l.Nodes {
		if err := e.node(n, dot); err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluation) node(n parse.Node, dot any) error {
	switch n := n.(type) {
	case *parse.TextNode:
		e.out.Write(n.Text)
	case *parse.CommentNode:
	case *parse.ActionNode:
		value, err := e.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		if len(n.Pipe.Decl) > 0 {
			return e.set(n.Pipe, value)
		}
		switch value := value.(type) {
		case string:
			e.out.WriteString(value)
		case int:
			e.out.WriteString(strconv.Itoa(value))
		default:
			return unsupported(n, "the value is a list")
		}
	case *parse.IfNode:
		return e.branch(&n.BranchNode, dot, dot)
	case *parse.WithNode:
		value, err := e.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		return e.branch(&n.BranchNode, dot, value)
	case *parse.RangeNode:
		return e.each(n, dot)
	default:
		return unsupported(n, "")
	}
	return nil
}

// set gives a variable a value.
func (e *evaluation) set(p *parse.PipeNode, value any) error {
	name := p.Decl[0].Ident[0]
	if !p.IsAssign {
		e.vars = append(e.vars, variable{name, value})
		return nil
	}
	for i := len(e.vars) - 1; i >= 0; i-- {
		if e.vars[i].name == name {
			e.vars[i].value = value
			return nil
		}
	}
	return unsupported(p, "")
}

// branch takes one of the two lists; the first has its own dot.
func (e *evaluation) branch(n *parse.BranchNode, dot, inner any) error {
	defer e.leave(len(e.vars))
	value, err := e.pipe(n.Pipe, dot)
	if err != nil {
		return err
	}
	if len(n.Pipe.Decl) > 0 {
		if err := e.set(n.Pipe, value); err != nil {
			return err
		}
	}
	if isTrue(value) {
		return e.list(n.List, inner)
	}
	return e.list(n.ElseList, dot)
}

// each takes the list once for each string.
func (e *evaluation) each(n *parse.RangeNode, dot any) error {
	value, err := e.pipe(n.Pipe, dot)
	if err != nil {
		return err
	}
	all, is := value.([]string)
	if !is {
		return unsupported(n, "only a list has a range")
	}
	if len(all) == 0 {
		return e.list(n.ElseList, dot)
	}
	for i, one := range all {
		before := len(e.vars)
		switch decl := n.Pipe.Decl; len(decl) {
		case 1:
			e.vars = append(e.vars, variable{decl[0].Ident[0], one})
		case 2:
			e.vars = append(e.vars, variable{decl[0].Ident[0], i}, variable{decl[1].Ident[0], one})
		}
		err := e.list(n.List, one)
		e.leave(before)
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluation) leave(vars int) { e.vars = e.vars[:vars] }

// pipe is the value of what stands between the braces.
func (e *evaluation) pipe(p *parse.PipeNode, dot any) (any, error) {
	if len(p.Cmds) != 1 || len(p.Cmds[0].Args) != 1 {
		return nil, unsupported(p, "functions are not known")
	}
	switch n := p.Cmds[0].Args[0].(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.StringNode:
		return n.Text, nil
	case *parse.NumberNode:
		return int(n.Int64), nil
	case *parse.FieldNode:
		return field(n, dot, n.Ident)
	case *parse.VariableNode:
		if n.Ident[0] == "$" {
			return field(n, e.root, n.Ident[1:])
		}
		for i := len(e.vars) - 1; i >= 0; i-- {
			if e.vars[i].name == n.Ident[0] {
				return field(n, e.vars[i].value, n.Ident[1:])
			}
		}
	}
	return nil, unsupported(p, "")
}

// field goes down from a value.
func field(n parse.Node, value any, names []string) (any, error) {
	for _, name := range names {
		all, is := value.(map[string]any)
		if value, is = all[name]; !is {
			return nil, unsupported(n, "there are PodCIDR, PodCIDRRanges and Routes")
		}
	}
	return value, nil
}

func isTrue(value any) bool {
	switch value := value.(type) {
	case string:
		return value != ""
	case int:
		return value != 0
	case []string:
		return len(value) > 0
	}
	return value != nil
}

func unsupported(n parse.Node, why string) error {
	if why != "" {
		why = ": " + why
	}
	return fmt.Errorf("template: %s is not understood%s", n, why)
}
