package integration_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/transcript"
)

var bothTransports = []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket}

// streamed runs a command by a URL and returns what it did.
func streamed(c *harness.Container, transport streamclient.Transport, command ...string) (harness.Result, error) {
	var out, errs transcript.Transcript
	ctx, cancel := context.WithTimeout(c.Context(), harness.Timeout)
	defer cancel()
	code, err := harness.Streaming{Daemon: c.Daemon, Transport: transport}.Exec(ctx, c.ID, command, sandbox.Streams{Stdout: &out, Stderr: &errs})
	return harness.Result{Stdout: out.String(), Stderr: errs.String(), Code: code}, err
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	harness.Namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD)(c)
}

// input gives a container a standard input.
func input(c *runtimeapi.ContainerConfig) { c.Stdin = true }

// TestStreamingSuite holds the daemon, seen by its streaming clients, against what package streaming promises.
func TestStreamingSuite(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("stream", hostNetwork))
	c := pod.Run(d.Sleeper("c"))
	for name, transport := range map[string]streamclient.Transport{"SPDY": streamclient.SPDY, "v5": streamclient.WebSocket,
		"v4": streamclient.V4, "base64": streamclient.Base64} {
		t.Run(name, func(t *testing.T) {
			streamingtest.Suite(t, streamingtest.Target{Runtime: harness.Streaming{Daemon: d, Transport: transport}, ContainerID: c.ID, SandboxID: pod.ID,
				InputEnds: name == "SPDY" || name == "v5"})
		})
	}
}

func TestStreamingRequestsThatMakeNoSense(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("nonsense"))
	c := pod.Run(d.Sleeper("c"))
	exited := pod.Run(d.Shell("exited", "exit 0"))
	exited.Wait(10 * time.Second)
	out := streamclient.Process{Stdout: true}
	_, err := d.ExecURL(d.Context(), c.ID, []string{"true"}, streamclient.Process{})
	wantCode(t, "exec without a stream", err, codes.InvalidArgument)
	_, err = d.ExecURL(d.Context(), c.ID, []string{"true"}, streamclient.Process{Terminal: true, Stderr: true})
	wantCode(t, "a terminal with two outputs", err, codes.InvalidArgument)
	_, err = d.ExecURL(d.Context(), c.ID, nil, out)
	wantCode(t, "no command", err, codes.InvalidArgument)
	_, err = d.ExecURL(d.Context(), "nobody", []string{"true"}, out)
	wantCode(t, "no such container", err, codes.NotFound)
	_, err = d.ExecURL(d.Context(), exited.ID, []string{"true"}, out)
	wantCode(t, "an exited container", err, codes.FailedPrecondition)
	_, err = d.AttachURL(d.Context(), exited.ID, out)
	wantCode(t, "attach to an exited container", err, codes.FailedPrecondition)
	_, err = d.AttachURL(d.Context(), pod.Create(d.Sleeper("created")).ID, out)
	wantCode(t, "attach to a created container", err, codes.FailedPrecondition)
	_, err = d.ForwardURL(d.Context(), "nobody")
	wantCode(t, "no such pod", err, codes.NotFound)
	_, err = d.ForwardURL(d.Context(), pod.ID, 0)
	wantCode(t, "port 0", err, codes.InvalidArgument)
	late, err := d.ExecURL(d.Context(), c.ID, []string{"true"}, out)
	if err != nil {
		t.Fatal(err)
	}
	pod.Stop()
	_, err = d.ForwardURL(d.Context(), pod.ID)
	wantCode(t, "a stopped pod", err, codes.FailedPrecondition)
	// The container ended between the call and the client.
	if _, err := streamclient.Run(t.Context(), late, streamclient.SPDY, sandbox.Streams{Stdout: io.Discard}); err == nil || !strings.Contains(err.Error(), "not Running") {
		t.Errorf("exec in a container that has ended since: %v", err)
	}
}

