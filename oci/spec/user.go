package spec

import (
	"bytes"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MaxUserFileBytes is the largest /etc/passwd or /etc/group that is looked at: larger ones are refused (CVE-2026-47262).
const MaxUserFileBytes = 10 << 20

// maxID is the largest user or group ID. The kernel knows larger ones, runc's and containerd's users do not.
const maxID = math.MaxInt32

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// User is whom a container runs as.
type User struct {
	UID, GID uint32
	// Groups are all supplementary groups, sorted, the primary one among them: a process that leaves out its own group
	// passes permission checks that deny that group (CVE-2022-2995).
	Groups []uint32
	// Home is the user's folder as the image says, or "/".
	Home string
}

// ContainerUser resolves the user of the request, else of the image, else root, against the image's files.
//
// IDs are decimal digits and are never taken for names, whatever stands in the files (CVE-2024-40635, CVE-2026-46680).
// A user ID alone gets the primary group that the image's passwd gives it, else 0. A name must be there.
func ContainerUser(cfg *runtimeapi.ContainerConfig, img Image) (User, error) {
	s := cfg.GetLinux().GetSecurityContext()
	if len(img.Passwd) > MaxUserFileBytes || len(img.Group) > MaxUserFileBytes {
		return User{}, invalid("image user files", "", "must have at most %d bytes", MaxUserFileBytes)
	}
	if err := checkRunAs(s); err != nil {
		return User{}, err
	}
	var user account
	var err error
	switch {
	case s.GetRunAsUser() != nil:
		user = accountOf(img.Passwd, uint32(s.GetRunAsUser().GetValue()))
	case s.GetRunAsUsername() != "":
		user, err = findAccount(fieldSecurity+"run_as_username", s.GetRunAsUsername(), img.Passwd)
	default:
		user, err = imageAccount(img)
	}
	if err != nil {
		return User{}, err
	}
	if g := s.GetRunAsGroup(); g != nil {
		user.gid = uint32(g.GetValue())
	}
	out := User{UID: user.uid, GID: user.gid, Home: user.home, Groups: []uint32{user.gid}}
	for _, g := range s.GetSupplementalGroups() {
		out.Groups = append(out.Groups, uint32(g))
	}
	if s.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && user.name != "" {
		out.Groups = append(out.Groups, groupsOf(img.Group, user.name)...)
	}
	slices.Sort(out.Groups)
	out.Groups = slices.Compact(out.Groups)
	if len(out.Groups) > maxGroups {
		return User{}, invalid(fieldSecurity+"supplemental_groups", itoa(len(out.Groups)), "must be at most %d with those of the image", maxGroups)
	}
	return out, nil
}

// ImageUser splits an image's USER into what ImageStatus reports: a user ID, or a name for anything else, so that a kubelet
// that must not run root refuses what it cannot judge. Both are empty when the image names none, which is root.
func ImageUser(user string) (uid *int64, name string) {
	user, _, _ = strings.Cut(user, ":")
	if !digits(user) {
		return nil, user
	}
	n, err := strconv.ParseInt(user, 10, 64)
	if err != nil || n > maxID {
		return nil, user
	}
	return &n, ""
}

// checkRunAs checks what a request says about users, without the image.
func checkRunAs(s *runtimeapi.LinuxContainerSecurityContext) error {
	if s.GetRunAsUser() != nil && s.GetRunAsUsername() != "" {
		return invalid(fieldSecurity+"run_as_username", s.GetRunAsUsername(), "must not stand beside run_as_user")
	}
	if s.GetRunAsGroup() != nil && s.GetRunAsUser() == nil && s.GetRunAsUsername() == "" {
		return invalid(fieldSecurity+"run_as_group", i64toa(s.GetRunAsGroup().GetValue()), "must not be set without run_as_user or run_as_username")
	}
	for _, f := range []struct {
		field string
		value *runtimeapi.Int64Value
	}{{"run_as_user", s.GetRunAsUser()}, {"run_as_group", s.GetRunAsGroup()}} {
		if err := checkID(fieldSecurity+f.field, f.value.GetValue()); err != nil {
			return err
		}
	}
	for _, g := range s.GetSupplementalGroups() {
		if err := checkID(fieldSecurity+"supplemental_groups", g); err != nil {
			return err
		}
	}
	if p := s.GetSupplementalGroupsPolicy(); runtimeapi.SupplementalGroupsPolicy_name[int32(p)] == "" {
		return invalid(fieldSecurity+"supplemental_groups_policy", itoa(int(p)), "must be Merge or Strict")
	}
	return nil
}

func checkID(field string, id int64) error {
	if id < 0 || id > maxID {
		return invalid(field, i64toa(id), "is out of range: must be 0 to %d", maxID)
	}
	return nil
}

// account is one line of passwd.
type account struct {
	name     string // empty when passwd does not know the ID
	uid, gid uint32
	home     string
}

// imageAccount resolves an image's USER: user, uid, user:group, uid:gid, uid:group or user:gid, where an empty user is root.
func imageAccount(img Image) (account, error) {
	const field = "image config User"
	name, group, hasGroup := strings.Cut(img.User, ":")
	user := accountOf(img.Passwd, 0)
	user.gid = 0
	var err error
	if name != "" {
		if user, err = findAccount(field, name, img.Passwd); err != nil {
			return account{}, err
		}
	}
	if hasGroup && group != "" {
		if user.gid, err = findGroup(field, group, img.Group); err != nil {
			return account{}, err
		}
	}
	return user, nil
}

// findAccount resolves a user ID or name.
func findAccount(field, user string, passwd []byte) (account, error) {
	id, numeric, err := parseID(field, user)
	if err != nil {
		return account{}, err
	}
	if numeric {
		return accountOf(passwd, id), nil
	}
	for line := range lines(passwd) {
		if a, ok := parseAccount(line); ok && a.name == user {
			return a, nil
		}
	}
	return account{}, invalid(field, user, "is not a user of the image (/etc/passwd)")
}

// accountOf returns the first account with the ID, or one without a name in group 0.
func accountOf(passwd []byte, uid uint32) account {
	for line := range lines(passwd) {
		if a, ok := parseAccount(line); ok && a.uid == uid {
			return a
		}
	}
	return account{uid: uid, home: "/"}
}

// findGroup resolves a group ID or name.
func findGroup(field, name string, group []byte) (uint32, error) {
	id, numeric, err := parseID(field, name)
	if err != nil || numeric {
		return id, err
	}
	for line := range lines(group) {
		if n, gid, _, ok := parseGroup(line); ok && string(n) == name {
			return gid, nil
		}
	}
	return 0, invalid(field, name, "is not a group of the image (/etc/group)")
}

// groupsOf returns the groups that list the user as a member.
func groupsOf(group []byte, user string) []uint32 {
	var out []uint32
	for line := range lines(group) {
		_, gid, members, ok := parseGroup(line)
		if !ok {
			continue
		}
		for m := range bytes.SplitSeq(members, []byte{','}) {
			if string(m) == user {
				out = append(out, gid)
				break
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parseID tells IDs from names. Whatever another program might read as a number, and is not plain digits, is refused: one
// of the two readings would be wrong.
func parseID(field, s string) (id uint32, numeric bool, err error) {
	if digits(s) {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n > maxID {
			return 0, true, invalid(field, s, "is out of range: IDs are 0 to %d", maxID)
		}
		return uint32(n), true, nil
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' || r == ',' }) || len(s) > maxName {
		return 0, false, invalid(field, s, "must be a name without spaces, colons and control characters, or an ID")
	}
	if _, err := strconv.ParseInt(s, 0, 64); err == nil || strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		return 0, false, invalid(field, s, "must be a name or an ID in plain digits")
	}
	return 0, false, nil
}

// lines yields the lines of a file that are long enough to mean something, without their ends.
func lines(file []byte) iter.Seq[[]byte] {
	const shortest = len("g::0")
	return func(yield func([]byte) bool) {
		for len(file) > 0 {
			end := bytes.IndexByte(file, '\n')
			if end < 0 {
				end = len(file)
			}
			line := file[:end]
			file = file[min(end+1, len(file)):]
			if len(line) >= shortest && !yield(bytes.TrimSuffix(line, []byte{'\r'})) {
				return
			}
		}
	}
}

// parseAccount reads name:password:uid:gid[:comment[:home[:shell]]]. A line whose IDs are no numbers in range is none.
func parseAccount(line []byte) (account, bool) {
	name, rest := cut(line)
	_, rest = cut(rest)
	uidText, rest := cut(rest)
	gidText, rest := cut(rest)
	_, rest = cut(rest)
	home, _ := cut(rest)
	uid, ok := fileID(uidText)
	gid, fine := fileID(gidText)
	if !ok || !fine || len(name) == 0 {
		return account{}, false
	}
	a := account{name: string(name), uid: uid, gid: gid, home: "/"}
	if len(home) > 0 && home[0] == '/' && len(home) <= maxPath && !bytes.ContainsFunc(home, unicode.IsControl) {
		a.home = string(home)
	}
	return a, true
}

// parseGroup reads name:password:gid:members.
func parseGroup(line []byte) (name []byte, gid uint32, members []byte, ok bool) {
	name, rest := cut(line)
	_, rest = cut(rest)
	gidText, members := cut(rest)
	gid, ok = fileID(gidText)
	return name, gid, members, ok && len(name) > 0
}

// cut splits off a line's first field.
func cut(line []byte) (field, rest []byte) {
	field, rest, _ = bytes.Cut(line, []byte{':'})
	return field, rest
}

func fileID(b []byte) (uint32, bool) {
	if len(b) == 0 || len(b) > 10 || !digits(string(b)) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	return uint32(n), err == nil && n <= maxID
}
