package cnitest

import (
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berthd/berth/cni"
)

func gc(t *testing.T, h Harness) {
	n := h.Open(t)
	var all []cni.Attachment
	for range 4 {
		req, _ := request(t, h)
		all = append(all, attach(t, n, req))
	}
	if err := n.GC(t.Context(), all[:2]); err != nil {
		t.Fatal(err)
	}
	for i, a := range all {
		err := n.Check(t.Context(), a)
		if i < 2 && err != nil {
			t.Errorf("Check of a valid attachment = %v", err)
		}
		if i >= 2 && !errors.Is(err, cni.ErrNotAttached) {
			t.Errorf("Check of one that is not valid = %v, want ErrNotAttached", err)
		}
	}
	if err := n.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func gcAfterRestart(t *testing.T, h Harness) {
	n := h.Open(t)
	req, _ := request(t, h)
	lost := attach(t, n, req)
	req, _ = request(t, h)
	kept := attach(t, n, req)
	n = h.Open(t)
	if err := n.GC(t.Context(), []cni.Attachment{throughJSON(t, kept)}); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.(*Fake); !ok {
		if err := n.Check(t.Context(), kept); err != nil {
			t.Error(err)
		}
	}
	if err := n.Check(t.Context(), lost); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("Check of a lost attachment = %v, want ErrNotAttached", err)
	}
	detach(t, n, kept)
}

func gcDuringAdds(t *testing.T, h Harness) {
	n := h.Open(t)
	var wg sync.WaitGroup
	type result struct {
		a   cni.Attachment
		err error
	}
	results := make([]result, 6)
	reqs := make([]cni.Request, len(results))
	for i := range reqs {
		reqs[i], _ = request(t, h)
	}
	begun := make(chan bool, len(results))
	for i := range results {
		wg.Go(func() {
			a, err := n.Plan(t.Context(), reqs[i])
			begun <- true
			if err == nil {
				err = n.Add(t.Context(), reqs[i], &a)
			}
			results[i] = result{a, err}
		})
	}
	<-begun
	wg.Wait() // no Add begins from here to the end of GC, so all must be in valid
	var valid []cni.Attachment
	for _, r := range results {
		if r.err != nil {
			t.Fatal(r.err)
		}
		valid = append(valid, r.a)
	}
	extra, _ := request(t, h)
	planned := plan(t, n, extra)
	wg.Go(func() {
		if err := n.Add(t.Context(), extra, &planned); err != nil {
			t.Error(err)
		}
	})
	if err := n.GC(t.Context(), append(valid, plan(t, n, extra))); err != nil { // planned is valid, whether Add has ended or not
		t.Error(err)
	}
	wg.Wait()
	for _, a := range append(valid, planned) {
		if err := n.Check(t.Context(), a); err != nil {
			t.Error(err)
		}
		detach(t, n, a)
	}
}

func throughJSON(t *testing.T, a cni.Attachment) cni.Attachment {
	t.Helper()
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var c cni.Attachment
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, c, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("attachment through JSON (-want +got):\n%s", diff)
	}
	return c
}
