package snapshot_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
)

// list says what is in a layer, for a failing test's log.
func list(layer []byte) string {
	var out strings.Builder
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err != nil {
			return out.String()
		}
		fmt.Fprintf(&out, "  %c %04o %d:%d %s %s %v\n", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Name, h.Linkname, h.PAXRecords)
	}
}
