// Package codec writes and reads the monitor's messages without reflection, so that the monitor stays small.
//
// One function a type names its fields in order and serves both directions: a Codec made by Encoder appends them,
// one made by Decoder fills them in. A struct is a block with its length in front. Fields are only ever added at a
// block's end: a reader that is older skips what it does not know, a reader that is newer leaves what is missing at
// its zero value. That is how a daemon talks to the monitor of an older release.
//
// A Codec is for one goroutine. A decoding error sticks and is returned by Err; values read after it are zero.
package codec

import (
	"errors"
	"unsafe"
)

// ErrMalformed is what Err returns for bytes that no Encoder wrote.
var ErrMalformed = errors.New("malformed message")

// maxItems bounds the length of a list, so that a hostile length allocates nothing large.
const maxItems = 1 << 16

// Codec appends to or reads from a buffer.
type Codec struct {
	buf      []byte
	decoding bool
	err      error
}

// Encoder returns a Codec that appends to an empty buffer.
func Encoder() *Codec { return &Codec{} }

// Decoder returns a Codec that reads b. Strings and byte slices are parts of b, which nobody may change from then on, and which stays as long
// as one of them does: whoever keeps a short one of a long message clones it.
func Decoder(b []byte) *Codec { return &Codec{buf: b, decoding: true} }

// Decoding tells the direction.
func (c *Codec) Decoding() bool { return c.decoding }

// Bytes returns what has been appended.
func (c *Codec) Bytes() []byte { return c.buf }

// Err returns the first decoding error.
func (c *Codec) Err() error { return c.err }

func (c *Codec) fail() {
	c.buf, c.err = nil, ErrMalformed
}

// Uint64 codes v as a varint. At the end of a block it decodes zero.
func (c *Codec) Uint64(v *uint64) {
	if !c.decoding {
		x := *v
		for x >= 0x80 {
			c.buf = append(c.buf, byte(x)|0x80)
			x >>= 7
		}
		c.buf = append(c.buf, byte(x))
		return
	}
	*v = 0
	if len(c.buf) == 0 {
		return
	}
	for i, b := range c.buf {
		if i == 10 {
			break
		}
		*v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			c.buf = c.buf[i+1:]
			return
		}
	}
	*v = 0
	c.fail()
}

// Int64 codes v.
func (c *Codec) Int64(v *int64) {
	u := uint64(*v)<<1 ^ uint64(*v>>63)
	c.Uint64(&u)
	*v = int64(u>>1) ^ -int64(u&1)
}

// Int codes v.
func (c *Codec) Int(v *int) {
	x := int64(*v)
	c.Int64(&x)
	*v = int(x)
}

// Uint32 codes v.
func (c *Codec) Uint32(v *uint32) {
	x := uint64(*v)
	c.Uint64(&x)
	*v = uint32(x)
}

// Bool codes v.
func (c *Codec) Bool(v *bool) {
	var x uint64
	if *v {
		x = 1
	}
	c.Uint64(&x)
	*v = x != 0
}

// ByteSlice codes v.
func (c *Codec) ByteSlice(v *[]byte) {
	n := uint64(len(*v))
	c.Uint64(&n)
	if !c.decoding {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = nil
	if n > uint64(len(c.buf)) {
		c.fail()
		return
	}
	if n > 0 {
		*v, c.buf = c.buf[:n:n], c.buf[n:]
	}
}

// String codes v.
func (c *Codec) String(v *string) {
	n := uint64(len(*v))
	c.Uint64(&n)
	if !c.decoding {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = ""
	if n > uint64(len(c.buf)) {
		c.fail()
		return
	}
	*v = unsafe.String(unsafe.SliceData(c.buf), n)
	c.buf = c.buf[n:]
}

// Strings codes v.
func (c *Codec) Strings(v *[]string) { List(c, v, func(c *Codec, s *string) { c.String(s) }) }

// Uint32s codes v.
func (c *Codec) Uint32s(v *[]uint32) { List(c, v, func(c *Codec, n *uint32) { c.Uint32(n) }) }

// Struct codes a block: fields codes the members.
func (c *Codec) Struct(fields func(*Codec)) {
	inner := &Codec{decoding: c.decoding}
	if c.decoding {
		c.ByteSlice(&inner.buf)
		fields(inner)
		if inner.err != nil {
			c.fail()
		}
		return
	}
	fields(inner)
	c.ByteSlice(&inner.buf)
}

// List codes a list: item codes one member.
func List[T any](c *Codec, v *[]T, item func(*Codec, *T)) {
	n := uint64(len(*v))
	c.Uint64(&n)
	if c.decoding {
		*v = nil
		if n > maxItems || n > uint64(len(c.buf)) {
			c.fail()
			return
		}
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		item(c, &(*v)[i])
	}
}
