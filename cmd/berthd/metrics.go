package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/prometheus"
)

// Bounds of requests for metrics: everybody who reaches the address may connect, also from a pod with the host's network.
const (
	metricsTimeout = 10 * time.Second
	// headTimeout is how long a client may take to ask.
	headTimeout = 2 * time.Second
	// maxScrapers is how many clients are served at a time; others wait without a descriptor of berthd's.
	maxScrapers = 16
)

// setMetricsAddress takes an address with a port.
func setMetricsAddress(c *config, address string) (err error) {
	if c.metrics, err = netip.ParseAddrPort(address); err != nil || c.metrics.Port() == 0 {
		return fmt.Errorf("%q is not an IP address with a port, as 127.0.0.1:9440", address)
	}
	return nil
}

// serveMetrics serves metrics, if there is an address for them, until the parts are closed.
func (p *parts) serveMetrics(ctx context.Context, address netip.AddrPort) error {
	if !address.IsValid() {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address.String())
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	p.calls = &prometheus.Calls{Version: version, Gauges: append(prometheus.Process(time.Now()), p.gauges()...)}
	server := &http.Server{Handler: p.calls, ReadHeaderTimeout: headTimeout, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, MaxHeaderBytes: 16 << 10}
	server.SetKeepAlivesEnabled(false)
	served := make(chan error, 1)
	go func() { served <- server.Serve(netutil.LimitListener(l, maxScrapers)) }()
	p.closeWith(func(context.Context) error {
		err := server.Close()
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		return err
	})
	klog.FromContext(ctx).Info("Served metrics", "address", l.Addr().String())
	return nil
}

// gauges count what there is.
func (p *parts) gauges() []prometheus.Gauge {
	one := func(n int) map[string]float64 { return map[string]float64{"": float64(n)} }
	return []prometheus.Gauge{
		{Name: "berth_pods", Help: "Pod sandboxes by state.", Label: "state", Read: func() map[string]float64 {
			all := map[string]float64{}
			for _, pod := range p.manager.Pods() {
				all[strings.ToLower(string(pod.State))]++
			}
			return all
		}},
		{Name: "berth_containers", Help: "Containers by state.", Label: "state", Read: func() map[string]float64 {
			all := map[string]float64{}
			for _, c := range p.manager.Containers() {
				all[strings.ToLower(string(c.State))]++
			}
			return all
		}},
		{Name: "berth_images", Help: "Images.", Read: func() map[string]float64 { return one(len(p.images.Images())) }},
		{Name: "berth_pulls", Help: "Pulls under way.", Read: func() map[string]float64 { return one(len(p.images.Pulls(""))) }},
	}
}

// observer is what is told of each call; nil when nobody counts.
func (p *parts) observer() func(method, code string, took time.Duration) {
	if p.calls == nil {
		return nil
	}
	return p.calls.Observe
}
