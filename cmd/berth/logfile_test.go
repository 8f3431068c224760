package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/test/transcript"
)

func atOnce(context.Context) (bool, error) { return true, nil }

func TestPrintLog(t *testing.T) {
	const stamp = "2026-01-02T03:04:05.000000006Z"
	text := stamp + " stdout F one\n" + stamp + " stderr F oops\n" + stamp + " stdout P par\n" + stamp + " stdout P ti\n" + stamp + " stdout F al\n" +
		stamp + " stdout F \n" + "garbage\n" + stamp + " stdout F:x tagged\n"
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name           string
		printer        logPrinter
		stdout, stderr string
	}{
		{"all", logPrinter{tail: -1}, "one\npartial\n\ngarbage\ntagged\n", "oops\n"},
		{"none", logPrinter{tail: 0}, "", ""},
		{"last", logPrinter{tail: 1}, "tagged\n", ""},
		{"more than there is", logPrinter{tail: 100}, "one\npartial\n\ngarbage\ntagged\n", "oops\n"},
		{"times", logPrinter{tail: -1, timestamps: true}, stamp + " one\n" + stamp + " partial\n" + stamp + " \ngarbage\n" + stamp + " tagged\n", stamp + " oops\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			tc.printer.stdout, tc.printer.stderr = &stdout, &stderr
			if err := tc.printer.print(t.Context(), path, atOnce); err != nil {
				t.Fatal(err)
			}
			if stdout.String() != tc.stdout || stderr.String() != tc.stderr {
				t.Errorf("stdout %q, stderr %q, want %q, %q", stdout.String(), stderr.String(), tc.stdout, tc.stderr)
			}
		})
	}
}

func TestTailOfALongLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "t stdout F %d %s\n", i, strings.Repeat("x", 40))
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p := logPrinter{stdout: &out, stderr: &out, tail: 3000}
	if err := p.print(t.Context(), path, atOnce); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 3000 || !strings.HasPrefix(out.String(), "7000 ") {
		t.Errorf("%d lines beginning with %q", lines, out.String()[:10])
	}
}

// appendTo writes to the end of a file, which it makes.
func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestFollowALogThroughItsRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) { t.Helper(); appendTo(t, path, text) }
	write("t stdout F 1\n")
	var out transcript.Transcript
	var mu sync.Mutex
	over := false
	p := logPrinter{stdout: &out, stderr: &out, tail: -1}
	done := make(chan error, 1)
	go func() {
		done <- p.print(t.Context(), path, func(context.Context) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return over, nil
		})
	}()
	out.Wait(t, "1\n")
	write("t stdout F 2")
	write(" and a half\n")
	out.Wait(t, "1\n2 and a half\n")
	write("t stdout F 3\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("t stdout F 4\n")
	out.Wait(t, "1\n2 and a half\n3\n4\n")
	mu.Lock()
	over = true
	write("t stdout F 5\n")
	mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != "1\n2 and a half\n3\n4\n5\n" {
		t.Errorf("it printed %q", &out)
	}
}

// A line that is written just before the log is rotated is printed, whenever that is seen.
func TestFollowLosesNoLineToARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) { t.Helper(); appendTo(t, path, text) }
	var out transcript.Transcript
	write("t stdout F start\n")
	p := logPrinter{stdout: &out, stderr: &out, tail: -1, poll: 1}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.print(ctx, path, func(context.Context) (bool, error) { return false, nil }) }()
	want := "start\n"
	out.Wait(t, want)
	for i := range 100 {
		write(fmt.Sprintf("t stdout F %d\n", i))
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("t stdout F new %d\n", i))
		want += fmt.Sprintf("%d\nnew %d\n", i, i)
		out.Wait(t, want)
	}
	cancel()
	<-done
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	p := logPrinter{tail: -1}
	if err := p.print(ctx, path, func(context.Context) (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("print = %v, want the context's end", err)
	}
}
