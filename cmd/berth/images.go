package main

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// noName stands in tables for an image that has lost its tag, or never had one.
const noName = "<none>"

// imageRow is an image for programs.
type imageRow struct {
	ID       string   `json:"id"`
	Tags     []string `json:"tags"`
	Digests  []string `json:"digests"`
	Size     uint64   `json:"size"`
	UID      *int64   `json:"uid,omitempty"`
	Username string   `json:"username,omitempty"`
	Pinned   bool     `json:"pinned"`
}

// newImages makes berth images.
func newImages(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "images", Aliases: []string{"image"}, Short: "List images", Args: noArgs,
		Long:    "List the images that berthd has, by name. An image with several tags has a line for each. Pulls under way are shown by berth status.",
		Example: "  berth images\n  berth images -o json",
	}
	out := addOutput(cmd)
	cmd.RunE = c.connected(func(cmd *cobra.Command, _ []string, conn *conn) error {
		answer, err := conn.image.ListImages(cmd.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err
		}
		if *out == outputJSON {
			return printJSON(cmd.OutOrStdout(), imageRows(answer.GetImages()))
		}
		return printTable(cmd.OutOrStdout(), imageHead(answer.GetImages()), imageTable(answer.GetImages()))
	})
	return cmd
}

// imageRows are images for programs.
func imageRows(images []*runtimeapi.Image) []imageRow {
	rows := make([]imageRow, 0, len(images))
	for _, i := range images {
		row := imageRow{
			ID: i.GetId(), Tags: notNil(i.GetRepoTags()), Digests: notNil(i.GetRepoDigests()), Size: i.GetSize(),
			Username: i.GetUsername(), Pinned: i.GetPinned(),
		}
		if i.GetUid() != nil {
			uid := i.GetUid().GetValue()
			row.UID = &uid
		}
		rows = append(rows, row)
	}
	return rows
}

// imageHead is the head of their table. There is a column for pins when there are any.
func imageHead(images []*runtimeapi.Image) []string {
	head := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
	if slices.ContainsFunc(images, (*runtimeapi.Image).GetPinned) {
		head = append(head, "PINNED")
	}
	return head
}

// imageTable are images for people.
func imageTable(images []*runtimeapi.Image) [][]string {
	var rows [][]string
	width := len(imageHead(images))
	for _, i := range images {
		id, bytes, pinned := short(i.GetId()), size(i.GetSize()), "no"
		if i.GetPinned() {
			pinned = "yes"
		}
		for _, tag := range i.GetRepoTags() {
			name, tag := splitTag(tag)
			rows = append(rows, []string{name, tag, id, bytes, pinned}[:width])
		}
		if len(i.GetRepoTags()) > 0 {
			continue
		}
		name := noName
		if len(i.GetRepoDigests()) > 0 {
			name, _, _ = strings.Cut(i.GetRepoDigests()[0], "@")
		}
		rows = append(rows, []string{name, noName, id, bytes, pinned}[:width])
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	return rows
}

// splitTag takes a reference apart at its tag. A colon before a slash belongs to the registry's port.
func splitTag(reference string) (name, tag string) {
	if i := strings.LastIndexByte(reference, ':'); i > strings.LastIndexByte(reference, '/') {
		return reference[:i], reference[i+1:]
	}
	return reference, ""
}

// notNil makes JSON say [] instead of null.
func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
