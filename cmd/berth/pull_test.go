package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPullShowsItsProgress(t *testing.T) {
	id := "sha256:" + strings.Repeat("1", 64)
	d := &daemon{
		pullWait: make(chan struct{}), images: []*runtimeapi.Image{{Id: id, Size: 30_000_000}},
		progress: []string{
			`{"state":"downloading","layers":[{"digest":"sha256:aaa","state":"downloading","bytes":5,"size":10},{"digest":"sha256:bbb","state":"exists","size":7}]}`,
			`no JSON`,
			`{"state":"downloading","layers":[{"digest":"sha256:aaa","state":"done","bytes":10,"size":10},{"digest":"sha256:bbb","state":"exists","size":7}]}`,
		},
	}
	socket := start(t, d)
	code, out, stderr := berth(t, socket, "pull", "r/x:1")
	if code != 0 || out != id+"\n" {
		t.Errorf("exit status %d, stdout %q", code, out)
	}
	if !strings.HasPrefix(stderr, "bbb exists 7 B\naaa done 10 B\nPulled r/x:1 in ") || !strings.HasSuffix(stderr, ", 30 MB\n") {
		t.Errorf("stderr %q", stderr)
	}
	if code, out, stderr = berth(t, start(t, &daemon{}), "pull", "-q", "r/x:1"); code != 0 || out != id+"\n" || stderr != "" {
		t.Errorf("quiet: exit status %d, %q, %q", code, out, stderr)
	}
}

func TestPullFailsWithTheDaemonsWords(t *testing.T) {
	d := &daemon{pullErr: status.Error(codes.Unauthenticated, "pull r/x:1: no access")}
	code, out, stderr := berth(t, start(t, d), "pull", "r/x:1")
	if code != 1 || out != "" || stderr != "berth: pull r/x:1: no access\nhint: give credentials: berth pull --username NAME --password-stdin IMAGE\n" {
		t.Errorf("exit status %d, %q, %q", code, out, stderr)
	}
}

func TestCtrlCNeedsNoWords(t *testing.T) {
	d := &daemon{pullWait: make(chan struct{}), progress: slices.Repeat([]string{"no JSON"}, 1000)}
	socket := start(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			d.mu.Lock()
			asked := len(d.progress) < 1000
			d.mu.Unlock()
			if asked {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"--socket", socket, "pull", "r/x:1"}, &out, &errs); code != exitFailed || out.Len() > 0 || errs.Len() > 0 {
		t.Errorf("exit status %d, %q, %q", code, &out, &errs)
	}
}

func TestPullCredentials(t *testing.T) {
	d := &daemon{}
	socket := start(t, d)
	root := newRoot()
	root.SetArgs([]string{"--socket", socket, "pull", "-q", "-u", "me", "--password-stdin", "r/x:1"})
	root.SetIn(strings.NewReader("s3cret\n"))
	root.SetOut(&bytes.Buffer{})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d.auth.GetUsername() != "me" || d.auth.GetPassword() != "s3cret" {
		t.Errorf("credentials = %q, %q", d.auth.GetUsername(), d.auth.GetPassword())
	}
	if code, _, _ := berth(t, socket, "pull", "-u", "me", "r/x:1"); code != 2 {
		t.Errorf("a user without a password: exit status %d", code)
	}
}

func TestPullExplains(t *testing.T) {
	d := &daemon{lastPull: `{"state":"failed","endpoints":[
		{"url":"http://m1/v2","source":"/c/r/hosts.toml, host 1","capabilities":["pull"],"credentials":"withheld"},
		{"url":"https://m2/v2","source":"/c/r/hosts.toml, host 2","capabilities":["pull","resolve"],"credentials":"none","tls":["ca"],"failures":2,"failure":"get x from m2: status 503","slow":true},
		{"url":"https://r/v2","source":"/c/r/hosts.toml, server","capabilities":["pull","resolve"],"credentials":"if asked","answers":3,"bytes":1000},
		{"url":"https://z/v2","source":"s","capabilities":["pull","resolve"],"credentials":"none"}]}`}
	code, out, stderr := berth(t, start(t, d), "pull", "-q", "--explain", "r/x:1")
	want := `1. http://m1/v2
   named by         /c/r/hosts.toml, host 1
   may be asked to  pull
   credentials      withheld
   outcome          not asked: it may not resolve tags
2. https://m2/v2
   named by         /c/r/hosts.toml, host 2
   may be asked to  pull, resolve
   credentials      none
   TLS              ca
   outcome          failed 2 times; slow, so the others came first from then on
   last failure     get x from m2: status 503
3. https://r/v2
   named by         /c/r/hosts.toml, server
   may be asked to  pull, resolve
   credentials      if asked
   outcome          answered 3 times, 1.0 kB of layers and configuration
4. https://z/v2
   named by         s
   may be asked to  pull, resolve
   credentials      none
   outcome          not asked: one before it had everything
`
	if code != 0 || stderr != want || !strings.HasPrefix(out, "sha256:") {
		t.Errorf("exit status %d, %q\n%s\nwant\n%s", code, out, stderr, want)
	}
	d = &daemon{pullErr: status.Error(codes.PermissionDenied, "pull r/x:1: no"), lastPull: "no JSON"}
	code, _, stderr = berth(t, start(t, d), "pull", "-q", "--explain", "r/x:1")
	if code != 1 || !strings.HasPrefix(stderr, "Nobody was asked.\nberth: pull r/x:1: no\nhint: ") {
		t.Errorf("exit status %d, %q", code, stderr)
	}
}

func TestBars(t *testing.T) {
	p := pullProgress{State: "downloading", Layers: []layerProgress{
		{Digest: "sha256:aaaaaaaaaaaaaaaa", State: "exists", Size: 100},
		{Digest: "sha256:bbbbbbbbbbbbbbbb", State: "downloading", Bytes: 50, Size: 100},
		{Digest: "sha256:cccccccccccccccc", State: "waiting"},
	}}
	got := bars(p, 60, 10)
	want := []string{
		"bbbbbbbbbbbb ████████░░░░░░░░░ 50 B / 100 B      downloading",
		"cccccccccccc ░░░░░░░░░░░░░░░░░ 0 B               waiting",
		"aaaaaaaaaaaa █████████████████ 100 B / 100 B     exists",
		"3 layers     ████████████░░░░░ 150 B / 200 B     downloading",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := bars(p, 60, 2); len(got) != 2 || !strings.HasPrefix(got[0], "bbbb") {
		t.Errorf("in two lines: %q", got)
	}
	for width := 1; width < 100; width++ {
		for _, line := range bars(p, width, 10) {
			if len([]rune(line)) > width {
				t.Fatalf("width %d: %q", width, line)
			}
		}
	}
}

func TestBarsAreDrawnInTheSamePlace(t *testing.T) {
	var b bytes.Buffer
	d := &barDisplay{w: &b, size: func() (int, int, error) { return 80, 24, nil }}
	d.update(pullProgress{State: "s", Layers: []layerProgress{{Digest: "a"}}})
	first := b.String()
	d.update(pullProgress{State: "s", Layers: []layerProgress{{Digest: "a"}}})
	if second := strings.TrimPrefix(b.String(), first); second != "\x1b[2A\x1b[J"+first {
		t.Errorf("second drawing %q", second)
	}
	b.Reset()
	d.end("r", 2*time.Second, 0)
	if b.String() != "\x1b[2A\x1b[JPulled r in 2.0 s\n" {
		t.Errorf("end %q", b.String())
	}
}
