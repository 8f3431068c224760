package layer

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/vbatts/tar-split/tar/storage"
)

// splitWriter writes tar-split records as storage.NewJSONPacker does, but allows a name more than once (a layer may) and
// does not go through reflection: there are three records a file.
type splitWriter struct {
	w        *bufio.Writer
	position int // of the next record
	line     []byte
}

func newSplitWriter(w io.Writer) *splitWriter {
	return &splitWriter{w: bufio.NewWriterSize(w, 64<<10)}
}

// segment records bytes of the tar that are not file content.
func (s *splitWriter) segment(p []byte) error {
	s.begin(storage.SegmentType)
	return s.end(p)
}

// file records an entry: where its content lies in the folder, how long it is, and its CRC-64. An entry of size 0 with a
// checksum is a sparse file: the tar's bytes of it are in segments, the checksum is of the file as it was unpacked.
func (s *splitWriter) file(location string, size int64, sum []byte) error {
	s.begin(storage.FileType)
	switch {
	case location == "":
	case !utf8.ValidString(location):
		s.line = append(s.line, `,"name_raw":"`...)
		s.line = base64.StdEncoding.AppendEncode(s.line, []byte(location))
		s.line = append(s.line, '"')
	default:
		quoted, err := json.Marshal(location)
		if err != nil {
			return err
		}
		s.line = append(s.line, `,"name":`...)
		s.line = append(s.line, quoted...)
	}
	if size != 0 {
		s.line = append(s.line, `,"size":`...)
		s.line = strconv.AppendInt(s.line, size, 10)
	}
	return s.end(sum)
}

func (s *splitWriter) begin(kind storage.Type) {
	s.line = append(s.line[:0], `{"type":`...)
	s.line = strconv.AppendInt(s.line, int64(kind), 10)
}

func (s *splitWriter) end(payload []byte) error {
	if payload == nil {
		s.line = append(s.line, `,"payload":null`...)
	} else {
		s.line = append(s.line, `,"payload":"`...)
		s.line = base64.StdEncoding.AppendEncode(s.line, payload)
		s.line = append(s.line, '"')
	}
	s.line = append(s.line, `,"position":`...)
	s.line = strconv.AppendInt(s.line, int64(s.position), 10)
	s.line = append(s.line, "}\n"...)
	s.position++
	_, err := s.w.Write(s.line)
	return err
}

func (s *splitWriter) flush() error { return s.w.Flush() }
