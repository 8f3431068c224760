package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// progressInterval is how often berthd is asked how far a pull is.
const progressInterval = 100 * time.Millisecond

// maxPassword bounds what is read from stdin.
const maxPassword = 64 << 10

// newPull makes berth pull.
func newPull(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image", Args: oneArg("image"),
		Long: "Pull an image from its registry, or from the registry's mirrors.\n\n" +
			"A terminal sees a bar for each layer. When the image is there its ID is printed to stdout.",
		Example: "  berth pull registry.example/team/app:1.2\n  pass show registry | berth pull --username me --password-stdin registry.example/team/app:1.2",
	}
	username := cmd.Flags().StringP("username", "u", "", "user `name` at the registry")
	fromStdin := cmd.Flags().Bool("password-stdin", false, "read the password from stdin")
	explain := cmd.Flags().Bool("explain", false, "show which registry and mirrors were asked, in which order and why, and what they answered")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "print the image's ID only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}}
		if (*username != "") != *fromStdin {
			return &usageError{cmd.CommandPath(), errors.New("--username and --password-stdin belong together")}
		}
		if *fromStdin {
			password, err := readPassword(cmd.InOrStdin())
			if err != nil {
				return err
			}
			request.Auth = &runtimeapi.AuthConfig{Username: *username, Password: password}
		}
		conn, err := c.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		show := display(&plainDisplay{w: cmd.ErrOrStderr()})
		if f, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			show = &barDisplay{w: f, size: func() (int, int, error) { return term.GetSize(int(f.Fd())) }}
		}
		if *quiet {
			show = &plainDisplay{w: io.Discard}
		}
		imageID, err := conn.pull(cmd.Context(), request, show)
		if *explain {
			if explainErr := conn.explain(cmd.Context(), request.GetImage(), cmd.ErrOrStderr()); err == nil {
				err = explainErr
			}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), imageID)
		return err
	}
	return cmd
}

// readPassword reads one line.
func readPassword(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxPassword)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read password: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errors.New("no password on stdin")
	}
	return line, nil
}

// pullProgress is what berthd says about a pull, in ImageStatus's information "pull" or "lastPull".
type pullProgress struct {
	Ref       string          `json:"ref"`
	State     string          `json:"state"`
	Layers    []layerProgress `json:"layers"`
	Endpoints []endpoint      `json:"endpoints"`
}

// layerProgress is one layer of it. Sizes are of what is downloaded; a size of 0 is not known yet.
type layerProgress struct {
	Digest string `json:"digest"`
	State  string `json:"state"`
	Bytes  uint64 `json:"bytes"`
	Size   uint64 `json:"size"`
}

// display shows how far a pull is.
type display interface {
	update(p pullProgress)
	// end is the last call, with how long the pull took; imageSize is 0 when it is not known.
	end(reference string, took time.Duration, imageSize uint64)
}

// pull pulls an image and shows how far it is meanwhile.
func (c *conn) pull(ctx context.Context, r *runtimeapi.PullImageRequest, show display) (imageID string, err error) {
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		answer *runtimeapi.PullImageResponse
		err    error
	}
	done := make(chan result, 1)
	go func() {
		answer, err := c.image.PullImage(ctx, r)
		done <- result{answer, err}
	}()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case got := <-done:
			if got.err != nil {
				show.end("", 0, 0)
				return "", got.err // berthd says what it pulled
			}
			imageID = got.answer.GetImageRef()
			var bytes uint64
			if s, err := c.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: imageID}}); err == nil {
				bytes = s.GetImage().GetSize()
			}
			show.end(r.GetImage().GetImage(), time.Since(start), bytes)
			return imageID, nil
		case <-tick.C:
			if p, ok := c.progress(ctx, r.GetImage()); ok {
				show.update(p)
			}
		}
	}
}

// progress asks how far a pull is. That nothing is known is no failure of the pull.
func (c *conn) progress(ctx context.Context, image *runtimeapi.ImageSpec) (pullProgress, bool) {
	return c.pullInfo(ctx, image, "pull")
}

// pullInfo reads one of ImageStatus's informations about a pull.
func (c *conn) pullInfo(ctx context.Context, image *runtimeapi.ImageSpec, key string) (p pullProgress, ok bool) {
	s, err := c.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: image, Verbose: true})
	if err != nil || s.GetInfo()[key] == "" {
		return pullProgress{}, false
	}
	if err := json.Unmarshal([]byte(s.GetInfo()[key]), &p); err != nil {
		return pullProgress{}, false
	}
	return p, true
}
