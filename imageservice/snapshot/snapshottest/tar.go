package snapshottest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// Entry is one entry of a layer.
type Entry struct {
	tar.Header
	Content string
}

// Epoch is the time that entries have if nothing else is said; names make it differ from entry to entry.
var Epoch = time.Unix(1_500_000_000, 123_456_789)

func entry(kind byte, name string, mode int64) Entry {
	h := tar.Header{Typeflag: kind, Name: name, Mode: mode, ModTime: Epoch, Format: tar.FormatPAX}
	for _, c := range []byte(name) {
		h.ModTime = h.ModTime.Add(time.Duration(c) * 1_000_000_007)
	}
	return Entry{Header: h}
}

// Dir is a directory.
func Dir(name string, mode int64) Entry { return entry(tar.TypeDir, name+"/", mode) }

// File is a regular file, 0644.
func File(name, content string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Content, e.Size = content, int64(len(content))
	return e
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	e := entry(tar.TypeSymlink, name, 0o777)
	e.Linkname = target
	return e
}

// Link is a hard link.
func Link(name, target string) Entry {
	e := entry(tar.TypeLink, name, 0o644)
	e.Linkname = target
	return e
}

// Char is a character device.
func Char(name string, major, minor int64) Entry {
	e := entry(tar.TypeChar, name, 0o600)
	e.Devmajor, e.Devminor = major, minor
	return e
}

// FIFO is a named pipe.
func FIFO(name string) Entry { return entry(tar.TypeFifo, name, 0o640) }

// Whiteout hides name, which has no directory part, in dir.
func Whiteout(dir, name string) Entry { return entry(tar.TypeReg, dir+"/.wh."+name, 0o644) }

// Opaque hides what lower layers have in dir.
func Opaque(dir string) Entry { return entry(tar.TypeReg, dir+"/.wh..wh..opq", 0o644) }

// As gives the entry an owner and a mode.
func (e Entry) As(uid, gid int, mode int64) Entry {
	e.Uid, e.Gid, e.Mode = uid, gid, mode
	return e
}

// gnu writes the entry in a format that has negative numbers.
func gnu(e Entry) Entry {
	e.Format, e.ModTime = tar.FormatGNU, e.ModTime.Truncate(time.Second)
	return e
}

// With gives the entry an extended attribute.
func (e Entry) With(name, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// Capability is security.capability of a file that may bind low ports: version 2, effective, CAP_NET_BIND_SERVICE.
const Capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Layer writes a layer's tar. It panics on entries that no tar can hold.
func Layer(entries ...Entry) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			panic(fmt.Sprintf("write header of %q: %v", e.Name, err))
		}
		if _, err := w.Write([]byte(e.Content)); err != nil {
			panic(fmt.Sprintf("write content of %q: %v", e.Name, err))
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// DiffIDs names the layers.
func DiffIDs(layers ...[]byte) []digest.Digest {
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = digest.FromBytes(l)
	}
	return ids
}
