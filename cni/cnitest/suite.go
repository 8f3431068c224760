package cnitest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berthd/berth/cni"
)

// Harness is one host on which a cni.Network is tested.
type Harness struct {
	// Open starts the network. A second call is the daemon after a restart: it has the same folders.
	Open func(t *testing.T) cni.Network
	// NetNS returns the path of a fresh network namespace and a function that removes it.
	NetNS func(t *testing.T) (path string, remove func())
	// Leftovers names what is on the host although no attachment is: links, addresses, rules. It is asked when everything is over,
	// and may wait for what ends behind the calls.
	Leftovers func(t *testing.T) []string
	// Ports is set when the network maps host ports.
	Ports bool
}

// Suite runs every test on a harness of its own.
func Suite(t *testing.T, fresh func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"plan makes nothing":                                  planMakesNothing,
		"add gives addresses and del takes them":              addAndDel,
		"add is idempotent":                                   addTwice,
		"del is idempotent":                                   delTwice,
		"del of what was only planned":                        delPlanned,
		"del when the namespace is gone":                      delWithoutNetNS,
		"del of an add that was not recorded":                 delUnrecorded,
		"add after del":                                       addAfterDel,
		"add with a cancelled context leaves nothing":         addCancelled,
		"add to a namespace that is not there":                addWithoutNetNS,
		"check tells attached from not":                       check,
		"gc frees what is not valid and nothing else":         gc,
		"gc after a restart":                                  gcAfterRestart,
		"gc leaves adds under way alone":                      gcDuringAdds,
		"a restarted daemon deletes what the former one made": delAfterRestart,
		"pods in parallel get different addresses":            parallel,
		"the same pod from many goroutines":                   samePod,
		"bad requests are refused and change nothing":         badRequests,
		"status is ready":                                     status,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			h := fresh(t)
			test(t, h)
			if left := h.Leftovers(t); len(left) > 0 {
				t.Errorf("left on the host: %q", left)
			}
		})
	}
}

func request(t *testing.T, h Harness) (cni.Request, func()) {
	t.Helper()
	path, remove := h.NetNS(t)
	return cni.Request{SandboxID: SandboxID(), Namespace: "default", Name: "web-0", UID: "0b1c", NetNS: path}, remove
}

func plan(t *testing.T, n cni.Network, req cni.Request) cni.Attachment {
	t.Helper()
	a, err := n.Plan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func attach(t *testing.T, n cni.Network, req cni.Request) cni.Attachment {
	t.Helper()
	a := plan(t, n, req)
	if err := n.Add(t.Context(), req, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

func detach(t *testing.T, n cni.Network, a cni.Attachment) {
	t.Helper()
	if err := n.Del(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

func planMakesNothing(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := plan(t, n, req)
	if a.Engine == "" || a.SandboxID != req.SandboxID || a.NetNS != req.NetNS || a.IfName != "eth0" || len(a.IPs) != 0 {
		t.Errorf("Plan = %+v", a)
	}
}

func addAndDel(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := attach(t, n, req)
	if len(a.IPs) == 0 {
		t.Error("Add gave no address")
	}
	for _, p := range a.IPs {
		if !p.IsValid() || p.Addr().IsUnspecified() || p == p.Masked() && !p.IsSingleIP() {
			t.Errorf("Add gave %s", p)
		}
	}
	detach(t, n, a)
}

func addTwice(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := attach(t, n, req)
	b := a
	if err := n.Add(t.Context(), req, &b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, b, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("second Add (-first +second):\n%s", diff)
	}
	if err := n.Check(t.Context(), b); err != nil {
		t.Error(err)
	}
	detach(t, n, b)
}

func delTwice(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := attach(t, n, req)
	for range 3 {
		detach(t, n, a)
	}
}

func delPlanned(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	detach(t, n, plan(t, n, req))
}

func delWithoutNetNS(t *testing.T, h Harness) {
	n := h.Open(t)
	req, remove := request(t, h)
	a := attach(t, n, req)
	remove()
	detach(t, n, a)
}

func delUnrecorded(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	planned := plan(t, n, req)
	a := planned
	if err := n.Add(t.Context(), req, &a); err != nil {
		t.Fatal(err)
	}
	detach(t, h.Open(t), planned) // the record that the former daemon had time to write
}

func addAfterDel(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	for range 3 {
		a := attach(t, n, req)
		if err := n.Check(t.Context(), a); err != nil {
			t.Error(err)
		}
		detach(t, n, a)
	}
}

func addCancelled(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := plan(t, n, req)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Add(ctx, req, &a); !errors.Is(err, context.Canceled) {
		t.Errorf("Add = %v, want context.Canceled", err)
	}
	for d := time.Duration(0); d < 4*time.Millisecond; d += 100 * time.Microsecond {
		req, _ := request(t, h)
		a := plan(t, n, req)
		ctx, cancel := context.WithTimeout(t.Context(), d)
		if err := n.Add(ctx, req, &a); err == nil {
			detach(t, n, a)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Add with %s = %v", d, err)
		}
		cancel()
	}
}

func addWithoutNetNS(t *testing.T, h Harness) {
	n := h.Open(t)
	req, remove := request(t, h)
	remove()
	if _, ok := n.(*Fake); ok {
		return // it does not look
	}
	a := plan(t, n, req)
	if err := n.Add(t.Context(), req, &a); err == nil || !strings.Contains(err.Error(), req.NetNS) {
		t.Errorf("Add = %v, want an error that names %s", err, req.NetNS)
	}
}

func check(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	a := plan(t, n, req)
	if err := n.Check(t.Context(), a); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("Check of what is only planned = %v, want ErrNotAttached", err)
	}
	if err := n.Add(t.Context(), req, &a); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), a); err != nil {
		t.Error(err)
	}
	detach(t, n, a)
	if err := n.Check(t.Context(), a); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("Check after Del = %v, want ErrNotAttached", err)
	}
}

func delAfterRestart(t *testing.T, h Harness) {
	req, _ := request(t, h)
	if h.Ports {
		req.PortMappings = []cni.PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "TCP"}}
	}
	a := attach(t, h.Open(t), req)
	detach(t, h.Open(t), throughJSON(t, a))
}

