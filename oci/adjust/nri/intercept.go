package nri

import (
	"context"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/oci/adjust"
)

// What the library does not do is done between it and the connection: evictions are passed on, and being synchronized has a time of its own, and
// messages that the connection takes.

// evictions are those that plugins ask for in their answers to one request.
type evictions struct {
	mu  sync.Mutex
	all []*api.ContainerEviction
}

type evictionsKey struct{}

// collectEvictions makes a context whose requests collect evictions.
func collectEvictions(ctx context.Context) (context.Context, *evictions) {
	e := &evictions{}
	return context.WithValue(ctx, evictionsKey{}, e), e
}

func (e *evictions) add(more []*api.ContainerEviction) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, more...)
}

func (e *evictions) taken() []*api.ContainerEviction {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all
}

// intercept stands between the library and a plugin.
func (p *Plugins) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	method := req.GetMethod()
	timeout := p.cfg.RequestTimeout
	send := invoke
	switch method {
	case "Synchronize":
		timeout = p.cfg.SyncTimeout
		send = func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response) error {
			return sendInParts(ctx, req, resp, invoke)
		}
	case "Configure":
		p.tellTimeout(req)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := send(ctx, req, resp); err != nil {
		return err
	}
	seeEvictions(ctx, method, resp)
	return nil
}

// tellTimeout tells a plugin the time that it has for requests.
func (p *Plugins) tellTimeout(req *ttrpc.Request) {
	var configure api.ConfigureRequest
	if proto.Unmarshal(req.GetPayload(), &configure) != nil {
		return
	}
	configure.RequestTimeout = p.cfg.RequestTimeout.Milliseconds()
	if payload, err := proto.Marshal(&configure); err == nil {
		req.Payload = payload
	}
}

// seeEvictions collects the evictions of an answer.
func seeEvictions(ctx context.Context, method string, resp *ttrpc.Response) {
	e, _ := ctx.Value(evictionsKey{}).(*evictions)
	if e == nil || len(resp.GetPayload()) == 0 || resp.GetStatus().GetCode() != 0 {
		return
	}
	var answer interface {
		proto.Message
		GetEvict() []*api.ContainerEviction
	}
	switch method {
	case "CreateContainer":
		answer = &api.CreateContainerResponse{}
	case "UpdateContainer":
		answer = &api.UpdateContainerResponse{}
	default:
		return
	}
	if proto.Unmarshal(resp.GetPayload(), answer) == nil { // the library reads it too, and tells what is wrong with it
		e.add(answer.GetEvict())
	}
}

// interceptPlugin does the evictions that a plugin asks for by itself.
func (p *Plugins) interceptPlugin(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	var asked []*api.ContainerEviction
	answer, err := method(ctx, func(into any) error {
		err := unmarshal(into)
		if r, ok := into.(*api.UpdateContainersRequest); ok && err == nil {
			asked = r.GetEvict()
		}
		return err
	})
	if err != nil {
		return answer, err
	}
	for _, e := range asked {
		if err := p.change(ctx, evictionOf(e)); err != nil {
			return answer, err
		}
	}
	return answer, nil
}

func evictionOf(e *api.ContainerEviction) adjust.Update {
	return adjust.Update{ContainerID: e.GetContainerId(), Evict: true, Reason: e.GetReason()}
}
