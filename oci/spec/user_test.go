package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const testPasswd = "root:x:0:0:root:/root:/bin/sh\n" +
	"web:x:1000:1001:web:/home/web:/bin/sh\r\n" +
	"# a comment\n\n+::::::\n:x:7:7::/:\n" +
	"wrap:x:4294967296:0:wraps to root:/:/bin/sh\n" +
	"minus:x:-1:0::/:\nplus:x:+1:0::/:\nhex:x:0x0:0x0::/:\nempty:x:::/:\nshort:x:5\n" +
	"4294967296:x:0:0:a number as a name:/:\n1234:x:0:0::/:\n" +
	"nohome:x:1002:1002\n" +
	"badhome:x:1003:1003::home:\nesc:x:1004:1004::/\x1b[2J:\n" +
	"web:x:0:0:second of its name:/:/bin/sh\ntwin:x:1000:0:second of its ID:/:/bin/sh"

const testGroup = "root:x:0:\nwww:x:1001:\nlogs:x:50:root,web\nops:x:60:web\nops:x:61:web,\nweb:x:1000:web\nwrap:x:4294967296:web\n" +
	"minus:x:-5:web\nnomembers:x:70\n12:x:0:\nlate:x:80:other,web"

func TestContainerUser(t *testing.T) {
	type user struct {
		user, group *int64
		name, image string
		groups      []int64
		strict      bool
	}
	id := func(n int64) *int64 { return &n }
	for _, tc := range []struct {
		name string
		user user
		want string // uid gid groups home, or the rule of an error
	}{
		{"nothing", user{}, "0 0 [0 50] /root"},
		{"an ID with a line", user{user: id(1000)}, "1000 1001 [50 60 61 80 1000 1001] /home/web"},
		{"an ID with a line, strict", user{user: id(1000), strict: true}, "1000 1001 [1001] /home/web"},
		{"an ID with a line and groups", user{user: id(1000), groups: []int64{9, 50}}, "1000 1001 [9 50 60 61 80 1000 1001] /home/web"},
		{"an ID with a line and groups, strict", user{user: id(1000), groups: []int64{9, 8}, strict: true}, "1000 1001 [8 9 1001] /home/web"},
		{"an ID and a group", user{user: id(1000), group: id(7)}, "1000 7 [7 50 60 61 80 1000] /home/web"},
		{"an ID without a line", user{user: id(1), groups: []int64{5}}, "1 0 [0 5] /"},
		{"root's ID", user{user: id(0)}, "0 0 [0 50] /root"},
		{"the largest ID", user{user: id(1<<31 - 1)}, "2147483647 0 [0] /"},
		{"a name", user{name: "web"}, "1000 1001 [50 60 61 80 1000 1001] /home/web"},
		{"a name and a group", user{name: "web", group: id(7)}, "1000 7 [7 50 60 61 80 1000] /home/web"},
		{"a name that is missing", user{name: "nobody"}, "not a user"},
		{"a name in digits is an ID", user{name: "1234"}, "1234 0 [0] /"},
		{"a name in digits with zeros is an ID", user{name: "0001"}, "1 0 [0] /"},
		{"a name with a plus", user{name: "+1"}, "plain digits"},
		{"a name with a minus", user{name: "-1"}, "plain digits"},
		{"a name with a blank", user{name: "1 "}, "without spaces"},
		{"a name in hex", user{name: "0x0"}, "plain digits"},
		{"a name in octal", user{name: "0o17"}, "plain digits"},
		{"a name with a group in it", user{name: "1:1"}, "without spaces"},
		{"a name with a line end", user{name: "web\nx"}, "without spaces"},
		{"a name of 300 bytes", user{name: strings.Repeat("a", 300)}, "without spaces"},
		{"a name with an ID that wraps", user{name: "wrap"}, "not a user"},
		{"a name with a negative ID", user{name: "minus"}, "not a user"},
		{"a name with a signed ID", user{name: "plus"}, "not a user"},
		{"a name with a hex ID", user{name: "hex"}, "not a user"},
		{"a name without an ID", user{name: "empty"}, "not a user"},
		{"a name on a short line", user{name: "short"}, "not a user"},
		{"a name without a home", user{name: "nohome"}, "1002 1002 [1002] /"},
		{"a name with a relative home", user{name: "badhome"}, "1003 1003 [1003] /"},
		{"a name with a home of escapes", user{name: "esc"}, "1004 1004 [1004] /"},
		{"an image's name", user{image: "web"}, "1000 1001 [50 60 61 80 1000 1001] /home/web"},
		{"an image's name and group", user{image: "web:logs"}, "1000 50 [50 60 61 80 1000] /home/web"},
		{"an image's ID and group", user{image: "1000:ops"}, "1000 60 [50 60 61 80 1000] /home/web"},
		{"an image's ID and group ID", user{image: "5:6"}, "5 6 [6] /"},
		{"an image's group alone", user{image: ":50"}, "0 50 [50] /root"},
		{"an image's user with an empty group", user{image: "web:"}, "1000 1001 [50 60 61 80 1000 1001] /home/web"},
		{"an image's group in digits is an ID", user{image: "5:12"}, "5 12 [12] /"},
		{"an image's group that is missing", user{image: "web:nogroup"}, "not a group"},
		{"an image's group that wraps", user{image: "web:wrap"}, "not a group"},
		{"the request beats the image", user{user: id(1), image: "web:logs"}, "1 0 [0] /"},
		{"2147483648", user{image: "2147483648"}, "out of range"},
		{"4294967296, a name in passwd", user{image: "4294967296"}, "out of range"},
		{"4294967295", user{image: "4294967295"}, "out of range"},
		{"99999999999999999999", user{image: "99999999999999999999"}, "out of range"},
		{"a group of 4294967296", user{image: "1:4294967296"}, "out of range"},
		{"an image's -1", user{image: "-1"}, "plain digits"},
		{"an image's 0x0", user{image: "0x0"}, "plain digits"},
		{"an image's three parts", user{image: "1:2:3"}, "without spaces"},
		{"an image's line end", user{image: "web\n"}, "without spaces"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: tc.user.name, SupplementalGroups: tc.user.groups}
			if tc.user.user != nil {
				s.RunAsUser = int64Value(*tc.user.user)
			}
			if tc.user.group != nil {
				s.RunAsGroup = int64Value(*tc.user.group)
			}
			if tc.user.strict {
				s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
			}
			u, err := ContainerUser(&runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: s}},
				Image{User: tc.user.image, Passwd: []byte(testPasswd), Group: []byte(testGroup)})
			got := fmt.Sprintf("%d %d %d %s", u.UID, u.GID, u.Groups, u.Home)
			if err != nil {
				got = err.Error()
			}
			if got != tc.want && (err == nil || !strings.Contains(got, tc.want)) {
				t.Errorf("ContainerUser = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]string{
		"": "- ", "0": "0 ", "1000": "1000 ", "1000:5": "1000 ", "web": "- web", "web:5": "- web", ":5": "- ", "0001": "1 ",
		"4294967296": "- 4294967296", "-1": "- -1", "2147483648:0": "- 2147483648",
	} {
		uid, name := ImageUser(user)
		got := "- " + name
		if uid != nil {
			got = fmt.Sprint(*uid) + " " + name
		}
		if got != want {
			t.Errorf("ImageUser(%q) = %s, want %s", user, got, want)
		}
	}
}

