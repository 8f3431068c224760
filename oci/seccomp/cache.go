package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// cacheSize is how many programs are kept: a node uses few profiles, each with few sets of capabilities.
const cacheSize = 32

type digest [sha256.Size]byte

// cache keeps the programs that were used last.
type cache struct {
	mu    sync.Mutex
	held  map[digest][]byte
	order []digest // the one used last stands last
}

var programs = cache{held: map[digest][]byte{}}

// get returns the program for p, made by compile if it is not held. Two callers may compile the same profile at once.
func (c *cache) get(p *specs.LinuxSeccomp, compile func() ([]byte, error)) ([]byte, error) {
	key := content(p)
	c.mu.Lock()
	b, ok := c.held[key]
	if ok {
		c.touch(key)
	}
	c.mu.Unlock()
	if ok {
		return slices.Clone(b), nil
	}
	b, err := compile()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[key] = b
	c.touch(key)
	if len(c.order) > cacheSize {
		delete(c.held, c.order[0])
		c.order = c.order[1:]
	}
	return slices.Clone(b), nil
}

// touch moves key to the end. Preconditions: c.mu held.
func (c *cache) touch(key digest) {
	c.order = slices.DeleteFunc(c.order, func(d digest) bool { return d == key })
	c.order = append(c.order, key)
}

// content digests all of a profile that Compile reads. Lengths stand before lists, so no two profiles share a digest.
func content(p *specs.LinuxSeccomp) digest {
	b := make([]byte, 0, 16<<10)
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	errno := func(n *uint) {
		if n == nil {
			b = append(b, 0)
			return
		}
		b = binary.AppendUvarint(append(b, 1), uint64(*n))
	}
	text(string(p.DefaultAction))
	errno(p.DefaultErrnoRet)
	b = binary.AppendUvarint(b, uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		text(string(a))
	}
	for _, s := range p.Syscalls {
		text(string(s.Action))
		errno(s.ErrnoRet)
		b = binary.AppendUvarint(b, uint64(len(s.Names)))
		for _, n := range s.Names {
			text(n)
		}
		b = binary.AppendUvarint(b, uint64(len(s.Args)))
		for _, a := range s.Args {
			text(string(a.Op))
			b = binary.AppendUvarint(b, uint64(a.Index))
			b = binary.AppendUvarint(b, a.Value)
			b = binary.AppendUvarint(b, a.ValueTwo)
		}
	}
	return sha256.Sum256(b)
}
