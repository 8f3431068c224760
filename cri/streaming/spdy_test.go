package streaming

import (
	"bytes"
	"testing"

	"github.com/moby/spdystream/spdy"
)

func TestRepliesWrittenByHandAreWhatTheLibraryReads(t *testing.T) {
	var buf bytes.Buffer
	c := &spdyClient{w: &buf}
	for _, id := range []uint32{1, 3, 5} {
		if err := c.reply(id); err != nil {
			t.Fatal(err)
		}
	}
	f, err := spdy.NewFramer(&bytes.Buffer{}, &buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []spdy.StreamId{1, 3, 5} {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if reply, ok := frame.(*spdy.SynReplyFrame); !ok || reply.StreamId != id || len(reply.Headers) != 0 {
			t.Errorf("frame = %+v", frame)
		}
	}
}
