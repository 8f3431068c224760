package keyfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// settings is the configuration of the tests.
type settings struct {
	path  string
	size  int64
	on    bool
	list  []string
	kinds map[string]string
}

func put[T any](field func(*settings) *T, rule func(T) error) func(*settings, string, any) error {
	return func(s *settings, _ string, value any) error {
		*field(s) = value.(T)
		if rule != nil {
			return rule(value.(T))
		}
		return nil
	}
}

var table = Table[settings]{
	Keys: []Key[settings]{
		{Name: "a.path", Default: "", Doc: "A path.\nEmpty: none.", Set: put(func(s *settings) *string { return &s.path }, func(v string) error {
			if !filepath.IsAbs(v) {
				return fmt.Errorf("%q is not absolute", v)
			}
			return nil
		})},
		{Name: "a.size", Default: int64(7), Live: true, Doc: "A size.", Set: put(func(s *settings) *int64 { return &s.size }, nil)},
		{Name: "a.b.on", Default: true, Doc: "A switch.", Set: put(func(s *settings) *bool { return &s.on }, nil)},
		{Name: "a.list", Default: []string{"x", "y"}, Doc: "A list.", Live: true, Set: put(func(s *settings) *[]string { return &s.list }, nil)},
		{Name: "kinds.NAME.type", Default: "", Doc: "A kind.", Set: func(s *settings, name string, v any) error {
			if v == "" {
				return errors.New("want a type")
			}
			if s.kinds == nil {
				s.kinds = map[string]string{}
			}
			s.kinds[name] = v.(string)
			return nil
		}},
	},
	Rules: []func(*settings) error{func(s *settings) error {
		if s.size > 100 && s.on {
			return errors.Join(At("a.size", "too big to be on"), At("a.b.on", "on"))
		}
		return nil
	}},
}

