package spec

import (
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UserMappings are those of a pod's user namespace; both are empty when it is the host's.
type UserMappings struct{ UIDs, GIDs []specs.LinuxIDMapping }

// own tells whether there is a user namespace other than the host's.
func (u *UserMappings) own() bool { return len(u.UIDs) > 0 }

// Users returns the mappings of the pod's user namespace. ValidatePod has passed cfg.
func Users(cfg *runtimeapi.PodSandboxConfig) UserMappings {
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o == nil || o.GetMode() != runtimeapi.NamespaceMode_POD {
		return UserMappings{}
	}
	return UserMappings{UIDs: mappings(o.GetUids()), GIDs: mappings(o.GetGids())}
}

func mappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// mapped tells whether an ID of the container stands for one of the host.
func mapped(list []specs.LinuxIDMapping, id uint32) bool {
	return slices.ContainsFunc(list, func(m specs.LinuxIDMapping) bool { return id >= m.ContainerID && id-m.ContainerID < m.Size })
}

// checkUsers checks the user namespace of a pod or a container: the host's, or one with one mapping of users and one of groups,
// from 0 on, of one length. A pod that has one shares no pid and ipc namespace with the host; it may share the network, over which it has no
// power then.
func checkUsers(field string, o *runtimeapi.NamespaceOption) error {
	u := o.GetUsernsOptions()
	field += "userns_options."
	switch {
	case u == nil:
		return nil
	case u.GetMode() != runtimeapi.NamespaceMode_POD && u.GetMode() != runtimeapi.NamespaceMode_NODE:
		return invalid(field+"mode", u.GetMode().String(), "must be POD or NODE")
	case u.GetMode() == runtimeapi.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0:
		return invalid(field+"mode", u.GetMode().String(), "must not have mappings")
	case u.GetMode() == runtimeapi.NamespaceMode_NODE:
		return nil
	}
	for _, l := range []struct {
		field string
		list  []*runtimeapi.IDMapping
	}{{"uids", u.GetUids()}, {"gids", u.GetGids()}} {
		if len(l.list) != 1 {
			return invalid(field+l.field, itoa(len(l.list))+" mappings", "must be one")
		}
		if id := l.list[0].GetContainerId(); id != 0 {
			return invalid(field+l.field+"[0].container_id", i64toa(int64(id)), "must be 0: root of the container has to be mapped")
		}
		if l.list[0].GetHostId() == 0 {
			return invalid(field+l.field+"[0].host_id", "0", "must not be 0: root of the container would be the host's")
		}
		if err := checkMapping(field+l.field+"[0].", l.list[0]); err != nil {
			return err
		}
	}
	if uids, gids := u.GetUids()[0].GetLength(), u.GetGids()[0].GetLength(); uids != gids {
		return invalid(field+"gids[0].length", i64toa(int64(gids)), "must be that of the uids, %d", uids)
	}
	for _, n := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
	}{{"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if n.mode == runtimeapi.NamespaceMode_NODE {
			return invalid(fieldSecurity+"namespace_options."+n.field, n.mode.String(), "must not be the host's in a pod with a user namespace")
		}
	}
	return nil
}

// checkMapping checks what the kernel would refuse. The last ID, 2^32-1, stands for none.
func checkMapping(field string, m *runtimeapi.IDMapping) error {
	if m.GetLength() == 0 {
		return invalid(field+"length", "0", "must not be 0")
	}
	for _, first := range []uint32{m.GetHostId(), m.GetContainerId()} {
		if uint64(first)+uint64(m.GetLength()) > math.MaxUint32 {
			return invalid(field+"length", i64toa(int64(m.GetLength())), "must end before ID %d", uint32(math.MaxUint32))
		}
	}
	return nil
}

// checkMountMappings checks the mappings of a mount.
func checkMountMappings(field string, m *runtimeapi.Mount) error {
	if (len(m.GetUidMappings()) > 0) != (len(m.GetGidMappings()) > 0) {
		return invalid(field+"uidMappings", itoa(len(m.GetUidMappings())), "must be set with gidMappings, and not without")
	}
	for _, list := range [][]*runtimeapi.IDMapping{m.GetUidMappings(), m.GetGidMappings()} {
		if len(list) > maxMappings {
			return invalid(field+"uidMappings", itoa(len(list)), "must be at most %d", maxMappings)
		}
		for i, mapping := range list {
			if err := checkMapping(field+"uidMappings["+itoa(i)+"].", mapping); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxMappings is how many the kernel takes (user_namespaces(7)).
const maxMappings = 340

// setUsers takes the pod's user namespace: a container is in it. One that asks for another is refused.
func (b *builder) setUsers() error {
	b.users = Users(b.in.Pod.Config)
	own := b.security.GetNamespaceOptions().GetUsernsOptions()
	pods := b.in.Pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if own != nil && !proto.Equal(own, pods) && (b.users.own() || own.GetMode() != runtimeapi.NamespaceMode_NODE) {
		return invalid(fieldSecurity+"namespace_options.userns_options", own.GetMode().String(), "must be the pod's")
	}
	return nil
}

// checkMapped refuses a user whose IDs stand for none of the host: it could own nothing, and not even run.
func (b *builder) checkMapped(u User) error {
	if !b.users.own() {
		return nil
	}
	if !mapped(b.users.UIDs, u.UID) {
		return invalid("user", i64toa(int64(u.UID)), "is not mapped in the pod's user namespace, which has %d users", b.users.UIDs[0].Size)
	}
	for _, g := range append([]uint32{u.GID}, u.Groups...) {
		if !mapped(b.users.GIDs, g) {
			return invalid("group", i64toa(int64(g)), "is not mapped in the pod's user namespace, which has %d groups", b.users.GIDs[0].Size)
		}
	}
	return nil
}

// grantable are the capabilities that a container can have. In a user namespace they are all there: they count there only.
func (b *builder) grantable() []string {
	if b.users.own() {
		return knownCapabilities
	}
	return b.in.Host.Capabilities
}