func TestManyStreamedExecsAtOnce(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("crowd")).Run(d.Sleeper("c"))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			r, err := streamed(c, bothTransports[i%2], "sh", "-c", fmt.Sprintf("echo %d; echo e%d >&2; sleep 0.2; exit %d", i, i, i))
			if want := (harness.Result{Stdout: fmt.Sprintf("%d\n", i), Stderr: fmt.Sprintf("e%d\n", i), Code: int32(i)}); err != nil || r != want {
				t.Errorf("exec %d = %+v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
	d.Check()
}

// attached is a client of a container's streams.
type attached struct {
	*streamclient.Session
	out  transcript.Transcript
	done chan error
}

func attach(c *harness.Container, transport streamclient.Transport, p streamclient.Process) *attached {
	c.T.Helper()
	u, err := c.AttachURL(c.Context(), c.ID, p)
	if err != nil {
		c.T.Fatal(err)
	}
	s, err := streamclient.Open(c.Context(), u, transport, p)
	if err != nil {
		c.T.Fatal(err)
	}
	a := &attached{Session: s, done: make(chan error, 1)}
	for _, r := range []io.Reader{s.Stdout, s.Stderr} {
		if r != nil {
			go io.Copy(&a.out, r)
		}
	}
	go func() {
		_, err := s.Wait()
		a.done <- err
	}()
	c.T.Cleanup(func() { s.Vanish() })
	return a
}

func (a *attached) say(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(a.Stdin, text); err != nil {
		t.Fatal(err)
	}
}

// ping says something until another client hears the answer: then that one is attached.
func (a *attached) ping(t testing.TB, other *attached) {
	t.Helper()
	streamingtest.Eventually(t, func() bool {
		a.say(t, "ping\n")
		time.Sleep(20 * time.Millisecond)
		return strings.Contains(other.out.String(), "got ping\n")
	}, "the other client is attached")
}

var echoer = "echo up; while read x; do echo got $x; test $x = end && exit 0; done; echo closed; sleep 3600"

// TestAttach: clients come and go, see what the container writes meanwhile, and what they type reaches it; the log has everything.
func TestAttach(t *testing.T) {
	d := harness.Start(t)
	for _, transport := range bothTransports {
		pod := d.RunPod(d.Pod(map[streamclient.Transport]string{streamclient.SPDY: "spdy", streamclient.WebSocket: "ws"}[transport]))
		c := pod.Run(d.Shell("c", echoer, input))
		c.WaitOutput("up")
		all := streamclient.Process{Stdin: true, Stdout: true, Stderr: true}
		first := attach(c, transport, all)
		first.say(t, "one\n")
		first.out.Wait(t, "got one\n")
		watcher := attach(c, transport, streamclient.Process{Stdout: true})
		first.ping(t, watcher)
		first.say(t, "two\n")
		first.out.Wait(t, "got two\n")
		watcher.out.Wait(t, "got two\n")
		first.Vanish() // detach
		second := attach(c, transport, all)
		second.say(t, "three\n")
		second.out.Wait(t, "got three\n")
		watcher.out.Wait(t, "got three\n")
		if strings.Contains(second.out.String(), "two") {
			t.Errorf("the second client got what was written before it came: %q", second.out.String())
		}
		second.say(t, "end\n")
		for name, a := range map[string]*attached{"client": second, "watcher": watcher} {
			if err := <-a.done; err != nil {
				t.Errorf("%s: the %s's end: %v", transport, name, err)
			}
			a.out.Wait(t, "got end\n")
		}
		if s := c.Wait(10 * time.Second); s.ExitCode != 0 {
			t.Errorf("exit code %d", s.ExitCode)
		}
		if got, want := strings.ReplaceAll(c.Output(), "got ping\n", ""), "up\ngot one\ngot two\ngot three\ngot end\n"; got != want {
			t.Errorf("log %q, want %q", got, want)
		}
	}
}

// TestAttachEndOfInput: with StdinOnce the end of the first client's input, or its leaving, is the end of the container's. Without, it is not.
func TestAttachEndOfInput(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("once"))
	once := func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }
	p := streamclient.Process{Stdin: true, Stdout: true}
	for i, transport := range bothTransports {
		for j, end := range []func(*attached){func(a *attached) { a.Stdin.Close() }, func(a *attached) { a.Vanish() }, func(a *attached) { a.Abort() }} {
			c := pod.Run(d.Shell(fmt.Sprint("c", i, "-", j), echoer, once))
			a := attach(c, transport, p)
			a.say(t, "one\n")
			a.out.Wait(t, "got one\n")
			end(a)
			if j == 0 { // the other direction goes on
				a.out.Wait(t, "closed\n")
			}
			c.WaitOutput("closed")
		}
	}
	c := pod.Run(d.Shell("again", echoer, input))
	for _, transport := range bothTransports {
		for i := range 3 {
			a := attach(c, transport, p)
			a.say(t, "one\n")
			a.out.Wait(t, "got one\n")
			if i == 0 {
				a.Stdin.Close()
				if err := <-a.done; err != nil {
					t.Errorf("%s: end of the client's input: %v", transport, err)
				}
			}
			a.Close()
		}
	}
	if strings.Contains(c.Output(), "closed") {
		t.Error("the container's input was closed")
	}
}

