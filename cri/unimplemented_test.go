package cri

import (
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

// A method that is neither built nor in the table would answer with grpc's own words; one that is in the table but built
// would never be reached.
func TestEveryMethodIsBuiltOrInTheUnimplementedTable(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.events = make(chan sandbox.Event)
	close(w.sandboxes.events) // so that this stream has an end
	seen := map[string]bool{}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			name := string(m.Name())
			seen[name] = true
			err := w.invoke(t, m)
			sentence, listed := unimplemented[name]
			if got := status.Code(err) == codes.Unimplemented; got != listed {
				t.Errorf("%s: unimplemented = %v, in the table = %v (%v)", name, got, listed, err)
			}
			if listed && status.Convert(err).Message() != sentence {
				t.Errorf("%s answers %q, want %q", name, status.Convert(err).Message(), sentence)
			}
		}
	}
	if len(seen) < 40 {
		t.Errorf("saw %d methods only", len(seen))
	}
	for name := range unimplemented {
		if !seen[name] {
			t.Errorf("%s is in the table, but no method", name)
		}
	}
}

// invoke calls a method with an empty request.
func (w *world) invoke(t *testing.T, m protoreflect.MethodDescriptor) error {
	t.Helper()
	message := func(d protoreflect.MessageDescriptor) protoreflect.ProtoMessage {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		return mt.New().Interface()
	}
	full := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	if !m.IsStreamingServer() {
		return w.conn.Invoke(t.Context(), full, message(m.Input()), message(m.Output()))
	}
	s, err := w.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, full)
	if err != nil {
		return err
	}
	if err := s.SendMsg(message(m.Input())); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(message(m.Output())); err != io.EOF {
		return err
	}
	return nil
}
