package cri

// unimplemented holds every method of the two services that is not built, with the sentence that its callers get. A test holds it
// against the services: a method is in this table or has an implementation.
var unimplemented = map[string]string{
	"StreamContainerStats":    "berth does not stream lists yet: use ListContainerStats",
	"StreamPodSandboxStats":   "berth does not stream lists yet: use ListPodSandboxStats",
	"StreamPodSandboxMetrics": "berth does not stream lists yet: use ListPodSandboxMetrics",

	"StreamPodSandboxes": "berth does not stream lists yet: use ListPodSandbox",
	"StreamContainers":   "berth does not stream lists yet: use ListContainers",
	"StreamImages":       "berth does not stream lists yet: use ListImages",

	"CheckpointContainer": "berth does not checkpoint containers",
	"CheckpointPod":       "berth does not checkpoint pods",
	"RestorePod":          "berth does not restore pods",
}