func parallel(t *testing.T, h Harness) {
	n := h.Open(t)
	var mu sync.Mutex
	seen := make(map[netip.Addr]string)
	var wg sync.WaitGroup
	for range 12 {
		req, _ := request(t, h)
		wg.Go(func() {
			for range 3 {
				a, err := n.Plan(t.Context(), req)
				if err == nil {
					err = n.Add(t.Context(), req, &a)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, p := range a.IPs {
					if other := seen[p.Addr()]; other != "" {
						t.Errorf("%s and %s both have %s", other, req.SandboxID, p)
					}
					seen[p.Addr()] = req.SandboxID
				}
				mu.Unlock()
				if err := n.Check(t.Context(), a); err != nil {
					t.Error(err)
				}
				mu.Lock()
				for _, p := range a.IPs {
					delete(seen, p.Addr())
				}
				mu.Unlock()
				if err := n.Del(t.Context(), a); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func samePod(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	planned := plan(t, n, req)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			a := planned
			if i%3 == 2 {
				if err := n.Del(t.Context(), a); err != nil {
					t.Error(err)
				}
			} else if err := n.Add(t.Context(), req, &a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	detach(t, n, planned)
}

func badRequests(t *testing.T, h Harness) {
	n := h.Open(t)
	if _, ok := n.(*Fake); ok {
		return // it does not look
	}
	good, _ := request(t, h)
	for field, spoil := range map[string]func(*cni.Request){
		"sandbox ID":        func(r *cni.Request) { r.SandboxID = "../../x" },
		"interface name":    func(r *cni.Request) { r.IfName = "eth0/../x" },
		"network namespace": func(r *cni.Request) { r.NetNS = "relative" },
		"pod name":          func(r *cni.Request) { r.Name = "a;K8S_POD_NAMESPACE=kube-system" },
		"pod namespace":     func(r *cni.Request) { r.Namespace = "a\nb" },
		"pod UID":           func(r *cni.Request) { r.UID = strings.Repeat("u", 5000) },
		"protocol": func(r *cni.Request) {
			r.PortMappings = []cni.PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}
		},
		"container port": func(r *cni.Request) { r.PortMappings = []cni.PortMapping{{HostPort: 1, Protocol: "tcp"}} },
		"host port": func(r *cni.Request) {
			r.PortMappings = []cni.PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "tcp"}, {HostPort: 1, ContainerPort: 2, Protocol: "TCP"}}
		},
		"annotation": func(r *cni.Request) { r.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "lots"} },
	} {
		req := good
		spoil(&req)
		if _, err := n.Plan(t.Context(), req); !errors.Is(err, cni.ErrInvalid) || !strings.Contains(fmt.Sprint(err), field) {
			t.Errorf("Plan with a bad %s = %v, want ErrInvalid that names it", field, err)
		}
	}
}

func status(t *testing.T, h Harness) {
	if err := h.Open(t).Status(t.Context()); err != nil {
		t.Error(err)
	}
}
