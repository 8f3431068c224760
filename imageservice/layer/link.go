package layer

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// link makes name in parent a hard link. A target that the layer has not is the lower tree's: with none at hand a
// placeholder stands for it and the layer is marked for being applied again, upon that tree.
func (a *applier) link(parent *node, name, target string) error {
	target, err := cleanName(target)
	if err != nil {
		return err
	}
	dirName, base := path.Split(target)
	if hidden, err := inWhiteout(target); err != nil || hidden || base == "" {
		return errors.Join(err, missing(target))
	}
	from, err := a.linkTarget(dirName, base)
	if isNotExist(err) && a.lower == nil {
		return a.placeholder(parent, name)
	}
	if isNotExist(err) {
		return missing(target)
	}
	if err != nil {
		return err
	}
	if from == parent && base == name {
		return nil
	}
	fromFD, err := openDirPath(a.tree.rootFD, from.path())
	if err != nil {
		return err
	}
	defer unix.Close(fromFD)
	err = a.replace(parent, name, func(dirfd int) error {
		if from.gone {
			return unix.ENOENT // it lay in what the link replaced
		}
		return unix.Linkat(fromFD, base, dirfd, name, 0)
	})
	if err == nil {
		a.res.Inodes-- // a name, not an inode
	}
	if isNotExist(err) && a.lower == nil {
		return a.placeholder(parent, name)
	}
	if isNotExist(err) {
		return missing(target)
	}
	return err
}

func missing(target string) error { return invalid("hard link to %q, which is missing", target) }

// linkTarget finds the directory of a link's target and sees to it that the layer has the target.
// It returns ENOENT if it is missing.
func (a *applier) linkTarget(dirName, base string) (*node, error) {
	from, err := a.walk(dirName, walkPeek)
	if err != nil {
		return nil, err
	}
	fd, err := a.tree.dirfd(from)
	if err != nil {
		return nil, err
	}
	st, err := lstatAt(fd, base)
	switch {
	case err == nil && isWhiteout(&st):
		return nil, unix.ENOENT
	case err == nil && isType(&st, unix.S_IFDIR) && a.lower == nil:
		return nil, unix.ENOENT // with the layers below it may be something else
	case err == nil && isType(&st, unix.S_IFDIR):
		return nil, invalid("hard link to the directory %q", from.child(base))
	case err == nil:
		return from, nil
	case isNotExist(err) && a.lower != nil:
		return from, a.copyUp(from, base)
	}
	return nil, err
}

// placeholder stands for a link that only the lower tree can make. A layer with one is never stacked as it is.
func (a *applier) placeholder(parent *node, name string) error {
	a.links++
	fd, err := a.create(parent, name, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
