package cri

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

// Limits of the gRPC server.
const (
	// maxMessageBytes bounds a request and an answer. It is the limit of the kubelet's client too
	// (k8s.io/cri-client/pkg/utils.go).
	maxMessageBytes = 16 << 20
	// maxStreams bounds the calls under way on one connection; more wait in the client. The kubelet uses one
	// connection, and 500 pods starting at once stay below it.
	maxStreams = 1024
	// handshakeTimeout bounds how long a connection may take for HTTP/2's preface.
	handshakeTimeout = 10 * time.Second
	// keepaliveIdle is after how much silence a client is asked whether it is still there. On a unix socket a client
	// that died has closed; what this finds is one that is stopped.
	keepaliveIdle = 5 * time.Minute
	// keepaliveMinimum is how often a client may ping.
	keepaliveMinimum = 10 * time.Second
	// bufferBytes is the size of a connection's read and of its write buffer.
	bufferBytes = 8 << 10
)

// Pods runs and knows sandboxes. Its errors are those of package sandbox.
type Pods interface {
	RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (sandboxID string, err error)
	StopPod(ctx context.Context, sandboxID string) error
	RemovePod(ctx context.Context, sandboxID string) error
	// CheckNetwork is nil when one that is ready has its network as it was made.
	CheckNetwork(ctx context.Context, sandboxID string) error
	// Pod finds one by its ID or a unique prefix of it.
	Pod(sandboxID string) (sandbox.Pod, error)
	Pods() []sandbox.Pod
}

// Containers runs and knows containers. Its errors are those of package sandbox.
type Containers interface {
	CreateContainer(ctx context.Context, request sandbox.CreateRequest) (containerID string, err error)
	StartContainer(ctx context.Context, containerID string) error
	StopContainer(ctx context.Context, containerID string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, containerID string) error
	ReopenLog(ctx context.Context, containerID string) error
	ExecSync(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (sandbox.ExecResult, error)
	// Container finds one by its ID or a unique prefix of it.
	Container(containerID string) (sandbox.Container, error)
	Containers() []sandbox.Container
}

// Images pulls and knows images. Its errors are those of package imageservice.
type Images interface {
	// Pull answers with the image ID.
	Pull(ctx context.Context, reference string, auth imageservice.Auth, progress func(imageservice.Progress)) (imageID string, err error)
	// Image finds one by any reference, its ID or a unique prefix of its ID.
	Image(reference string) (imageservice.Image, error)
	Images() []imageservice.Image
	Remove(ctx context.Context, reference string) error
	// Pulls are those under way; of a reference, if there is one, the latest, also when it has ended.
	Pulls(reference string) []imageservice.Progress
	// ReadFile reads a regular file of the image's root of at most max bytes; fs.ErrNotExist when there is none.
	ReadFile(ctx context.Context, imageID, path string, max int64) ([]byte, error)
	// CheckVolume says whether a path of the image can be mounted: fs.ErrNotExist, imageservice.ErrNotVolume.
	CheckVolume(ctx context.Context, imageID, path string) error
	FsUsage(ctx context.Context) (images, containers imageservice.FsUsage, err error)
}

// Network knows whether pods can be given a network.
type Network interface {
	// Status is nil when they can.
	Status(ctx context.Context) error
	// SetPodRanges tells the address ranges of this node's pods, and answers with what that has changed.
	SetPodRanges(ctx context.Context, ranges []netip.Prefix) (effect string, err error)
	// Warnings are what the operator should know although they can. They are cheap to ask for.
	Warnings(ctx context.Context) []Warning
}

// Warning is a condition that holds and that keeps no pod from running.
type Warning struct {
	Type    string // CamelCase
	Message string // a sentence
}

// Handler is a runtime handler that a pod may name.
type Handler struct {
	Name string
	// Features are what it can do on this host; nil is none. They are cheap to ask for.
	Features func(context.Context) *runtimeapi.RuntimeHandlerFeatures
	// Problem is why pods cannot use it now; nil, or nil from it: they can. It is cheap to ask for.
	Problem func(context.Context) error
}

// Config is what a Server is made of. Every field but Facts must be set.
type Config struct {
	Pods       Pods
	Containers Containers
	Images     Images
	Network    Network
	Stats      Stats
	Limits     Limits
	Layers     Layers
	Events     Events
	Streaming  Streaming
	// Handlers that a pod may name, as Status lists them; "" is the one that is used when a pod names none.
	Handlers []Handler
	// CgroupDriver is what the kubelet has to name cgroups for.
	CgroupDriver runtimeapi.CgroupDriver
	// Version of berthd, semantic.
	Version string
	// Facts go into the answer of Status when it is asked to be verbose. They must not contain secrets; nil is none.
	Facts func() map[string]string
	// Observe is told of each call that has been answered; nil: nobody is.
	Observe func(method, code string, took time.Duration)
	// Logger is what the calls' contextual loggers are made from.
	Logger klog.Logger
}

// Server serves the CRI.
type Server struct {
	grpc *grpc.Server
	// end ends the streams that would go on for ever.
	end      context.CancelFunc
	handlers *handlers
}

// NewServer makes a Server that waits for Serve.
func NewServer(c Config) *Server {
	i := interceptor{logger: c.Logger, observe: c.Observe}
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinimum, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
	)
	handlers := &handlers{}
	handlers.set(c.Handlers)
	ending, end := context.WithCancel(context.Background())
	g.RegisterService(runtimeServiceDesc(), &runtimeService{
		pods: c.Pods, containers: c.Containers, images: c.Images, network: c.Network, stats: c.Stats, limits: c.Limits, layers: c.Layers,
		events: c.Events, ending: ending, streaming: c.Streaming,
		handlers: handlers, driver: c.CgroupDriver, version: c.Version, facts: c.Facts,
	})
	runtimeapi.RegisterImageServiceServer(g, &imageServer{images: c.Images, handlers: handlers})
	return &Server{grpc: g, end: end, handlers: handlers}
}

// SetHandlers changes what pods may name and Status lists.
func (s *Server) SetHandlers(handlers []Handler) { s.handlers.set(handlers) }

// Serve answers calls that come in through l until Shutdown, which may have come before. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Shutdown takes no more calls and waits for those under way until ctx ends, then cancels them. A cancelled call is undone by
// who carries it out, and its client asks the next daemon.
func (s *Server) Shutdown(ctx context.Context) {
	s.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

// runtimeService is runtime.v1.RuntimeService; its methods stand in the api_*.go files.
type runtimeService struct {
	// What is not built is answered by the interceptor before it comes here (unimplemented.go).
	runtimeapi.UnimplementedRuntimeServiceServer
	pods       Pods
	containers Containers
	images     Images
	network    Network
	stats      Stats
	limits     Limits
	layers     Layers
	events     Events
	ending     context.Context //nolint:containedctx // the life of the server itself
	streaming  Streaming
	handlers   *handlers
	driver     runtimeapi.CgroupDriver
	version    string
	facts      func() map[string]string
}

// imageServer is runtime.v1.ImageService; its methods stand in api_image.go.
type imageServer struct {
	runtimeapi.UnimplementedImageServiceServer
	images   Images
	handlers *handlers
}
