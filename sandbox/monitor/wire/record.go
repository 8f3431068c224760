package wire

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

// ExitFile is the name of a container's exit record in its folder.
const ExitFile = "exit"

// recordVersion is of the form of exit records.
const recordVersion = 1

// ErrCorrupt means that an exit record is not one that WriteExit wrote.
var ErrCorrupt = errors.New("corrupt exit record")

// WriteExit replaces the exit record in folder. The monitor is its one writer; a reader sees the old record or the new one.
func WriteExit(folder string, e Exit) error {
	body := Encode(&e)
	text := fmt.Sprintf("berth-exit %d %08x\n%s", recordVersion, crc32.ChecksumIEEE(body), body)
	temporary := folder + "/." + ExitFile
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, folder+"/"+ExitFile)
}

// ReadExit reads an exit record. Errors: fs.ErrNotExist, ErrCorrupt.
func ReadExit(path string) (Exit, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Exit{}, err
	}
	var version int
	var sum uint32
	end := 0
	for end < len(b) && b[end] != '\n' {
		end++
	}
	if n, err := fmt.Sscanf(string(b[:end]), "berth-exit %d %x", &version, &sum); n != 2 || err != nil || end == len(b) {
		return Exit{}, fmt.Errorf("read %s: %w", path, ErrCorrupt)
	}
	body := b[end+1:]
	var e Exit
	if crc32.ChecksumIEEE(body) != sum || Decode(body, &e) != nil {
		return Exit{}, fmt.Errorf("read %s: %w", path, ErrCorrupt)
	}
	return e, nil
}
