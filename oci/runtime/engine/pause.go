package engine

import "golang.org/x/sys/unix"

// gate is what a child waits at.
type gate struct {
	points  Point
	pipe    [2]int // the child reads a byte for each point
	ask     func(Point, Child) error
	refused error // what ask said
}

// openGate makes the gate of a plan that has pauses.
func (p *program) openGate(plan *Plan, ask func(Point, Child) error, d *descriptors) error {
	p.gate = gate{points: plan.Pauses, ask: ask}
	if plan.Pauses == 0 {
		return nil
	}
	if ask == nil {
		return &Error{"wait for", "hooks", unix.ENOTSUP}
	}
	if err := unix.Pipe2(p.gate.pipe[:], unix.O_CLOEXEC); err != nil {
		return &Error{"make", "the pipe for hooks", errno(err)}
	}
	d.add(p.gate.pipe[0])
	d.add(p.gate.pipe[1])
	return p.makePipe()
}

// open asks whether the child may go on, and lets it. A child that has ended meanwhile is seen by its reports.
func (g *gate) open(at Point, c Child) error {
	if g.refused = g.ask(at, c); g.refused != nil {
		return g.refused
	}
	unix.Write(g.pipe[1], []byte{0})
	return nil
}

// pause has the child wait at a point. Until then it lets go of all descriptors but the needed ones and the standard ones: among those that it got from
// its parent is the gate's other end, its own and those of children that were cloned meanwhile, and whoever has that waits for ever when the
// parent has ended.
func (p *program) pause(at Point, needed ...int) {
	if p.gate.points&at == 0 {
		return
	}
	p.closeAllBut(append(needed, p.pipe[1], p.gate.pipe[0]))
	p.waitAt(at)
}

// waitAt has the child say that it is at a point, and wait.
func (p *program) waitAt(at Point) {
	p.at("wait for", "hooks")
	report := memory(p, &[2]uint32{paused, uint32(at)})
	p.sys(unix.SYS_WRITE, num(p.pipe[1]), report, num(8))
	p.sys(unix.SYS_READ, num(p.gate.pipe[0]), memory(p, new(byte)), num(1)).kind = opRead
}
