package cri

// unimplemented holds every method of the two services that is not built, with the sentence that its callers get. A test holds it
// against the services: a method is in this table or has an implementation.
var unimplemented = map[string]string{
	"CheckpointContainer": "berth does not checkpoint containers",
	"CheckpointPod":       "berth does not checkpoint pods",
	"RestorePod":          "berth does not restore pods",
}
