package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// endpoint is one place that a pull may ask.
type endpoint struct {
	URL          string   `json:"url"`
	Source       string   `json:"source"`
	Capabilities []string `json:"capabilities"`
	Credentials  string   `json:"credentials"`
	TLS          []string `json:"tls"`
	Answers      int      `json:"answers"`
	Failures     int      `json:"failures"`
	Bytes        uint64   `json:"bytes"`
	Failure      string   `json:"failure"`
	Slow         bool     `json:"slow"`
}

// explain shows whom the pull that has just ended asked.
func (c *conn) explain(ctx context.Context, image *runtimeapi.ImageSpec, w io.Writer) error {
	p, ok := c.pullInfo(ctx, image, "lastPull")
	if !ok || len(p.Endpoints) == 0 {
		_, err := fmt.Fprintln(w, "Nobody was asked.")
		return err
	}
	need := "pull"
	if !strings.Contains(image.GetImage(), "@") {
		need = "resolve"
	}
	var b strings.Builder
	for i, e := range p.Endpoints {
		fmt.Fprintf(&b, "%d. %s\n", i+1, plain(e.URL))
		for _, f := range [][2]string{
			{"named by", e.Source}, {"may be asked to", strings.Join(e.Capabilities, ", ")}, {"credentials", e.Credentials},
			{"TLS", strings.Join(e.TLS, ", ")}, {"outcome", e.outcome(need, p.Endpoints[:i])}, {"last failure", e.Failure},
		} {
			if f[1] != "" {
				fmt.Fprintf(&b, "   %-16s %s\n", f[0], plain(f[1]))
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// outcome says what came of asking an endpoint, or why it was not asked; need is the capability that the pull begins with, before
// are those that come first.
func (e endpoint) outcome(need string, before []endpoint) string {
	var parts []string
	if e.Answers > 0 {
		text := fmt.Sprintf("answered %d times", e.Answers)
		if e.Bytes > 0 {
			text += ", " + size(e.Bytes) + " of layers and configuration"
		}
		parts = append(parts, text)
	}
	if e.Failures > 0 {
		parts = append(parts, fmt.Sprintf("failed %d times", e.Failures))
	}
	if e.Slow {
		parts = append(parts, "slow, so the others came first from then on")
	}
	if len(parts) > 0 {
		return strings.Join(parts, "; ")
	}
	served := func(o endpoint) bool { return o.Answers > 0 }
	switch {
	case len(e.Capabilities) == 0:
		return "not asked: it may not be asked for anything"
	case slices.ContainsFunc(before, served):
		return "not asked: one before it had everything"
	case need == "resolve" && !slices.Contains(e.Capabilities, need):
		return "not asked: it may not resolve tags"
	}
	return "not asked: the pull ended before"
}
