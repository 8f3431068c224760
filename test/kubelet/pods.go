package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Namespace is that of all pods here.
const Namespace = "default"

// Pod is what the kubelet's API says of a pod, as far as the tests look.
type Pod struct {
	Metadata struct{ Name, UID string }
	Status   struct {
		Phase, Reason, Message, HostIP, PodIP string
		Conditions                            []struct{ Type, Status string }
		Containers                            []Container `json:"containerStatuses"`
		InitContainers                        []Container `json:"initContainerStatuses"`
	}
}

// Container is the status of one of a pod's containers.
type Container struct {
	Name, ContainerID, ImageID string
	RestartCount               int
	Ready                      bool
	Started                    *bool
	State, LastState           State
	Resources                  struct{ Requests, Limits map[string]string }
}

// State is one of three; the others are nil.
type State struct {
	Running *struct{ StartedAt time.Time }
	Waiting *struct{ Reason, Message string }
	Ended   *End `json:"terminated"`
}

// End is how a container ended.
type End struct {
	ExitCode, Signal      int
	Reason, Message       string
	StartedAt, FinishedAt time.Time
	ContainerID           string
}

// ID is the runtime's ID of the container.
func (c Container) ID() string {
	_, id, _ := strings.Cut(c.ContainerID, "://")
	return id
}

// Condition is the status of one of the pod's conditions, or "".
func (p Pod) Condition(name string) string {
	for _, c := range p.Status.Conditions {
		if c.Type == name {
			return c.Status
		}
	}
	return ""
}

// Container is the status of a container of either kind. One without a status has no fields.
func (p Pod) Container(name string) Container {
	for _, list := range [][]Container{p.Status.Containers, p.Status.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return Container{}
}

// Put writes a pod's file: the kubelet runs it. The specification is YAML; the UID is the name.
func (k *Process) Put(name, spec string) error {
	text := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n  uid: " + name + "\n  labels: {app: " + name + "}\nspec:\n" +
		"  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
	path := filepath.Join(k.Pods, "."+name) // the kubelet looks at no such name, so it reads no half file
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write pod %s: %w", name, err)
	}
	if err := os.Rename(path, k.file(name)); err != nil {
		return fmt.Errorf("write pod %s: %w", name, err)
	}
	return nil
}

// Take removes a pod's file: the kubelet ends the pod.
func (k *Process) Take(name string) error { return os.Remove(k.file(name)) }

func (k *Process) file(name string) string { return filepath.Join(k.Pods, name+".yaml") }

// List asks for the pods and their statuses, by the names that Put got.
func (k *Process) List(ctx context.Context) (map[string]Pod, error) {
	text, err := k.Get(ctx, "/pods")
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var list struct{ Items []Pod }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	pods := map[string]Pod{}
	for _, p := range list.Items {
		pods[strings.TrimSuffix(p.Metadata.Name, "-"+Node)] = p
	}
	return pods, nil
}

// Run runs a command in a container and returns its output, both streams.
func (k *Process) Run(ctx context.Context, pod, container string, command ...string) (string, error) {
	// The API splits the command at spaces, so it is one word a space.
	return k.Post(ctx, "/run/"+address(pod, container)+"?cmd="+url.QueryEscape(strings.Join(command, " ")))
}

// Logs reads a container's log; the query is as in tailLines=3&timestamps=true.
func (k *Process) Logs(ctx context.Context, pod, container, query string) (string, error) {
	return k.Get(ctx, "/containerLogs/"+address(pod, container)+"?"+query)
}

// StreamURL is where a client of streams asks for verb, which is exec, attach or portForward; without a container for the last one.
// Values of the query are as in command=ls&output=1.
func (k *Process) StreamURL(verb, pod, container string, query url.Values) string {
	return k.URL + "/" + verb + "/" + strings.TrimSuffix(address(pod, container), "/") + "?" + query.Encode()
}

func address(pod, container string) string {
	return Namespace + "/" + pod + "-" + Node + "/" + container
}
