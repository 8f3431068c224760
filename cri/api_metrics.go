package cri

import (
	"context"
	"errors"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox"
)

// ListMetricDescriptors describes the metrics of ListPodSandboxMetrics. It is the same as long as the daemon runs.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	answer := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range slices.Concat(containerMetrics, podMetrics) {
		answer.Descriptors = append(answer.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(metricLabels, m.labels)})
	}
	return answer, nil
}

// ListPodSandboxMetrics measures the ready sandboxes and their running containers. What goes away meanwhile, or cannot be measured, is left out.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	all, err := s.listMetrics(ctx)
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: all}, err
}

func (s *runtimeService) listMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	filesystem, err := s.layers.Filesystem()
	if err != nil {
		return nil, err
	}
	logger := klog.FromContext(ctx)
	patience, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	running := s.runningByPod()
	var all []*runtimeapi.PodSandboxMetrics
	for _, p := range s.sortedPods() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if p.State != sandbox.PodReady {
			continue
		}
		one, err := s.podMetrics(p)
		if err != nil {
			leftOut(logger, err, "podSandboxID", p.ID)
			continue
		}
		for _, c := range running[p.ID] {
			f := facts{now: time.Now(), started: c.StartedAt, filesystem: filesystem}
			f.layer, f.layerKnown = s.layers.LayerUsage(patience, c.ID)
			metrics, err := s.containerMetrics(p, c, &f)
			if err != nil {
				leftOut(logger, err, "containerID", c.ID)
				continue
			}
			one.ContainerMetrics = append(one.ContainerMetrics, metrics)
		}
		all = append(all, one)
	}
	return all, nil
}

// leftOut logs what could not be measured, but for what is gone.
func leftOut(logger klog.Logger, err error, kind, id string) {
	if !errors.Is(err, sandbox.ErrNotFound) {
		logger.Info("Could not measure", kind, id, "err", err)
	}
}

func (s *runtimeService) podMetrics(p sandbox.Pod) (*runtimeapi.PodSandboxMetrics, error) {
	u, err := s.stats.PodStats(p.ID)
	if err != nil {
		return nil, err
	}
	f := facts{}
	for _, i := range u.Interfaces {
		f.interfaces = append(f.interfaces, interfaceUsage{name: i.Name, rx: traffic{i.Rx.Bytes, i.Rx.Packets, i.Rx.Errors, i.Rx.Dropped},
			tx: traffic{i.Tx.Bytes, i.Tx.Packets, i.Tx.Errors, i.Tx.Dropped}})
	}
	meta := p.Config.GetMetadata()
	labels := []string{"", u.Cgroup, "", p.ID, meta.GetNamespace(), meta.GetName()}
	return &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: collect(podMetrics, &f, labels)}, nil
}

func (s *runtimeService) containerMetrics(p sandbox.Pod, c sandbox.Container, f *facts) (*runtimeapi.ContainerMetrics, error) {
	var err error
	if f.stats, err = s.stats.ContainerStats(c.ID); err != nil {
		return nil, err
	}
	if f.details, err = s.stats.ContainerDetails(c.ID); err != nil {
		return nil, err
	}
	if f.resources, err = s.limits.Resources(c.ID); err != nil {
		return nil, err
	}
	meta := p.Config.GetMetadata()
	labels := []string{c.Config.GetMetadata().GetName(), f.details.Cgroup, s.imageSpec(c).GetImage(), c.ID, meta.GetNamespace(), meta.GetName()}
	return &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: collect(containerMetrics, f, labels)}, nil
}

// collect makes the messages of metrics.
func collect(metrics []metric, f *facts, labels []string) []*runtimeapi.Metric {
	for i := range labels {
		labels[i] = validText(labels[i])
	}
	all := make([]*runtimeapi.Metric, 0, len(metrics)+8)
	for _, m := range metrics {
		kind, values := runtimeapi.MetricType_GAUGE, m.gauge
		if m.counter != nil {
			kind, values = runtimeapi.MetricType_COUNTER, m.counter
		}
		for _, v := range values(f) {
			one := &runtimeapi.Metric{Name: m.name, MetricType: kind, LabelValues: labels, Value: number(v.n)}
			if len(v.labels) > 0 {
				one.LabelValues = slices.Concat(labels, v.labels)
			}
			if !v.at.IsZero() {
				one.Timestamp = v.at.UnixNano()
			}
			all = append(all, one)
		}
	}
	return all
}
