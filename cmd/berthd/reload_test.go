package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// status asks for everything that Status tells.
func (f folders) status(t *testing.T) (facts map[string]string, handlers []string) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(f.state, socketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{Verbose: true}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatalf("Status = %v", err)
	}
	if err := json.Unmarshal([]byte(s.GetInfo()["config"]), &facts); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.GetRuntimeHandlers() {
		handlers = append(handlers, h.GetName())
	}
	return facts, handlers
}

// manager takes what a daemon tells the service manager.
type manager struct{ *net.UnixConn }

func newManager(t *testing.T) manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	return manager{conn}
}

// await reads until a message begins with one of some texts.
func (m manager) await(t *testing.T, texts ...string) string {
	t.Helper()
	if err := m.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	for {
		n, err := m.Read(b)
		if err != nil {
			t.Fatalf("waiting for %q: %v", texts, err)
		}
		if slices.ContainsFunc(texts, func(text string) bool { return strings.HasPrefix(string(b[:n]), text) }) {
			return string(b[:n])
		}
	}
}

func (p *process) hangUp(t *testing.T, m manager) string {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if s := m.await(t, "RELOADING=1"); !strings.Contains(s, "\nMONOTONIC_USEC=") {
		t.Errorf("notification %q has no time", s)
	}
	return m.await(t, "READY=1")
}

func TestReload(t *testing.T) {
	m, f := newManager(t), newFolders(t)
	p := f.start(t)
	m.await(t, "READY=1")
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	dropIn := filepath.Join(f.config+".d", "50.toml")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := f.status(t)
	write(dropIn, "[log]\nverbosity = 5\n[registry]\nconfig_path = \"/new/certs\"\n[network]\nconf_dir = \"/new/net.d\"\nmtu = 1400\n[runtimes.other]\ntype = \"native\"\n")
	if s := p.hangUp(t, m); !strings.Contains(s, "taken over") {
		t.Errorf("notification %q", s)
	}
	facts, handlers := f.status(t)
	if facts["verbosity"] != "5" || facts["registryConfigPath"] != "/new/certs" || facts["cniConfDir"] != "/new/net.d" || !slices.Contains(handlers, "other") {
		t.Errorf("after the reload %v, %q", facts, handlers)
	}
	if facts["configNeedsRestart"] != "network.mtu" || facts["configRefused"] != "" {
		t.Errorf("after the reload %v", facts)
	}

	// One mistake, and nothing is taken.
	write(filepath.Join(f.config+".d", "60.toml"), "[log]\nverbosity = 1\n\n[network]\nmtu = 7\n")
	if s := p.hangUp(t, m); !strings.Contains(s, "Refused") {
		t.Errorf("notification %q", s)
	}
	now, handlers := f.status(t)
	if want := f.config + ".d/60.toml:5: key network.mtu: 7 "; !strings.HasPrefix(now["configRefused"], want) {
		t.Errorf("refused for %q, want %q", now["configRefused"], want)
	}
	delete(now, "configRefused")
	if len(now) != len(facts) || now["verbosity"] != "5" || now["cniConfDir"] != "/new/net.d" || !slices.Contains(handlers, "other") {
		t.Errorf("a bad file changed %v to %v, %q", facts, now, handlers)
	}

	// A file that was named must be there.
	if err := os.RemoveAll(f.config + ".d"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.config); err != nil {
		t.Fatal(err)
	}
	if s := p.hangUp(t, m); !strings.Contains(s, "Refused") {
		t.Errorf("notification %q", s)
	}
	write(f.config, string(text))
	p.hangUp(t, m)
	if now, handlers := f.status(t); now["configNeedsRestart"] != "" || now["cniConfDir"] != before["cniConfDir"] || slices.Contains(handlers, "other") {
		t.Errorf("back to the first file: %v, %q", now, handlers)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, want := range []string{f.config + ".d/60.toml:5: key network.mtu: 7", "network.mtu"} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log has no %q", want)
		}
	}
}

func TestReloadOfTheCertificate(t *testing.T) {
	m, f := newManager(t), newFolders(t)
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	shown := func() int64 {
		t.Helper()
		facts, _ := f.status(t)
		conn, err := tls.Dial("tcp", strings.TrimPrefix(facts["streaming"], "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	makeCertificate(t, cert, key, 1)
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.config, fmt.Appendf(text, "[streaming]\ntls_cert = %q\ntls_key = %q\n", cert, key), 0o600); err != nil {
		t.Fatal(err)
	}
	p := f.start(t)
	m.await(t, "READY=1")
	if n := shown(); n != 1 {
		t.Errorf("certificate %d, want 1", n)
	}
	makeCertificate(t, cert, key, 2)
	if s := p.hangUp(t, m); !strings.Contains(s, "taken over") || shown() != 2 {
		t.Errorf("after a reload %q, certificate %d, want 2", s, shown())
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := p.hangUp(t, m); !strings.Contains(s, "Refused") || shown() != 2 {
		t.Errorf("after a bad key %q, certificate %d, want 2", s, shown())
	}
	line := strings.Count(string(text), "\n") + 1 // of [streaming]
	refused := func(want string) {
		t.Helper()
		if facts, _ := f.status(t); !strings.HasPrefix(facts["configRefused"], want) {
			t.Errorf("refused for %q, want %q", facts["configRefused"], want)
		}
	}
	refused(fmt.Sprintf("%s:%d: key streaming.tls_key: use %s as the key of %s: ", f.config, line+2, key, cert))
	// Other names need a restart, which has to find the files; those of before may go.
	was := cert
	cert, key = cert+"2", key+"2"
	if err := os.WriteFile(f.config, fmt.Appendf(text, "[streaming]\ntls_cert = %q\ntls_key = %q\n", cert, key), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := p.hangUp(t, m); !strings.Contains(s, "Refused") {
		t.Errorf("with names of files that are missing: %q", s)
	}
	refused(fmt.Sprintf("%s:%d: key streaming.tls_cert: read the certificate: open %s: ", f.config, line+1, cert))
	makeCertificate(t, cert, key, 3)
	if err := os.Remove(was); err != nil {
		t.Fatal(err)
	}
	if s := p.hangUp(t, m); !strings.Contains(s, "taken over") || shown() != 2 {
		t.Errorf("with other names %q, certificate %d, want 2", s, shown())
	}
}

// A service manager, or a person, may ask for a reload at any moment.
func TestHangupNeverEndsTheDaemon(t *testing.T) {
	f := newFolders(t)
	for range 3 {
		m := newManager(t)
		p := f.start(t)
		stop, stopped := make(chan bool), make(chan int)
		go func() {
			sent := 0
			<-p.begun
			for {
				select {
				case <-stop:
					stopped <- sent
					return
				default:
				}
				if p.cmd.Process.Signal(syscall.SIGHUP) == nil {
					sent++
				}
				time.Sleep(200 * time.Microsecond)
			}
		}()
		m.await(t, "READY=1")
		m.await(t, "RELOADING=1")
		m.await(t, "READY=1")
		f.version(t)
		close(stop)
		t.Logf("%d signals", <-stopped)
		f.version(t)
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(t); code != 0 {
			t.Fatalf("exit status %d", code)
		}
	}
}
