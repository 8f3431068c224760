package invariants

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	d := Daemon{Root: "/r", State: "/s", Bridge: "br"}
	before := Items{{Mount, "/r/a"}: 1, {Descriptor, "ROOT/lock"}: 1, {Descriptor, "pipe:[N]"}: 4, {Firewall, "table 1 br chain b rules"}: 2}
	for _, tc := range []struct {
		name   string
		change func(Items)
		want   string
	}{
		{"same", func(Items) {}, ""},
		{"mount left", func(i Items) { i[Item{Mount, "/r/b"}] = 1 }, "left behind: mount /r/b"},
		{"mount gone", func(i Items) { delete(i, Item{Mount, "/r/a"}) }, "gone: mount /r/a"},
		{"descriptor left", func(i Items) { i[Item{Descriptor, "ROOT/lock"}] = 2 }, "left behind: descriptors of berthd ROOT/lock: 2, before 1"},
		{"fewer descriptors", func(i Items) { i[Item{Descriptor, "pipe:[N]"}] = 1 }, ""},
		{"bridge", func(i Items) { i[Item{Link, "br"}] = 1 }, ""},
		{"port of the bridge", func(i Items) { i[Item{Link, "vb1"}] = 1 }, "left behind: link vb1"},
		{"table", func(i Items) { i[Item{Firewall, "table 1 br"}] = 1 }, ""},
		{"rules that come with the table", func(i Items) { i[Item{Firewall, "table 1 br chain c rules"}] = 3 }, ""},
		{"a rule more", func(i Items) { i[Item{Firewall, "table 1 br chain b rules"}] = 3 }, "left behind: nftables table 1 br chain b rules: 3, before 2"},
		{"element of a set", func(i Items) { i[Item{Firewall, "table 1 br set s"}] = 1 }, "left behind: nftables table 1 br set s"},
		{"monitors", func(i Items) { i[Item{Cgroup, "pids:" + d.CgroupRoot() + "/monitors"}] = 1 }, ""},
		{"cgroup", func(i Items) { i[Item{Cgroup, "pids:" + d.CgroupRoot() + "/x"}] = 1 }, "left behind: cgroup pids:" + d.CgroupRoot() + "/x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			after := Items{}
			for k, v := range before {
				after[k] = v
			}
			tc.change(after)
			if got := strings.Join(Diff(d, before, after), "\n"); got != tc.want {
				t.Errorf("Diff = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTakeSeesFilesOfTheDaemon(t *testing.T) {
	d := Daemon{Root: t.TempDir(), State: t.TempDir()}
	id := strings.Repeat("ab", 32)
	for _, dir := range []string{"pods/" + id + "/containers", "images/containers/" + id, "network/berth"} {
		if err := os.MkdirAll(filepath.Join(d.Root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"10.1.2.3", "last_reserved_ip.0", "lock"} {
		if err := os.WriteFile(filepath.Join(d.Root, "network/berth", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	items, err := Take(d)
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[Kind][]string{
		Record:  {id, id + "/containers"},
		Layer:   {id},
		Address: {"berth/10.1.2.3"},
		Mount:   nil,
		Process: nil,
	} {
		if got := items.Names(kind); !slices.Equal(got, want) {
			t.Errorf("items of kind %s = %q, want %q", kind, got, want)
		}
	}
}