// The largest files that are read, filled with what costs most, must not hold the daemon up.
func TestContainerUserIsQuickOnHostileFiles(t *testing.T) {
	for name, unit := range map[string]string{"lines": "\n", "accounts": "a:x:1:1:::\n", "colons": ":", "commas": ",", "groups": "g:x:5:a,web\n", "one line": "a"} {
		t.Run(name, func(t *testing.T) {
			file := []byte(strings.Repeat(unit, MaxUserFileBytes/len(unit)))
			begin := time.Now()
			cfg := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "web"}}}
			_, err := ContainerUser(cfg, Image{Passwd: append(file[:len(file)-32:len(file)-32], []byte("\nweb:x:1000:1000::/:\n")...), Group: file})
			if err != nil {
				t.Error(err)
			}
			if d := time.Since(begin); d > 20*time.Second { // 0.2 s where nothing else runs
				t.Errorf("took %v", d)
			}
		})
	}
}

func FuzzContainerUser(f *testing.F) {
	f.Add("web:logs", "", []byte(testPasswd), []byte(testGroup))
	f.Add("4294967296", "1000", []byte("4294967296:x:0:0"), []byte("g:x:1:"))
	f.Fuzz(func(t *testing.T, image, name string, passwd, group []byte) {
		s := &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: name}
		u, err := ContainerUser(&runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: s}},
			Image{User: image, Passwd: passwd, Group: group})
		if err != nil {
			if bad := (*InvalidError)(nil); !errors.As(err, &bad) {
				t.Fatalf("%v is no InvalidError", err)
			}
			return
		}
		if u.UID > maxID || u.GID > maxID || !slices.IsSorted(u.Groups) || !slices.Contains(u.Groups, u.GID) {
			t.Fatalf("user %+v", u)
		}
		if u.Home == "" || u.Home[0] != '/' || strings.ContainsAny(u.Home, "\n\r\x00:") {
			t.Fatalf("home %q", u.Home)
		}
		user := name
		if user == "" {
			user, _, _ = strings.Cut(image, ":")
		}
		// Root is only whom the request, the image, or a line with that very name and a plain 0 says.
		if u.UID == 0 && strings.Trim(user, "0") != "" {
			ok := false
			for line := range strings.Lines(string(passwd)) {
				p := strings.Split(strings.TrimRight(line, "\r\n"), ":")
				ok = ok || len(p) >= 4 && p[0] == user && p[2] != "" && strings.Trim(p[2], "0") == ""
			}
			if !ok || digits(user) {
				t.Fatalf("user %q is root by %q", user, passwd)
			}
		}
	})
}
