package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// shortID is how many digits of an ID a table shows.
const shortID = 12

// output is the kind of a list: -o.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
)

// String is the flag's value.
func (o *output) String() string { return string(*o) }

// Set parses the flag.
func (o *output) Set(s string) error {
	switch output(s) {
	case outputTable, outputJSON:
		*o = output(s)
		return nil
	}
	return fmt.Errorf("want %s or %s", outputTable, outputJSON)
}

// Type is what --help calls the value.
func (o *output) Type() string { return "table|json" }

// addOutput gives a command -o.
func addOutput(cmd *cobra.Command) *output {
	o := outputTable
	cmd.Flags().VarP(&o, "output", "o", "how to print")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{string(outputTable), string(outputJSON)}, cobra.ShellCompDirectiveNoFileComp))
	return &o
}

// printJSON prints a value for programs.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printTable prints rows below their headings, in columns.
func printTable(w io.Writer, headings []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		for i, cell := range row {
			row[i] = orDash(plain(cell))
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// plain takes out what would move a terminal's cursor: names in a table may come from an image.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// orDash shows that a cell is empty.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// short is the start of an ID, without the name of its digest.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), shortID)]
}

// size is a number of bytes for people, in powers of 1000 as image sizes are.
func size(bytes uint64) string {
	const unit = 1000
	if bytes < unit {
		return fmt.Sprintf("%d B", bytes)
	}
	value, i := float64(bytes), -1
	for value >= unit && i < 4 {
		value /= unit
		i++
	}
	name := []string{"kB", "MB", "GB", "TB", "PB"}[i]
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, name)
	}
	return fmt.Sprintf("%.0f %s", value, name)
}

// age is a duration for people, as kubectl shows it: the two greatest units while the first is small.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute:
		return units(d, time.Minute, "m", time.Second, "s")
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 8*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	case d < 2*day:
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d < 8*day:
		return units(d, day, "d", time.Hour, "h")
	}
	return fmt.Sprintf("%dd", int(d/day))
}

// units prints a duration in two units, the lesser one when it is not 0.
func units(d, great time.Duration, greatName string, small time.Duration, smallName string) string {
	n, rest := int(d/great), int(d%great/small)
	if rest == 0 {
		return fmt.Sprintf("%d%s", n, greatName)
	}
	return fmt.Sprintf("%d%s%d%s", n, greatName, rest, smallName)
}

// since is the age of a time in nanoseconds; "" for none.
func since(nanoseconds int64) string {
	if nanoseconds == 0 {
		return ""
	}
	return age(time.Since(time.Unix(0, nanoseconds)))
}

// timestamp is a time in nanoseconds for programs; nil for none.
func timestamp(nanoseconds int64) *time.Time {
	if nanoseconds == 0 {
		return nil
	}
	t := time.Unix(0, nanoseconds).UTC()
	return &t
}