// files writes a file and its drop-ins.
func files(t *testing.T, texts ...string) []string {
	t.Helper()
	main := filepath.Join(t.TempDir(), "c.toml")
	if err := os.MkdirAll(main+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	for i, text := range texts {
		path := main
		if i > 0 {
			path = filepath.Join(main+".d", fmt.Sprintf("%02d.toml", i))
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"x.toml.bak", ".hidden.toml", "readme"} { // nobody reads these
		if err := os.WriteFile(filepath.Join(main+".d", name), []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	drops, err := DropIns(main)
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{main}, drops...)
}

func TestLaterFilesWinKeyByKey(t *testing.T) {
	var s settings
	all := files(t, "[a]\nsize = 1\nlist = [\"m\"]\n[kinds.k]\ntype = \"one\"\n", "[a]\nsize = 2\nb = { on = false }\n[kinds.k]\n[kinds.l]\ntype = \"two\"\n", "a.size = 3\nkinds.k.type = \"three\"\n")
	if _, err := table.Read(&s, all...); err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || s.size != 3 || s.on || !slices.Equal(s.list, []string{"m"}) || s.kinds["k"] != "three" || s.kinds["l"] != "two" || s.path != "" {
		t.Errorf("%q read as %+v", all, s)
	}
	s = settings{}
	if _, err := table.Read(&s); err != nil || s.size != 7 || !s.on || len(s.list) != 2 || s.kinds != nil {
		t.Errorf("no files read as %+v, %v", s, err)
	}
	if all, err := DropIns(filepath.Join(t.TempDir(), "none")); err != nil || all != nil {
		t.Errorf("DropIns without a folder = %q, %v", all, err)
	}
}

func TestErrorsNameFileLineAndKey(t *testing.T) {
	for _, tc := range []struct {
		name  string
		texts []string
		want  []string // "N:rest": file number N
	}{
		{"unknown key", []string{"[a]\n\nsiez = 1\n"}, []string{"0:3: unknown key a.siez"}},
		{"unknown table, once", []string{"[z]\nx = 1\ny = 1\n"}, []string{"0:1: unknown key z"}},
		{"unknown empty table", []string{"\n[z.y]\n"}, []string{"0:2: unknown key z"}},
		{"unknown key inline", []string{"a = { size = 1,\n\n b = { off = true } }\n"}, []string{"0:3: unknown key a.b.off"}},
		{"unknown dotted key", []string{"x = 1\n"}, []string{"0:1: unknown key x"}},
		{"types", []string{"[a]\nsize = \"x\"\nb.on = 1\npath = true\nlist = \"x\"\n"}, []string{
			"0:2: key a.size: want an integer, have a string", "0:3: key a.b.on: want a boolean, have an integer",
			"0:4: key a.path: want a string, have a boolean", "0:5: key a.list: want a list of strings, have a string"}},
		{"list of others", []string{"[a]\nlist = [\"x\", 2]\n"}, []string{"0:2: key a.list: want a list of strings, have an integer as number 2"}},
		{"not a table", []string{"a = 1\n"}, []string{"0:1: key a: want a table, have an integer"}},
		{"list of tables", []string{"[[a]]\nsize = 1\n"}, []string{"0:1: key a: want a table, have a list"}},
		{"table for a value", []string{"[a.size]\nx = 1\n"}, []string{"0:1: key a.size: want an integer, have a table"}},
		{"value", []string{"", "[a]\npath = \"x\"\n"}, []string{`1:2: key a.path: "x" is not absolute`}},
		{"a value that is replaced", []string{"[a]\npath = \"x\"\n", "[a]\npath = \"/x\"\n"}, []string{`0:2: key a.path: "x" is not absolute`}},
		{"several files", []string{"[a]\nq = 1\nr = 2\n", "\n[a]\nsize = 1.5\n"}, []string{"0:2: unknown key a.q", "0:3: unknown key a.r",
			"1:3: key a.size: want an integer, have a floating-point number"}},
		{"rule", []string{"[a]\nsize = 101\n", "[a.b]\n\non = true\n"}, []string{"0:2: key a.size: too big to be on", "1:3: key a.b.on: on"}},
		{"rule about a default", []string{"[a]\nsize = 101\n"}, []string{"0:2: key a.size: too big to be on", "0:1: key a.b.on: on"}},
		{"a name's key left out", []string{"\n[kinds.k]\n"}, []string{"0:2: key kinds.k.type: want a type"}},
		{"below a name, in a drop-in", []string{"", "[kinds.k]\ntype = 1\nother = 1\n", "kinds.l = 1\na.b.off = 1\n"}, []string{"1:2: key kinds.k.type: want a string, have an integer",
			"1:3: unknown key kinds.k.other", "2:1: key kinds.l: want a table, have an integer", "2:2: unknown key a.b.off"}},
		{"no name", []string{"[kinds.\"\"]\n"}, []string{"0:1: unknown key kinds."}},
		{"no TOML", []string{"", "[a\n"}, []string{"1:1:"}},
		{"twice", []string{"[a]\nsize = 1\nsize = 2\n"}, []string{"0:3:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := files(t, tc.texts...)
			_, err := table.Read(new(settings), all...)
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tc.want) {
				t.Fatalf("errors %q, want %q", lines, tc.want)
			}
			for i, want := range tc.want {
				if want = all[want[0]-'0'] + want[1:]; !strings.HasPrefix(lines[i], want) {
					t.Errorf("error %q, want %q", lines[i], want)
				}
			}
		})
	}
	for name, path := range map[string]string{"a folder": t.TempDir(), "nothing": "/nowhere/file.toml", "a device": "/dev/zero"} {
		if _, err := table.Read(new(settings), path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChanged(t *testing.T) {
	before, err := table.Read(new(settings), files(t, "[a]\nlist = []\n[kinds.k]\ntype = \"x\"\n[kinds.l]\ntype = \"x\"\n")...)
	if err != nil {
		t.Fatal(err)
	}
	now, err := table.Read(new(settings), files(t, "[a]\nsize = 8\npath = \"\"\n[kinds.k]\ntype = \"y\"\n[kinds.m]\ntype = \"x\"\n")...)
	if err != nil {
		t.Fatal(err)
	}
	live, others := table.Changed(before, now)
	if want := []string{"a.list", "a.size"}; !slices.Equal(live, want) {
		t.Errorf("live %q, want %q", live, want)
	}
	if want := []string{"kinds.k.type", "kinds.l.type", "kinds.m.type"}; !slices.Equal(others, want) {
		t.Errorf("others %q, want %q", others, want)
	}
}

func TestTheDefaultFileMeansTheDefaults(t *testing.T) {
	var b strings.Builder
	if err := table.Default(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# A path.\n# Empty: none.\n# A change needs a restart.\npath = \"\"\n", "[a.b]\n", "# [kinds.NAME]\n", "# type = \"\"\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	now, err := table.Read(new(settings), files(t, b.String())...)
	if err != nil {
		t.Fatal(err)
	}
	before, err := table.Read(new(settings))
	if err != nil {
		t.Fatal(err)
	}
	if live, others := table.Changed(before, now); live != nil || others != nil {
		t.Errorf("changed: %q, %q", live, others)
	}
	b.Reset()
	if err := table.Manual(&b); err != nil || !strings.Contains(b.String(), ".TP\n.BI kinds. NAME .type\nA kind.\n") || !strings.Contains(b.String(), `Default: [\(dqx\(dq, \(dqy\(dq].`) {
		t.Errorf("manual %v:\n%s", err, b.String())
	}
}