func TestAttachToTerminal(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("terminal"))
	for i, transport := range bothTransports {
		c := pod.Run(d.Shell(fmt.Sprint("c", i), "while read x; do stty size; done", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true }))
		a := attach(c, transport, streamclient.Process{Stdin: true, Stdout: true, Terminal: true})
		if err := a.Resize(sandbox.TerminalSize{Columns: 123, Lines: 45}); err != nil {
			t.Fatal(err)
		}
		streamingtest.Eventually(t, func() bool {
			a.say(t, "x\n")
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(a.out.String(), "45 123")
		}, "the container sees the size: %q", &a.out)
		a.Vanish()
		b := attach(c, transport, streamclient.Process{Stdin: true, Stdout: true, Terminal: true})
		b.say(t, "y\n")
		b.out.Wait(t, "45 123")
		b.say(t, "\x04") // the end of a terminal's input
		if err := <-b.done; err != nil {
			t.Errorf("%s: %v", transport, err)
		}
		c.Wait(10 * time.Second)
	}
}

// TestStalledClientsHoldUpNothing: the container writes on, its log has every line, and it stops as fast as ever.
func TestStalledClientsHoldUpNothing(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("stalled")).Run(d.Container("c", []string{"probe", "lines", "20000", "a-line-of-some-length-so-that-buffers-fill-and-more-of-it-and-still-more"}))
	c.WaitOutput(" 100\n")
	for i := range 6 { // none reads
		u, err := d.AttachURL(d.Context(), c.ID, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		s, err := streamclient.Open(d.Context(), u, bothTransports[i%2], streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Vanish()
		u, err = d.ExecURL(d.Context(), c.ID, []string{"probe", "bytes", "1000000000", "x"}, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if s, err = streamclient.Open(d.Context(), u, bothTransports[i%2], streamclient.Process{Stdout: true}); err != nil {
			t.Fatal(err)
		}
		defer s.Vanish()
	}
	lines := func() int { return strings.Count(readRaw(t, c.LogFile()), "\n") }
	before := lines()
	d.Eventually(4*harness.Timeout, "100,000 lines come to the log beside stalled clients", func() bool { return lines() > before+100000 })
	begin := time.Now()
	c.Stop(25 * time.Second)
	if took := time.Since(begin); took > harness.Patience {
		t.Errorf("the stop took %v", took)
	}
	for i, l := range c.Lines() {
		if !strings.HasSuffix(l.Text, fmt.Sprint(" ", i)) {
			t.Fatalf("line %d of the log is %q", i, l.Text)
		}
	}
}

// TestPortForward moves 50 MiB both ways through 20 connections at once, into pods with and without a network of their own.
func TestPortForward(t *testing.T) {
	d := harness.Start(t)
	for name, option := range map[string]harness.PodOption{"own": func(*runtimeapi.PodSandboxConfig) {}, "host": hostNetwork} {
		port := uint16(7777)
		if name == "host" {
			port = uint16(harness.FreePort(t))
		}
		pod := d.RunPod(d.Pod("forward-"+name, option))
		pod.Run(d.Container("c", []string{"probe", "echo", fmt.Sprintf("127.0.0.1:%d", port)}))
		for _, transport := range bothTransports {
			t.Run(name+" "+string(transport), func(t *testing.T) { forward(t, d, pod, port, transport) })
		}
	}
}

func forward(t *testing.T, d *harness.Daemon, pod *harness.Pod, port uint16, transport streamclient.Transport) {
	const connections, size = 20, 50 << 20 / 20
	u, err := d.ForwardURL(d.Context(), pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	f, err := streamclient.Forward(t.Context(), u, transport)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	streamingtest.Eventually(t, func() bool { // until the server listens
		c, err := f.Connect(port)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		text, err := io.ReadAll(c.Errors)
		return err == nil && len(text) == 0
	}, "the server listens")
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			c, err := f.Connect(port)
			if err != nil {
				t.Error(err)
				return
			}
			data := make([]byte, size)
			mathrand.NewChaCha8([32]byte{byte(i)}).Read(data)
			go func() {
				for p := data; len(p) > 0; p = p[min(len(p), 32<<10):] {
					c.Write(p[:min(len(p), 32<<10)])
				}
				c.Close()
			}()
			hash := sha256.New()
			n, err := io.Copy(hash, c)
			if want := sha256.Sum256(data); err != nil || n != size || !bytes.Equal(hash.Sum(nil), want[:]) {
				t.Errorf("connection %d: %v, %d bytes of %d", i, err, n, size)
			}
		})
	}
	wg.Wait()
	t.Logf("50 MiB both ways in %v", time.Since(begin))
	refusedPort := uint16(harness.FreePort(t))
	c, err := f.Connect(refusedPort)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(c.Errors); err != nil || !strings.Contains(string(text), "connection refused") {
		t.Errorf("a port on which nobody listens: %q, %v", text, err)
	}
}

