package rtnl

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// put appends one attribute.
func put(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return pad(append(b, value...))
}

func putUint32(b []byte, kind uint16, v uint32) []byte {
	return put(b, kind, binary.NativeEndian.AppendUint32(nil, v))
}

func putString(b []byte, kind uint16, s string) []byte {
	return put(b, kind, append([]byte(s), 0))
}

// nest appends an attribute whose value inside appends.
func nest(b []byte, kind uint16, inside func([]byte) []byte) []byte {
	start := len(b)
	b = inside(append(b, 0, 0, 0, 0))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	binary.NativeEndian.PutUint16(b[start+2:], kind)
	return b
}

// attributes splits b; of attributes that occur twice the last counts.
func attributes(b []byte) map[uint16][]byte {
	m := make(map[uint16][]byte, 16)
	for len(b) >= 4 {
		length := int(binary.NativeEndian.Uint16(b))
		if length < 4 || length > len(b) {
			break
		}
		m[binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[4:length]
		b = b[min((length+3)&^3, len(b)):]
	}
	return m
}

func uint32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func cutZero(b []byte) []byte {
	before, _, _ := bytes.Cut(b, []byte{0})
	return before
}
