package keyfile

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// wrapAt is how wide comments are.
const wrapAt = 100

// Default writes a file with each key, its text and its default. Keys of tables with any name are commented out.
func (t Table[C]) Default(w io.Writer) error {
	var b strings.Builder
	for i, k := range t.Keys {
		table, _ := split(k.Name)
		inTable := func(k Key[C]) bool { other, _ := split(k.Name); return other == table }
		if slices.IndexFunc(t.Keys, inTable) != i { // a table must stand in one place
			continue
		}
		off := ""
		if strings.Contains(table, anyName) {
			off = "# "
		}
		fmt.Fprintf(&b, "\n%s[%s]\n", off, table)
		for _, k := range t.Keys {
			if !inTable(k) {
				continue
			}
			for _, line := range append(strings.Split(strings.TrimSpace(k.Doc), "\n"), k.change()) {
				wrap(&b, line)
			}
			_, name := split(k.Name)
			fmt.Fprintf(&b, "%s%s = %s\n", off, name, literal(k.Default))
		}
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// Manual writes each key as a paragraph of a manual page.
func (t Table[C]) Manual(w io.Writer) error {
	var b strings.Builder
	for _, k := range t.Keys {
		if table, name, has := strings.Cut(k.Name, "."+anyName+"."); has {
			fmt.Fprintf(&b, ".TP\n.BI %s. %s .%s\n", table, anyName, name)
		} else {
			fmt.Fprintf(&b, ".TP\n.B %s\n", k.Name)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(k.Doc), "\n") {
			b.WriteString(roff(line) + "\n")
		}
		fmt.Fprintf(&b, "%s\nDefault: %s.\n", k.change(), roff(literal(k.Default)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// change says how a changed value is taken over.
func (k Key[C]) change() string {
	if k.Live {
		return "A change is taken over on SIGHUP."
	}
	return "A change needs a restart."
}

// split divides a key into table and name.
func split(key string) (table, name string) {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)], key[i+1:]
}

// literal writes a value as TOML.
func literal(value any) string {
	switch value := value.(type) {
	case string:
		return strconv.Quote(value)
	case []string:
		all := make([]string, len(value))
		for i, v := range value {
			all[i] = strconv.Quote(v)
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	return fmt.Sprint(value)
}

// wrap writes a line as comments.
func wrap(b *strings.Builder, line string) {
	width := 0
	for word := range strings.FieldsSeq(line) {
		if width == 0 || width+1+len(word) > wrapAt {
			if width > 0 {
				b.WriteByte('\n')
			}
			b.WriteByte('#')
			width = 1
		}
		b.WriteString(" " + word)
		width += 1 + len(word)
	}
	b.WriteByte('\n')
}

// roff escapes a line.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`).Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
