package conftemplate

import (
	"net/netip"
	"strings"
	"testing"
	"text/template"
)

// templates are as people write them for containerd.
var templates = []string{
	`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipMasq": true,
  "ipam": {"type": "host-local", "subnet": "{{.PodCIDR}}", "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
	`{"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
 "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}`,
	"{{/* none */}}{{- range .PodCIDRRanges -}} <{{.}} of {{$.PodCIDR}}> {{- else}}nothing{{end}}",
	`{{with .PodCIDR}}{{.}}{{else}}none{{end}}{{$x := 1}}{{if .Routes}}{{$x = 2}}{{end}}{{$x}}{{if .PodCIDR}}a{{else if .Routes}}b{{else}}c{{end}}{{"text"}}`,
	``,
	`{{with $r := .PodCIDRRanges}}{{range $one := $r}}{{$one}};{{end}}{{end}}`,
}

// Whatever is understood means what the language's own engine makes of it.
func TestRenderIsAsTextTemplate(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:1::/64")
	for _, ranges := range [][]netip.Prefix{nil, {v4}, {v6}, {v4, v6}, {v4, netip.MustParsePrefix("10.9.0.0/24")}} {
		for _, text := range templates {
			var want strings.Builder
			if err := template.Must(template.New("").Parse(text)).Execute(&want, fields(ranges)); err != nil {
				t.Fatal(err)
			}
			if got, err := Render(text, ranges); err != nil || string(got) != want.String() {
				t.Errorf("Render(%q, %v) = %q, %v, want %q", text, ranges, got, err, want.String())
			}
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}
	for text, want := range map[string]string{
		"{{.PodCDIR}}":                      ".PodCDIR",
		"{{.PodCIDR.X}}":                    ".PodCIDR.X",
		"{{len .Routes}}":                   "len",
		"{{.PodCIDR | printf \"%s\"}}":      "printf",
		"{{.Routes}}":                       "list",
		"{{range .PodCIDR}}{{end}}":         "range",
		"{{if .PodCIDR}}":                   "EOF",
		"{{template \"x\"}}":                "template",
		"{{range .Routes}}{{break}}{{end}}": "break",
		"{{$x}}":                            "$x",
	} {
		if got, err := Render(text, ranges); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Render(%q) = %q, %v, want an error about %q", text, got, err, want)
		}
	}
}
