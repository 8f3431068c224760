package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var dual = []Range{
	{Subnet: netip.MustParsePrefix("10.77.0.0/24"), Gateway: netip.MustParseAddr("10.77.0.1")},
	{Subnet: netip.MustParsePrefix("fd77::/64"), Gateway: netip.MustParseAddr("fd77::1")},
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func reserve(t *testing.T, s *Store, id string, ranges []Range) []string {
	t.Helper()
	got, err := s.Reserve(t.Context(), Owner{id, "eth0"}, ranges)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range got {
		list = append(list, p.String())
	}
	return list
}

func TestFilesAreHostLocals(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if diff := cmp.Diff([]string{"10.77.0.2/24", "fd77::2/64"}, reserve(t, s, "aaa", dual)); diff != "" {
		t.Errorf("Reserve (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"10.77.0.2": "aaa\r\neth0", "fd77::2": "aaa\r\neth0",
		"last_reserved_ip.0": "10.77.0.2", "last_reserved_ip.1": "fd77::2",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s = %q, %v, want %q", name, b, err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "lock")); err != nil {
		t.Error(err)
	}
}

func TestReserveGoesOnWhereHostLocalStopped(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"10.77.0.7": "other\neth0", "last_reserved_ip.0": "10.77.0.6", "last_reserved_ip.1": "garbage", "10.77.0.9": "mine\r\neth0",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	if diff := cmp.Diff([]string{"10.77.0.8/24", "fd77::2/64"}, reserve(t, s, "new", dual)); diff != "" {
		t.Errorf("Reserve (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.77.0.9/24"}, reserve(t, s, "mine", dual[:1])); diff != "" {
		t.Errorf("Reserve of what it holds (-want +got):\n%s", diff)
	}
}

func TestReleasedAddressIsNotUsedAtOnceAgain(t *testing.T) {
	s := open(t, t.TempDir())
	first := reserve(t, s, "a", dual)
	if err := s.Release(t.Context(), Owner{"a", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if again := reserve(t, s, "b", dual); again[0] == first[0] || again[1] == first[1] {
		t.Errorf("b got %v, which a has just given back", again)
	}
}

func TestRangeWrapsAndExhausts(t *testing.T) {
	s := open(t, t.TempDir())
	small := []Range{{Subnet: netip.MustParsePrefix("10.77.9.0/29"), Gateway: netip.MustParseAddr("10.77.9.1")}}
	for i := range 5 {
		reserve(t, s, fmt.Sprint("c", i), small)
	}
	_, err := s.Reserve(t.Context(), Owner{"late", "eth0"}, small)
	if !errors.Is(err, ErrExhausted) {
		t.Fatalf("Reserve in a full range = %v, want ErrExhausted", err)
	}
	if err := s.Release(t.Context(), Owner{"c1", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if got := reserve(t, s, "late", small); got[0] != "10.77.9.3/29" {
		t.Errorf("after a release got %v, want 10.77.9.3/29", got)
	}
}

func TestReserveOfTwoRangesLeavesNothingWhenTheSecondIsFull(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	tiny := Range{Subnet: netip.MustParsePrefix("fd77:1::/127"), Gateway: netip.MustParseAddr("fd77:1::")}
	reserve(t, s, "a", []Range{tiny})
	if _, err := s.Reserve(t.Context(), Owner{"b", "eth0"}, []Range{dual[0], tiny}); !errors.Is(err, ErrExhausted) {
		t.Fatalf("Reserve = %v, want ErrExhausted", err)
	}
	if m, _ := s.List(); len(m) != 1 {
		t.Errorf("reservations left: %v", m)
	}
}

func TestReserveExact(t *testing.T) {
	s := open(t, t.TempDir())
	a := netip.MustParseAddr("10.77.0.50")
	for range 2 {
		if err := s.ReserveExact(t.Context(), Owner{"a", "eth0"}, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ReserveExact(t.Context(), Owner{"b", "eth0"}, a); !errors.Is(err, ErrTaken) {
		t.Errorf("ReserveExact of a's address = %v, want ErrTaken", err)
	}
}

func TestReleaseLeavesOthersAlone(t *testing.T) {
	s := open(t, t.TempDir())
	reserve(t, s, "a", dual)
	reserve(t, s, "b", dual)
	if err := s.Release(t.Context(), Owner{"a", "eth0"}, netip.MustParseAddr("10.77.0.3"), netip.MustParseAddr("10.77.0.200")); err != nil {
		t.Fatal(err)
	}
	m, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 2 || m[netip.MustParseAddr("10.77.0.3")].ContainerID != "b" {
		t.Errorf("left: %v, want b's two addresses", m)
	}
}

func TestSweepFreesWhatNobodyNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	reserve(t, s, "a", dual)
	reserve(t, s, "b", dual)
	if err := os.WriteFile(filepath.Join(dir, "10.77.0.99"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context(), func(o Owner, _ netip.Addr) bool { return o.ContainerID == "b" }); err != nil {
		t.Fatal(err)
	}
	m, _ := s.List()
	if len(m) != 2 || len(s.Owned(Owner{"a", "eth0"})) != 0 {
		t.Errorf("left: %v", m)
	}
}

func TestParallelReservesAreDistinct(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{open(t, dir), open(t, dir)} // two processes
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			got, err := stores[i%2].Reserve(context.Background(), Owner{fmt.Sprint("p", i), "eth0"}, dual)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, p := range got {
				if seen[p.String()] {
					t.Errorf("%s handed out twice", p)
				}
				seen[p.String()] = true
			}
		})
	}
	wg.Wait()
}

func TestLockIsWaitedForUntilTheContextEnds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	reserve(t, s, "a", dual)
	fd, err := unix.Open(filepath.Join(dir, "lock"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Reserve(ctx, Owner{"b", "eth0"}, dual); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Reserve under a foreign lock = %v, want DeadlineExceeded", err)
	}
	if err := unix.Flock(fd, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	reserve(t, s, "b", dual)
}

func TestDirectoryRemovedBehindOurBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	s := open(t, dir)
	reserve(t, s, "a", dual)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.77.0.3/24", "fd77::3/64"}, reserve(t, s, "b", dual)); diff != "" {
		t.Errorf("Reserve beside what is still in use (-want +got):\n%s", diff)
	}
	got, err := open(t, dir).List()
	want := map[netip.Addr]Owner{netip.MustParseAddr("10.77.0.2"): {"a", "eth0"}, netip.MustParseAddr("fd77::2"): {"a", "eth0"},
		netip.MustParseAddr("10.77.0.3"): {"b", "eth0"}, netip.MustParseAddr("fd77::3"): {"b", "eth0"}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("reserved (-want +got), %v:\n%s", err, diff)
	}
	if err := s.Release(t.Context(), Owner{"a", "eth0"}); err != nil {
		t.Error(err)
	}
}
