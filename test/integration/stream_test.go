package integration_test

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
)

var transports = map[string]streamclient.Transport{"SPDY": streamclient.SPDY, "WebSocket": streamclient.WebSocket}

// TestStreamingSuite holds the daemon, seen by its streaming clients, against what package streaming promises.
func TestStreamingSuite(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("stream", harness.Namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD)))
	c := pod.Run(d.Sleeper("c"))
	for name, transport := range map[string]streamclient.Transport{"SPDY": streamclient.SPDY, "v5": streamclient.WebSocket,
		"v4": streamclient.V4, "base64": streamclient.Base64} {
		t.Run(name, func(t *testing.T) {
			streamingtest.Suite(t, streamingtest.Target{Runtime: harness.Streaming{Daemon: d, Transport: transport}, ContainerID: c.ID, SandboxID: pod.ID,
				InputEnds: name == "SPDY" || name == "v5"})
		})
	}
}
