package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// States of a layer that is done, as berthd names them.
const (
	layerDone   = "done"
	layerExists = "exists"
)

// stateWidth is the width of the states' column: the longest is "downloading".
const stateWidth = 11

// done says whether nothing is left to do for a layer.
func (l layerProgress) done() bool { return l.State == layerDone || l.State == layerExists }

// plainDisplay writes a line when a layer is done: for logs and pipes.
type plainDisplay struct {
	w     io.Writer
	shown map[string]bool
}

func (d *plainDisplay) update(p pullProgress) {
	if d.shown == nil {
		d.shown = map[string]bool{}
	}
	for _, l := range p.Layers {
		if l.done() && !d.shown[l.Digest] {
			d.shown[l.Digest] = true
			fmt.Fprintf(d.w, "%s %s %s\n", short(l.Digest), plain(l.State), size(l.Size))
		}
	}
}

func (d *plainDisplay) end(reference string, took time.Duration, imageSize uint64) {
	if reference != "" {
		fmt.Fprint(d.w, summary(reference, took, imageSize))
	}
}

// summary is a pull's last line.
func summary(reference string, took time.Duration, imageSize uint64) string {
	text := fmt.Sprintf("Pulled %s in %.1f s", plain(reference), took.Seconds())
	if imageSize > 0 {
		text += ", " + size(imageSize)
	}
	return text + "\n"
}

// barDisplay draws a bar for each layer, again and again in the same place of a terminal.
type barDisplay struct {
	w io.Writer
	// size is the terminal's width and height in characters.
	size func() (width, height int, err error)
	// drawn is how many lines are to be drawn over.
	drawn int
}

func (d *barDisplay) update(p pullProgress) {
	width, height, err := d.size()
	if err != nil || width < 20 || height < 3 {
		width, height = 80, 24
	}
	d.draw(bars(p, width-1, height-1))
}

func (d *barDisplay) end(reference string, took time.Duration, imageSize uint64) {
	d.draw(nil)
	if reference != "" {
		fmt.Fprint(d.w, summary(reference, took, imageSize))
	}
}

// draw replaces what was drawn before.
func (d *barDisplay) draw(lines []string) {
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", d.drawn) // up to where it began, and clear from there
	}
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	d.drawn = len(lines)
	fmt.Fprint(d.w, b.String())
}

// bars are a pull's lines: one for each layer, as many as there is room for, those under way before those that are done; and one
// for all of them.
func bars(p pullProgress, width, height int) []string {
	var active, finished []string
	for _, l := range p.Layers {
		if l.done() {
			l.Bytes = max(l.Bytes, l.Size)
		}
		line := barLine(short(l.Digest), l, width)
		if l.done() {
			finished = append(finished, line)
		} else {
			active = append(active, line)
		}
	}
	lines := append(active, finished...)
	if room := max(height-1, 0); len(lines) > room {
		lines = lines[:room]
	}
	return append(lines, barLine(fmt.Sprintf("%d layers", len(p.Layers)), p.total(), width))
}

// total is all layers of a pull as if they were one.
func (p pullProgress) total() layerProgress {
	total := layerProgress{State: p.State}
	for _, l := range p.Layers {
		if l.done() {
			l.Bytes = max(l.Bytes, l.Size)
		}
		total.Bytes += l.Bytes
		total.Size += l.Size
	}
	return total
}

// barLine is one line: name, bar, numbers and state.
func barLine(name string, l layerProgress, width int) string {
	numbers := size(l.Bytes)
	if l.Size > 0 {
		numbers = fmt.Sprintf("%s / %s", size(l.Bytes), size(l.Size))
	}
	left, right := fmt.Sprintf("%-*s ", shortID, name), fmt.Sprintf(" %-17s %-*s", numbers, stateWidth, plain(l.State))
	room := min(width-len(left)-len(right), 40)
	bar := ""
	if room >= 5 {
		filled := 0
		if l.Size > 0 {
			filled = int(uint64(room) * min(l.Bytes, l.Size) / l.Size)
		} else if l.done() {
			filled = room
		}
		bar = strings.Repeat("█", filled) + strings.Repeat("░", room-filled)
	}
	line := strings.TrimRight(left+bar+right, " ")
	if over := len([]rune(line)) - width; over > 0 {
		line = string([]rune(line)[:width])
	}
	return line
}
