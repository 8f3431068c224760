package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// recordVersion is that of all records of this package.
const recordVersion = 1

// readFile reads a record. Tests make it fail.
var readFile = os.ReadFile

var shortages = []syscall.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.ENOBUFS}

// Shortage tells whether an error says only that the daemon or the host is short of descriptors or memory now, and so nothing of a layer or stack.
// A full disk is none: a daemon that does not start could not be told to remove images.
func Shortage(err error) bool {
	return slices.ContainsFunc(shortages, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

var errRecord = errors.New("bad record")

// writeRecord writes v to the new file path. It is durable when the file system is synced.
func writeRecord(path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	sum := sha256.Sum256(body)
	raw := fmt.Appendf(nil, "berth-snapshot %d %x\n", recordVersion, sum)
	if err := os.WriteFile(path, append(raw, body...), 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// readRecord reads what writeRecord wrote. A file that is there and is not that is errRecord.
func readRecord(path string, v any) error {
	raw, err := readFile(path)
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	head, body, _ := bytes.Cut(raw, []byte("\n"))
	var version int
	var want string
	if n, _ := fmt.Sscanf(string(head), "berth-snapshot %d %64s", &version, &want); n != 2 {
		return fmt.Errorf("%w %s: no header line", errRecord, path)
	}
	if version != recordVersion {
		return fmt.Errorf("%w %s: version %d, known is %d", errRecord, path, version, recordVersion)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != want {
		return fmt.Errorf("%w %s: wrong checksum", errRecord, path)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w %s: %v", errRecord, path, err)
	}
	return nil
}
