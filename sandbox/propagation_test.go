package sandbox

import "testing"

func TestPropagates(t *testing.T) {
	const table = `22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:27 / /a\040b rw master:3 propagate_from:2 - tmpfs tmpfs rw
31 27 0:28 / /both rw shared:4 master:3 - tmpfs shared:9 rw
`
	for _, tc := range []struct {
		name          string
		id            uint64
		shared, slave bool
	}{
		{"private", 22, false, false}, {"shared", 27, true, false}, {"slave", 30, false, true}, {"both", 31, true, true}, {"not there", 9, false, false},
	} {
		if shared, slave := propagates(table, tc.id); shared != tc.shared || slave != tc.slave {
			t.Errorf("%s: propagates = %v, %v; want %v, %v", tc.name, shared, slave, tc.shared, tc.slave)
		}
	}
}
