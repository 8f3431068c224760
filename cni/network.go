package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"

	"github.com/berthd/berth/cni/hostport"
	"github.com/berthd/berth/cni/ipam"
)

// Errors that a caller may decide on.
var (
	ErrInvalid      = errors.New("invalid network request")
	ErrNotReady     = errors.New("network is not ready")
	ErrNotAttached  = errors.New("pod is not attached")
	ErrExhausted    = ipam.ErrExhausted
	ErrPortInUse    = hostport.ErrInUse
	ErrNotSupported = hostport.ErrNotSupported
)

// Engines, as Attachment.Engine names them.
const (
	EngineBridge = "bridge"
	EngineCNI    = "cni"
)

// Network makes and ends attachments.
type Network interface {
	// Plan decides engine, configuration and names for an attachment. It changes nothing on the host; the caller records the
	// result before Add.
	Plan(ctx context.Context, req Request) (Attachment, error)

	// Add makes what a plans and fills in its addresses. It is idempotent. When it fails it has undone what it did, or says in
	// its error what is left; Del is then still allowed, and needed only in the latter case.
	Add(ctx context.Context, req Request, a *Attachment) error

	// Del frees everything of a. It is idempotent, and works on an attachment that was only planned, half made, or whose network
	// namespace is gone.
	Del(ctx context.Context, a Attachment) error

	// Check returns an error that says what is missing of a.
	Check(ctx context.Context, a Attachment) error

	// Status returns nil when Add can be expected to work.
	Status(ctx context.Context) error

	// GC frees everything that no attachment in valid names. Attachments whose Add is under way are left alone; those whose Add
	// has ended must be in valid, so the caller lets no Add begin between making the list and the call.
	GC(ctx context.Context, valid []Attachment) error
}

// Request is what a pod asks of the network.
type Request struct {
	SandboxID string
	Namespace string
	Name      string
	UID       string
	NetNS     string // path of the pinned network namespace
	IfName    string // "" means eth0

	PortMappings []PortMapping
	Annotations  map[string]string
	Bandwidth    *Bandwidth     // nil: what the kubernetes.io/{in,e}gress-bandwidth annotations say
	DNS          *DNS           // nil: nothing is passed to plugins
	IPs          []netip.Prefix // addresses asked for by name, at most one a family
}

// PortMapping leads a port of the host to one of the pod. Its JSON form is that of the CNI capability portMappings.
type PortMapping struct {
	HostPort      uint16     `json:"hostPort"` // 0: none, the mapping is ignored
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // tcp, udp, sctp
	HostIP        netip.Addr `json:"hostIP,omitzero"`
}

// Bandwidth is the CNI capability of that name; rates in bits a second, bursts in bits, 0 is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// DNS is the CNI capability of that name.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Attachment is all that is needed to end what it describes. It is plain data: the caller stores it with the pod's record.
type Attachment struct {
	Engine    string         `json:"engine"`
	Network   string         `json:"network"` // name of the bridge or of the configuration list
	SandboxID string         `json:"sandboxID"`
	NetNS     string         `json:"netNS"`
	IfName    string         `json:"ifName"`
	HostIf    string         `json:"hostIf,omitempty"` // name of the host's end of the veth pair, where it is known
	Ifb       string         `json:"ifb,omitempty"`    // name of the link that limits what the pod sends, where there is one
	IPs       []netip.Prefix `json:"ips,omitempty"`    // filled in by Add; the first is the pod's primary address
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	Ports     []PortMapping  `json:"ports,omitempty"`

	// Of the engine "cni":
	ConfigFile   string          `json:"configFile,omitempty"` // where Config was read, for errors
	Config       json.RawMessage `json:"config,omitempty"`     // the configuration list
	Args         [][2]string     `json:"args,omitempty"`       // CNI_ARGS
	Capabilities json.RawMessage `json:"capabilities,omitempty"`
	Result       json.RawMessage `json:"result,omitempty"` // of ADD
}

// Condition is something that the operator should know and that does not keep pods from being attached.
type Condition struct {
	Type    string // CamelCase
	Message string // a sentence
}
