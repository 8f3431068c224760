package nri

import (
	"context"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

// Adjust has the plugins change the specification of a container that is being created. Preconditions: between Enter and leave.
func (p *Plugins) Adjust(ctx context.Context, c *adjust.Container) error {
	library := p.library.Load()
	if library == nil || !p.Active() {
		return nil
	}
	ctx, evictions := collectEvictions(ctx)
	request := &api.CreateContainerRequest{Pod: sandboxOf(c.Sandbox), Container: containerOf(c)}
	answer, err := library.CreateContainer(ctx, request)
	if err != nil {
		return fmt.Errorf("plugins: %w", err)
	}
	if c.Updates, err = updatesOf(answer.GetUpdate(), evictions.taken()); err != nil {
		return err
	}
	dropRemoved(c.Spec, request.GetContainer())
	return p.apply(ctx, c, answer.GetAdjust())
}

// Pod tells the plugins what happens to a sandbox. Preconditions for RunPod: between Enter and leave.
func (p *Plugins) Pod(ctx context.Context, e adjust.Event, s *adjust.Sandbox) (err error) {
	library := p.library.Load()
	if library == nil {
		return nil
	}
	pod := sandboxOf(s)
	if e != adjust.RunPod {
		defer p.Enter()()
	}
	switch e {
	case adjust.RunPod:
		err = library.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
	case adjust.StopPod:
		err = library.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
	case adjust.RemovePod:
		err = library.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
	case adjust.UpdatedPod:
		err = library.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
	default:
		err = fmt.Errorf("event %d is not of a sandbox", e)
	}
	return about("plugins", err)
}

// UpdatePod tells the plugins that a sandbox is about to be updated. nil leaves what was.
func (p *Plugins) UpdatePod(ctx context.Context, s *adjust.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error {
	library := p.library.Load()
	if library == nil {
		return nil
	}
	defer p.Enter()()
	_, err := library.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: sandboxOf(s),
		OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources)})
	return about("plugins", err)
}

// Container tells the plugins what happens to a container, and returns what they ask for.
func (p *Plugins) Container(ctx context.Context, e adjust.Event, c *adjust.Container) (updates []adjust.Update, err error) {
	library := p.library.Load()
	if library == nil {
		return nil, nil
	}
	pod, container := sandboxOf(c.Sandbox), containerOf(c)
	defer p.Enter()()
	switch e {
	case adjust.CreatedContainer:
		err = library.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: container})
	case adjust.StartContainer:
		err = library.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: container})
	case adjust.StartedContainer:
		err = library.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: container})
	case adjust.UpdatedContainer:
		err = library.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: container})
	case adjust.RemoveContainer:
		err = library.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: container})
	case adjust.StopContainer:
		var answer *api.StopContainerResponse
		if answer, err = library.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: container}); err == nil {
			updates, err = updatesOf(answer.GetUpdate(), nil)
		}
	default:
		err = fmt.Errorf("event %d is not of a container", e)
	}
	return updates, about("plugins", err)
}

// Update tells the plugins that the limits of a container are about to be changed to what is set in asked, and returns what they make of that, and
// their updates of other containers.
func (p *Plugins) Update(ctx context.Context, c *adjust.Container, asked *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []adjust.Update, error) {
	library := p.library.Load()
	if library == nil {
		return asked, nil, nil
	}
	ctx, evictions := collectEvictions(ctx)
	request := &api.UpdateContainerRequest{Pod: sandboxOf(c.Sandbox), Container: containerOf(c), LinuxResources: fromCRI(asked)}
	if request.LinuxResources == nil {
		request.LinuxResources = &api.LinuxResources{}
	}
	answer, err := func() (*api.UpdateContainerResponse, error) {
		defer p.Enter()()
		return library.UpdateContainer(ctx, request)
	}()
	if err != nil {
		return nil, nil, about("plugins", err)
	}
	others := make([]*api.ContainerUpdate, 0, len(answer.GetUpdate()))
	for _, u := range answer.GetUpdate() {
		switch {
		case u == nil:
		case u.GetContainerId() == c.ID:
			made, err := toCRI(u.GetLinux().GetResources())
			if err != nil && u.GetIgnoreFailure() {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			made.OomScoreAdj = asked.GetOomScoreAdj() // the interface does not carry it
			asked = made
		default:
			others = append(others, u)
		}
	}
	updates, err := updatesOf(others, evictions.taken())
	return asked, updates, err
}

// about says what an error is about; nil stays nil.
func about(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
