package agent

import "github.com/berthd/berth/sandbox/monitor/wire"

// watcher is a connection that is told of exits.
type watcher struct {
	pending []wire.Exit // guarded by Agent.mu
	wake    chan struct{}
}

// add queues an exit. The caller holds Agent.mu.
func (w *watcher) add(e wire.Exit) {
	w.pending = append(w.pending, e)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// watch tells the connection of every exit, until it ends.
func (a *Agent) watch(conn *wire.Conn) {
	w := &watcher{wake: make(chan struct{}, 1)}
	a.mu.Lock()
	for _, c := range a.containers {
		if c.exited {
			w.add(c.exit)
		}
	}
	a.watchers[w] = struct{}{}
	a.mu.Unlock()
	gone := hangup(conn)
	defer func() {
		a.mu.Lock()
		delete(a.watchers, w)
		a.mu.Unlock()
	}()
	for {
		select {
		case <-gone:
			return
		case <-w.wake:
		}
		a.mu.Lock()
		exits := w.pending
		w.pending = nil
		a.mu.Unlock()
		for i := range exits {
			if err := conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(&exits[i])}); err != nil {
				return
			}
		}
	}
}
