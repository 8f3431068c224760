package streaming

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
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

// ends is a sink that is told when its stream ends.
type ends struct{ ended bool }

func (*ends) put([]byte) {}

func (e *ends) end(error) { e.ended = true }

// Whatever a client sends: what it opened has ended when it is gone, and there were no more streams at once than allowed.
func FuzzSPDYFrames(f *testing.F) {
	var out bytes.Buffer
	framer, err := spdy.NewFramer(&out, nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, frame := range []spdy.Frame{
		&spdy.SynStreamFrame{StreamId: 1, Headers: http.Header{"Streamtype": {"stdin"}}},
		&spdy.DataFrame{StreamId: 1, Data: []byte("data")},
		&spdy.PingFrame{Id: 1},
		&spdy.SynStreamFrame{StreamId: 3, Headers: http.Header{"Streamtype": {"error"}}, CFHeader: spdy.ControlFrameHeader{Flags: spdy.ControlFlagFin}},
		&spdy.HeadersFrame{StreamId: 1, Headers: http.Header{"A": {"b"}}},
		&spdy.RstStreamFrame{StreamId: 1, Status: spdy.Cancel},
		&spdy.SettingsFrame{FlagIdValues: []spdy.SettingsFlagIdValue{{Id: spdy.SettingsUploadBandwidth, Value: 1}}},
		&spdy.WindowUpdateFrame{StreamId: 3, DeltaWindowSize: 1},
		&spdy.DataFrame{StreamId: 3, Flags: spdy.DataFlagFin},
		&spdy.GoAwayFrame{},
	} {
		if err := framer.WriteFrame(frame); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(out.Bytes()))
	}
	f.Fuzz(func(t *testing.T, frames []byte) {
		const limit = 2
		var opened []*ends
		c, err := newSPDY(bufio.NewReader(bytes.NewReader(frames)), io.Discard, limit, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		c.opener = func(http.Header) (sink, func(*stream), error) {
			open := 1
			for _, e := range opened {
				if !e.ended {
					open++
				}
			}
			if open > limit {
				t.Errorf("%d streams at once", open)
			}
			e := &ends{}
			opened = append(opened, e)
			return e, func(*stream) {}, nil
		}
		if err := c.serve(); err == nil {
			t.Error("a client that is gone is served on")
		}
		for _, e := range opened {
			if !e.ended {
				t.Error("a stream outlives its client")
			}
		}
	})
}
