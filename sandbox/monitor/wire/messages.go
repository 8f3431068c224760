package wire

import (
	"fmt"
	"syscall"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/runtime/engine/codec"
)

// Coder is a message body.
type Coder interface{ Code(*codec.Codec) }

// Encode returns the bytes of a body.
func Encode(body Coder) []byte {
	c := codec.Encoder()
	body.Code(c)
	return c.Bytes()
}

// Decode fills in a body.
func Decode(b []byte, body Coder) error {
	c := codec.Decoder(b)
	body.Code(c)
	return c.Err()
}

// Sysctl is one kernel parameter: key in dotted form, and its value.
type Sysctl struct{ Key, Value string }

func codeSysctls(c *codec.Codec, list *[]Sysctl) {
	codec.List(c, list, func(c *codec.Codec, v *Sysctl) { c.String(&v.Key); c.String(&v.Value) })
}

// Setup tells a monitor, on its standard input, which pod is its own.
type Setup struct {
	SandboxID string
	RecordDir string // exit records go to RecordDir/CONTAINER/exit
	Hostname  string // "" leaves it
	Sysctls   []Sysctl
	SharedPID bool // an init for one pid namespace of the whole pod
	// UIDs and GIDs are the mappings of the pod's user namespace, descriptor 4; empty: the host's.
	UIDs, GIDs []engine.IDMap
}

// Code writes or reads s.
func (s *Setup) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&s.SandboxID)
		c.String(&s.RecordDir)
		c.String(&s.Hostname)
		codeSysctls(c, &s.Sysctls)
		c.Bool(&s.SharedPID)
		engine.CodeIDMaps(c, &s.UIDs)
		engine.CodeIDMaps(c, &s.GIDs)
	})
}

// Exit is how a container ended.
type Exit struct {
	ContainerID string
	PID         int
	ExitCode    int32 // 128 + the signal's number when a signal ended it
	OOMKilled   bool
	FinishedAt  int64 // nanoseconds since 1970
}

// Code writes or reads e.
func (e *Exit) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&e.ContainerID)
		c.Int(&e.PID)
		code := int64(e.ExitCode)
		c.Int64(&code)
		e.ExitCode = int32(code)
		c.Bool(&e.OOMKilled)
		c.Int64(&e.FinishedAt)
	})
}

// Container is what a monitor knows of one container.
type Container struct {
	ID         string
	PID        int
	StartedAt  int64 // nanoseconds since 1970
	Running    bool
	ExitCode   int32 // this and what follows: as in Exit, when not Running
	OOMKilled  bool
	FinishedAt int64
}

func (v *Container) code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&v.ID)
		c.Int(&v.PID)
		c.Int64(&v.StartedAt)
		c.Bool(&v.Running)
		code := int64(v.ExitCode)
		c.Int64(&code)
		v.ExitCode = int32(code)
		c.Bool(&v.OOMKilled)
		c.Int64(&v.FinishedAt)
	})
}

// Hello is a monitor's answer to VerbHello: it is up, and this is its pod.
type Hello struct {
	Version    uint64
	PID        int
	PIDNSInit  int // process ID of the shared pid namespace's init; 0 is none
	Containers []Container
}

// Code writes or reads h.
func (h *Hello) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.Uint64(&h.Version)
		c.Int(&h.PID)
		c.Int(&h.PIDNSInit)
		codec.List(c, &h.Containers, func(c *codec.Codec, v *Container) { v.code(c) })
	})
}

// Start asks for a container. Descriptors: one a cgroup, and perhaps one of Command. With a Command the plan holds only what the monitor needs to know
// of the container that another runtime makes.
type Start struct {
	ContainerID string
	Plan        engine.Plan
	LogPath     string   // "" keeps no log
	Cgroups     []string // the paths of the descriptors
	Command     Command
	Sysctls     []Sysctl // set in the pod's namespaces before the container is made
	LogIsReal   bool     // no part of LogPath may be a symbolic link; an older monitor lets folders be
}

// Code writes or reads s.
func (s *Start) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&s.ContainerID)
		s.Plan.Code(c)
		c.String(&s.LogPath)
		c.Strings(&s.Cgroups)
		s.Command.Code(c)
		codeSysctls(c, &s.Sysctls)
		c.Bool(&s.LogIsReal)
	})
}

