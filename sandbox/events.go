package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berthd/berth/sandbox/store"
)

// EventType is what an event tells.
type EventType int

// What happens to a sandbox, or to a container.
const (
	EventCreated EventType = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event tells that a container, or a sandbox, has changed. The events of one object come in the order in which it changed.
type Event struct {
	Type EventType
	ID   string    // the container's, or the sandbox's
	At   time.Time // later than the event before
	// Pod is the sandbox and Containers are all of its containers, as they were then. They are shared and must not be changed.
	Pod        Pod
	Containers []Container
}

// ErrLagged means that a subscriber was too slow: events were lost, and what is there has to be listed anew.
var ErrLagged = errors.New("events were lost because they were not taken in time")

// Bounds of events.
const (
	maxQueued      = 4096 // that a subscriber has not taken
	maxSubscribers = 64
	// recentTime is for how long after its start a Manager gives all events since then to those who subscribe: what an earlier daemon's clients have
	// to hear of is found before they are back.
	recentTime = 30 * time.Second
)

// events are told to subscribers. Its lock comes after Manager.mu.
type events struct {
	mu          sync.Mutex
	last        time.Time
	subscribers map[*subscriber]struct{}
	keep        bool // recent is complete
	recent      []Event
}

// subscriber is one that waits for events.
type subscriber struct {
	wake chan struct{}

	// Guarded by events.mu:
	queue  []Event
	lagged bool
}

func newEvents() events { return events{subscribers: map[*subscriber]struct{}{}, keep: true} }

// tell tells an event to who has subscribed. It never waits for one. Preconditions: Manager.mu is held for writing, and was since before the change.
func (m *Manager) tell(p *pod, id string, types ...EventType) {
	e := &m.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.subscribers) == 0 && !e.keep {
		return
	}
	event := Event{ID: id, Pod: describePod(p)}
	for _, c := range m.containers {
		if c.pod == p && c.rec.State != store.Creating {
			event.Containers = append(event.Containers, describeContainer(c))
		}
	}
	for _, event.Type = range types {
		if event.At = time.Now(); !event.At.After(e.last) { // the clock was set back, or is coarse
			event.At = e.last.Add(1)
		}
		e.last = event.At
		if e.keep {
			e.keep = len(e.recent) < maxQueued
			e.recent = append(e.recent, event)
		}
		if !e.keep {
			e.recent = nil
		}
		for s := range e.subscribers {
			s.push(event)
		}
	}
}

// push queues an event, or drops all when there are too many. Preconditions: events.mu held.
func (s *subscriber) push(event Event) {
	if len(s.queue) >= maxQueued {
		s.queue, s.lagged = nil, true
	}
	if !s.lagged {
		s.queue = append(s.queue, event)
	}
	select {
	case s.wake <- struct{}{}:
	default: // it has been woken already
	}
}

// subscribe adds a subscriber, with what happened lately in its queue. Errors: ErrExhausted.
func (e *events) subscribe() (*subscriber, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.subscribers) >= maxSubscribers {
		return nil, fmt.Errorf("%d subscribers wait for events already: %w", maxSubscribers, ErrExhausted)
	}
	s := &subscriber{wake: make(chan struct{}, 1), queue: append([]Event(nil), e.recent...)}
	e.subscribers[s] = struct{}{}
	return s, nil
}

func (e *events) unsubscribe(s *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subscribers, s)
}

// take empties the queue.
func (e *events) take(s *subscriber) (queue []Event, lagged bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	queue, s.queue = s.queue, nil
	return queue, s.lagged
}

// forgetRecent ends the time in which subscribers are given what happened before they came.
func (e *events) forgetRecent() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keep, e.recent = false, nil
}

// Events calls back for each event from now on, and for those since the daemon's start if that was lately: first ready, once nothing can be missed, then
// each. It returns when ctx or the Manager ends, when one of them returns an error, or with ErrLagged, after which the caller has to list. A callback
// that takes its time holds up nobody else. Errors: ErrExhausted (too many subscribers), ErrLagged, ctx's, the callbacks'.
func (m *Manager) Events(ctx context.Context, ready func() error, each func(Event) error) error {
	s, err := m.events.subscribe()
	if err != nil {
		return err
	}
	defer m.events.unsubscribe(s)
	if err := ready(); err != nil {
		return err
	}
	for {
		queue, lagged := m.events.take(s)
		for _, event := range queue {
			if err := each(event); err != nil {
				return err
			}
		}
		if lagged {
			return ErrLagged
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.ctx.Done():
			return ErrClosing
		}
	}
}

// tellContainer tells what a change of a container's record means. Preconditions: Manager.mu held for writing.
func (m *Manager) tellContainer(c *container, before string) {
	switch {
	case before == c.rec.State:
	case c.rec.State == store.Running:
		m.tell(c.pod, c.id, EventStarted)
	case c.rec.State == store.Exited && before == store.Created && c.rec.Reason != ReasonStartError: // faster than its start
		m.tell(c.pod, c.id, EventStarted, EventStopped)
	case c.rec.State == store.Exited:
		m.tell(c.pod, c.id, EventStopped)
	}
}

// tellStopped tells once that a sandbox is stopped: none of its containers runs any more.
func (m *Manager) tellStopped(p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.told.stop {
		p.told.stop = true
		m.tell(p, p.id, EventStopped)
	}
}
