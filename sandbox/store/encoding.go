package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrDamaged means that the bytes of a record are not what was written.
var ErrDamaged = errors.New("record is damaged")

// ErrVersion means that a newer berth wrote the record.
var ErrVersion = errors.New("record version is not known")

// Version is of the form of all records. It is raised when an older berth would misread a newer record; new optional fields do not raise it.
const Version = 1

// magic is the first word of a record.
const magic = "berth"

// maxRecord bounds what is read, in bytes: the CRI's messages are at most 16 MiB, and take a third more in JSON.
const maxRecord = 32 << 20

// encode frames the JSON of record.
func encode(kind string, record any) ([]byte, error) {
	payload, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode %s record: %w", kind, err)
	}
	sum := sha256.Sum256(payload)
	frame := fmt.Appendf(make([]byte, 0, len(payload)+128), "%s %d %s %s %d\n", magic, Version, kind, hex.EncodeToString(sum[:]), len(payload))
	return append(frame, payload...), nil
}

// decode checks the frame and fills in record, which must be a pointer. Errors: ErrDamaged, ErrVersion.
func decode(kind string, frame []byte, record any) error {
	payload, err := unframe(kind, frame)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(payload, record); err != nil {
		return fmt.Errorf("%s record: %w: %v", kind, ErrDamaged, err)
	}
	return nil
}

func unframe(kind string, frame []byte) ([]byte, error) {
	damaged := func(why string) error { return fmt.Errorf("%s record: %s: %w", kind, why, ErrDamaged) }
	line, payload, found := bytes.Cut(frame, []byte("\n"))
	if !found || len(line) > 256 {
		return nil, damaged("no first line")
	}
	words := strings.Split(string(line), " ")
	if len(words) < 2 || words[0] != magic {
		return nil, damaged("not a record")
	}
	version, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil || version == 0 {
		return nil, damaged("no version")
	}
	if version > Version {
		return nil, fmt.Errorf("%s record of version %d, known up to %d: %w", kind, version, Version, ErrVersion)
	}
	if len(words) != 5 {
		return nil, damaged("first line is incomplete")
	}
	if words[2] != kind {
		return nil, damaged("is of kind " + strconv.Quote(words[2]))
	}
	if length, err := strconv.ParseUint(words[4], 10, 32); err != nil || length != uint64(len(payload)) {
		return nil, damaged("length differs")
	}
	sum := sha256.Sum256(payload)
	if words[3] != hex.EncodeToString(sum[:]) {
		return nil, damaged("checksum differs")
	}
	return payload, nil
}