// Paused tells at which of the plan's points a start waits.
type Paused struct {
	Point engine.Point
	PID   int // of the child that waits
}

// Code writes or reads p.
func (p *Paused) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) { c.Uint32((*uint32)(&p.Point)); c.Int(&p.PID) })
}

// What the descriptors of Exec are that follow those of the cgroups.
const (
	ExecKill   = 'k' // cgroup.kill of the exec's own cgroup
	ExecStdin  = 'i'
	ExecStdout = 'o'
	ExecStderr = 'e'
	ExecGroup  = 'g' // the cgroup that the program of Command runs in
)

// Exec asks for a process in a container. Descriptors: one a cgroup, then one a letter of Present. With a terminal it has no streams: the
// master comes with AnswerStarted.
type Exec struct {
	ContainerID string
	Process     engine.Process
	Cgroups     []string
	Present     string
	Started     bool // AnswerStarted comes first; its body is an Exit with the PID
	Command     Command
	Waiting     bool // the container is one whose start waits
}

// Code writes or reads e.
func (e *Exec) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&e.ContainerID)
		e.Process.Code(c)
		c.Strings(&e.Cgroups)
		c.String(&e.Present)
		c.Bool(&e.Started)
		e.Command.Code(c)
		c.Bool(&e.Waiting)
	})
}

// Attach asks for what a container writes from now on. Descriptors: the write ends of pipes, one a letter of Present (ExecStdout, ExecStderr);
// the monitor never waits for them. AnswerStarted has one descriptor when there is an Input and it was asked for: the write end of the
// container's stdin, or its terminal's master. AnswerDone comes when the container has exited and its streams are delivered.
type Attach struct {
	ContainerID string
	Present     string
	Input       bool
}

// Code writes or reads a.
func (a *Attach) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&a.ContainerID)
		c.String(&a.Present)
		c.Bool(&a.Input)
	})
}

// Dial asks for a connection to a TCP port of the pod's loopback. AnswerDone has one descriptor: the socket.
type Dial struct{ Port int }

// Code writes or reads v.
func (v *Dial) Code(c *codec.Codec) { c.Struct(func(c *codec.Codec) { c.Int(&v.Port) }) }

// Signal sends a signal to a container's first process.
type Signal struct {
	ContainerID string
	Signal      int
}

// Code writes or reads s.
func (s *Signal) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&s.ContainerID)
		c.Int(&s.Signal)
	})
}

// ID names a container, for the verbs that need nothing else; as an answer it is empty.
type ID struct{ ContainerID string }

// Code writes or reads i.
func (i *ID) Code(c *codec.Codec) { c.Struct(func(c *codec.Codec) { c.String(&i.ContainerID) }) }

// Kinds of failure that a caller tells apart.
const (
	FailedOther = iota
	FailedEngine
	FailedNotFound
	FailedExited
	FailedSlow // an attached client did not keep up
	FailedDial // Text is the address, Errno why
)

// Failure is the body of AnswerFailed, and an error.
type Failure struct {
	Kind       int
	Text       string // of FailedOther, FailedDial
	Step, Path string // of FailedEngine, as engine.Error has them
	Errno      int    // of FailedEngine, FailedDial
}

// Code writes or reads f.
func (f *Failure) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.Int(&f.Kind)
		c.String(&f.Text)
		c.String(&f.Step)
		c.String(&f.Path)
		c.Int(&f.Errno)
	})
}

// Error is the failure's text.
func (f *Failure) Error() string {
	if f.Kind == FailedDial {
		return "connect to " + f.Text + ": " + syscall.Errno(f.Errno).Error()
	}
	if e, ok := f.Unwrap().(*engine.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("monitor: %s", f.Text)
}

// Unwrap returns the engine's error, or the errno, if it is one.
func (f *Failure) Unwrap() error {
	if f.Kind == FailedDial {
		return syscall.Errno(f.Errno)
	}
	if f.Kind != FailedEngine {
		return nil
	}
	return &engine.Error{Step: f.Step, Path: f.Path, Errno: syscall.Errno(f.Errno)}
}
