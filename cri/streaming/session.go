package streaming

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox"
)

// Why a session ends.
var (
	errGone   = errors.New("the client is gone")
	errIdle   = errors.New("no byte moved for too long")
	errEnding = sandbox.ErrClosing // which is no client's leaving
	errDone   = errors.New("the session is over")
)

// Times of a session's end.
const (
	// watchInterval is how often sessions are looked at whose reader may be held up.
	watchInterval = time.Second
	// endingTime is how long sessions may take to tell their clients when the daemon ends.
	endingTime = time.Second
)

// session is one client that has shown a token. Its context ends with it.
type session struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	conn   *conn
	client atomic.Pointer[client] // nil until it is served
	nudges atomic.Bool            // a nudge is on its way
	// served is closed when nobody reads from the client any more.
	served chan struct{}
}

// end ends a session at once, whatever is under way: who reads, writes or runs a command for it is let go.
func (s *session) end(cause error) {
	s.cancel(cause)
	s.conn.Close()
}

// serve reads what the client sends, in the background, until it ends. Then the session ends.
func (s *session) serve(c client) {
	s.client.Store(&c)
	go func() {
		defer close(s.served)
		defer recovered(s.ctx)
		defer s.end(errGone)
		if err := c.serve(); err != nil {
			klog.FromContext(s.ctx).V(5).Info("Read no more from a client", "err", err)
		}
	}()
}

// nudge sends a client that is not read something to ignore. One that has left behind more than the kernels take cannot say that it has gone: the
// end comes after all that. But its kernel answers what comes by a reset, and so does whoever passes on what comes.
func (s *session) nudge() {
	c := s.client.Load()
	if c == nil || s.nudges.Swap(true) {
		return
	}
	go func() { // it waits when the client does not read either
		defer s.nudges.Store(false)
		s.conn.nudged.Store(true)
		defer s.conn.nudged.Store(false)
		(*c).nudge() //nolint:errcheck // who has gone is found by the next look
	}()
}

// part tells the client that nothing follows, waits for it to close, and returns when nothing of the session is left. The client may take what is on
// its way as late as it wants to, within the idle timeout: a connection that is closed here would be reset by the next thing that it says.
func (s *session) part(c client) {
	if c.leave() == nil {
		select {
		case <-s.served:
		case <-s.ctx.Done(): // the daemon ends
			timer := time.NewTimer(endingTime)
			defer timer.Stop()
			select {
			case <-s.served:
			case <-timer.C:
			}
		}
	}
	s.end(errDone)
	<-s.served
}

// begin makes a session for a connection that has shown a token. It is the caller's to forget.
func (s *Server) begin(c *conn, logger klog.Logger) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, errEnding
	}
	c.known()
	sess := &session{conn: c, served: make(chan struct{})}
	sess.ctx, sess.cancel = context.WithCancelCause(klog.NewContext(s.ctx, logger))
	s.sessions[sess] = true
	s.running.Add(1)
	if !s.watching {
		s.watching = true
		s.running.Go(s.watch)
	}
	return sess, nil
}

// forget ends a session of which nobody does anything any more.
func (s *Server) forget(sess *session) {
	sess.end(errDone)
	s.mu.Lock()
	delete(s.sessions, sess)
	s.mu.Unlock()
	s.running.Done()
}

// watch ends sessions whose clients have gone unnoticed or are idle. It runs while there are any.
func (s *Server) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		all := s.list()
		if all == nil {
			return
		}
		for _, sess := range all {
			switch {
			case sess.conn.hungUp():
				sess.end(errGone)
			case sess.conn.idle() > s.idleTimeout:
				sess.end(errIdle)
			case sess.conn.stalled():
				sess.nudge()
			}
		}
	}
}

// list is the sessions that there are; nil, and nobody watches any more, when there are none.
func (s *Server) list() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) == 0 {
		s.watching = false
		return nil
	}
	all := make([]*session, 0, len(s.sessions))
	for sess := range s.sessions {
		all = append(all, sess)
	}
	return all
}

// recovered keeps a panic of one session from ending the daemon.
func recovered(ctx context.Context) {
	if cause := recover(); cause != nil {
		klog.FromContext(ctx).Error(fmt.Errorf("panic: %v", cause), "Recovered from a panic", "stack", string(debug.Stack()))
	}
}