// TestStreamingListener: it is on loopback alone, a pod with the host's network gets nothing without a token, and neither tokens nor commands are in the log.
func TestStreamingListener(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("neighbour", hostNetwork))
	c := pod.Run(d.Sleeper("c"))
	u, err := d.ExecURL(d.Context(), c.ID, []string{"echo", "hunter2"}, streamclient.Process{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	where, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	if where.Hostname() != "127.0.0.1" {
		t.Errorf("the URL's host is %s", where.Hostname())
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP; !ip.IsLoopback() && ip.To4() != nil {
			if conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), where.Port()), 2*time.Second); err == nil {
				conn.Close()
				t.Errorf("%s reaches the listener", ip)
			}
		}
	}
	for _, path := range []string{"/", "/exec/", "/exec/" + strings.Repeat("A", 43), "/debug/pprof/", "/metrics", "/healthz"} {
		if r := c.Exec("wget", "-q", "-O-", "http://"+where.Host+path); r.Code == 0 || !strings.Contains(r.Stderr, "404") {
			t.Errorf("a pod gets %s: %+v", path, r)
		}
	}
	var out transcript.Transcript
	if code, err := streamclient.Run(t.Context(), u, streamclient.SPDY, sandbox.Streams{Stdout: &out}); err != nil || code != 0 || out.String() != "hunter2\n" {
		t.Errorf("exec = %d, %v, %q", code, err, out.String())
	}
	if _, err := streamclient.Open(t.Context(), u, streamclient.SPDY, streamclient.Process{Stdout: true}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("the URL a second time: %v", err)
	}
	for _, secret := range []string{"hunter2", filepath.Base(where.Path)} {
		if strings.Contains(readRaw(t, d.Log), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// TestStreamingFlood: URLs that nobody comes to are bounded in number, and the daemon serves on.
func TestStreamingFlood(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("flood")).Run(d.Sleeper("c"))
	u, err := d.ExecURL(d.Context(), c.ID, []string{"echo", "first"}, streamclient.Process{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	issued := 1
	for ; issued < 2000 && failed == nil; issued++ {
		_, failed = d.ExecURL(d.Context(), c.ID, []string{"true"}, streamclient.Process{Stdout: true})
	}
	wantCode(t, "one URL too many", failed, codes.ResourceExhausted)
	var out transcript.Transcript
	if code, err := streamclient.Run(t.Context(), u, streamclient.WebSocket, sandbox.Streams{Stdout: &out}); err != nil || code != 0 || out.String() != "first\n" {
		t.Errorf("the first URL after %d: %d, %v, %q", issued, code, err, out.String())
	}
	if r := c.Exec("echo", "sync"); r.Stdout != "sync\n" {
		t.Errorf("ExecSync beside: %+v", r)
	}
}

// TestStreamingThroughRestarts: with the daemon go its sessions and what they started; containers and what they were asked for before stay.
func TestStreamingThroughRestarts(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("restart")).Run(d.Shell("c", echoer, input))
	for _, end := range []func(){d.Kill, d.Stop} {
		u, err := d.ExecURL(d.Context(), c.ID, []string{"sh", "-c", "sleep 4321 & echo up; wait"}, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		s, err := streamclient.Open(d.Context(), u, streamclient.SPDY, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s.Stdout, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		a := attach(c, streamclient.WebSocket, streamclient.Process{Stdin: true, Stdout: true})
		a.say(t, "one\n")
		a.out.Wait(t, "got one\n")
		unused, err := d.ExecURL(d.Context(), c.ID, []string{"true"}, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		end()
		if _, err := s.Wait(); err == nil {
			t.Error("a session ended well with its daemon")
		}
		if err := <-a.done; err == nil {
			t.Error("an attached client ended well with its daemon")
		}
		s.Vanish()
		d.Start()
		d.Eventually(10*time.Second, "what the session started ends", func() bool { return c.Sh("ps | grep -c '[s]leep 4321'; true") == "0" })
		if _, err := streamclient.Open(d.Context(), unused, streamclient.SPDY, streamclient.Process{Stdout: true}); err == nil {
			t.Error("a URL outlived its daemon")
		}
		if r, err := streamed(c, streamclient.SPDY, "echo", "again"); err != nil || r.Stdout != "again\n" {
			t.Errorf("exec after the restart: %+v, %v", r, err)
		}
	}
	a := attach(c, streamclient.SPDY, streamclient.Process{Stdin: true, Stdout: true})
	a.say(t, "end\n")
	a.out.Wait(t, "got end\n")
	c.Wait(10 * time.Second)
	if strings.Contains(c.Output(), "closed") {
		t.Error("the container's input was closed by a restart")
	}
}

// TestStreamingConfiguration: another address, and TLS.
func TestStreamingConfiguration(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	makeCertificate(t, cert, key)
	port := harness.FreePort(t)
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[streaming]\naddress = \"0.0.0.0\"\nport = %d\ntls_cert = %q\ntls_key = %q\nidle_timeout = \"4s\"", port, cert, key)))
	c := d.RunPod(d.Pod("tls")).Run(d.Sleeper("c"))
	for _, transport := range bothTransports {
		u, err := d.ExecURL(d.Context(), c.ID, []string{"sh", "-c", "cat; exit 3"}, streamclient.Process{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("https://127.0.0.1:%d/exec/", port); !strings.HasPrefix(u, want) {
			t.Errorf("URL %s, want %s...", u, want)
		}
		var out transcript.Transcript
		code, err := streamclient.Run(t.Context(), u, transport, sandbox.Streams{Stdin: strings.NewReader("over TLS"), Stdout: &out})
		if err != nil || code != 3 || out.String() != "over TLS" {
			t.Errorf("%s: %d, %v, %q", transport, code, err, out.String())
		}
		begin := time.Now()
		if _, err := streamed(c, transport, "sleep", "600"); err == nil {
			t.Errorf("%s: an idle session ended well", transport)
		}
		if took := time.Since(begin); took < 4*time.Second || took > harness.Timeout {
			t.Errorf("%s: an idle session took %v", transport, took)
		}
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("the listener answers without TLS")
		}
	}
}

// makeCertificate writes a certificate that signs itself.
func makeCertificate(t testing.TB, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "berth"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
