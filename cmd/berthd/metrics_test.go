package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestMetricsOfTheDaemon(t *testing.T) {
	m, f := newManager(t), newFolders(t)
	// An address of this process's own: a port that is free on 127.0.0.1 may be somebody else's a moment later.
	pid := os.Getpid()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64+pid>>16&63, pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.config, fmt.Appendf(text, "[metrics]\naddress = %q\n", address), 0o600); err != nil {
		t.Fatal(err)
	}
	f.start(t)
	m.await(t, "READY=1")
	f.version(t)
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	for _, want := range []string{`berth_cri_calls_total{method="Version",code="OK"} 1`, `berth_cri_call_seconds_count{method="Version"} 1`, "berth_images 0",
		"# TYPE berth_pods gauge", "process_open_fds "} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	// Whoever reaches the address may connect, and must not take the descriptors that pods need.
	before := openFiles(t, string(body))
	for range 24 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if resp, err = http.Get("http://" + address + "/metrics"); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if now := openFiles(t, string(body)); now > before+maxScrapers+4 {
		t.Errorf("clients that say nothing took berthd from %d to %d descriptors", before, now)
	}
	for _, bad := range []string{"localhost:1", "127.0.0.1", "127.0.0.1:0", ":9440"} {
		if _, err := readConfig(write(t, fmt.Sprintf("[metrics]\naddress = %q\n", bad))); err == nil || !strings.Contains(err.Error(), "key metrics.address") {
			t.Errorf("address %q: %v", bad, err)
		}
	}
}

// openFiles is the number of berthd's descriptors.
func openFiles(t *testing.T, metrics string) (n int) {
	t.Helper()
	_, after, _ := strings.Cut(metrics, "\nprocess_open_fds ")
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
