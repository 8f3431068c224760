package layer_test

import (
	"bytes"
	"fmt"
	"strings"
)

// What archive/tar does not write is written by hand here.

// rawHeader is a POSIX header block.
func rawHeader(name string, kind byte, size int64) []byte {
	return checked(headerBlock(name, kind, size, "ustar\x0000"))
}

// gnuHeader is a GNU header block; change has it before the checksum is made.
func gnuHeader(name string, kind byte, size int64, change func(block []byte)) []byte {
	b := headerBlock(name, kind, size, "ustar  \x00")
	change(b)
	return checked(b)
}

func headerBlock(name string, kind byte, size int64, magic string) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "14000000000\x00")
	b[156] = kind
	copy(b[257:], magic)
	return b
}

// checked puts the checksum into a header block.
func checked(b []byte) []byte {
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func pad(p []byte) []byte {
	return append(p, make([]byte, (512-len(p)%512)%512)...)
}

// paxHeader is an extended header with the records in the order given.
func paxHeader(records ...[2]string) []byte {
	var body bytes.Buffer
	for _, r := range records {
		line := fmt.Sprintf(" %s=%s\n", r[0], r[1])
		n := len(line) + 1
		for len(fmt.Sprint(n))+len(line) != n {
			n = len(fmt.Sprint(n)) + len(line)
		}
		fmt.Fprintf(&body, "%d%s", n, line)
	}
	return append(rawHeader("PaxHeaders/x", 'x', int64(body.Len())), pad(body.Bytes())...)
}

var eof = make([]byte, 1024)

const sparseSize = 100_000

// sparseContent is what each of the sparse entries unpacks to: data at 0 and at 65536, length 100000.
func sparseContent() []byte {
	p := make([]byte, sparseSize)
	copy(p, strings.Repeat("a", 512))
	copy(p[65536:], strings.Repeat("b", 1000))
	return p
}

func sparseData() []byte {
	return pad([]byte(strings.Repeat("a", 512) + strings.Repeat("b", 1000)))
}

// oldSparse is GNU's old format, with its map in the header and, for the last, empty region, an extension block.
func oldSparse(name string) []byte {
	num := func(n int) string { return fmt.Sprintf("%011o\x00", n) }
	hdr := gnuHeader(name, 'S', 1512, func(b []byte) {
		copy(b[386:], num(0)+num(512)+num(65536)+num(1000))
		b[482] = 1
		copy(b[483:], num(sparseSize))
	})
	ext := make([]byte, 512)
	copy(ext, num(sparseSize)+num(0))
	return bytes.Join([][]byte{hdr, ext, sparseData()}, nil)
}

// paxSparse01 is GNU's format 0.1, with the map in a PAX record.
func paxSparse01(name string) []byte {
	return bytes.Join([][]byte{
		paxHeader([2]string{"GNU.sparse.size", fmt.Sprint(sparseSize)}, [2]string{"GNU.sparse.numblocks", "3"},
			[2]string{"GNU.sparse.map", fmt.Sprintf("0,512,65536,1000,%d,0", sparseSize)}),
		rawHeader(name, '0', 1512), sparseData(),
	}, nil)
}

// paxSparse10 is GNU's format 1.0, with the map before the data.
func paxSparse10(name string) []byte {
	sparseMap := pad(fmt.Appendf(nil, "3\n0\n512\n65536\n1000\n%d\n0\n", sparseSize))
	return bytes.Join([][]byte{
		paxHeader([2]string{"GNU.sparse.major", "1"}, [2]string{"GNU.sparse.minor", "0"},
			[2]string{"GNU.sparse.name", name}, [2]string{"GNU.sparse.realsize", fmt.Sprint(sparseSize)}),
		rawHeader("GNUSparseFile.0/x", '0', int64(len(sparseMap))+1512), sparseMap, sparseData(),
	}, nil)
}
