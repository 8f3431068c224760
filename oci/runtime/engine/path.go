package engine

import (
	"strings"

	"golang.org/x/sys/unix"
)

// atFDCWD is AT_FDCWD, -100.
var atFDCWD = arg{value: ^uintptr(99)}

// open opens path inside root: symbolic links resolve as if root were "/", and no magic link of /proc is followed, so
// that no image and no volume can lead the child out (openat2(2); CVE-2021-30465, CVE-2024-21626).
func (p *program) open(root arg, path string, flags uint64) *op {
	return p.openHow(root, path, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

func (p *program) openHow(root arg, path string, flags, resolve uint64) *op {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	return p.sys(unix.SYS_OPENAT2, root, p.text(path), memory(p, how), num(unix.SizeofOpenHow))
}

// What ensure makes when a path is missing.
const (
	makeDirectory = iota
	makeFile
)

// ensure opens path inside root as an O_PATH descriptor in r, making what is missing of it.
func (p *program) ensure(root arg, path string, kind int, resolve uint64, r reg) {
	var missing, done label
	p.openHow(root, path, unix.O_PATH, resolve).to(r).onError(&missing, unix.ENOENT).onSuccess(&done)
	p.here(&missing)
	p.parents(root, path, resolve)
	p.scope(func() {
		dir := p.register()
		parent, name := split(path)
		p.openHow(root, parent, unix.O_PATH|unix.O_DIRECTORY, resolve).to(dir)
		if kind == makeDirectory {
			p.mkdir(dir, name)
		} else {
			p.sys(unix.SYS_MKNODAT, dir.arg(), p.text(name), num(unix.S_IFREG|0o644), num(0)).onErrorNext(p, unix.EEXIST)
		}
		p.close(dir)
	})
	p.openHow(root, path, unix.O_PATH, resolve).to(r)
	p.here(&done)
}

// parents makes the missing folders above path.
func (p *program) parents(root arg, path string, resolve uint64) {
	parent, _ := split(path)
	elements := strings.Split(strings.Trim(parent, "/"), "/")
	for i, name := range elements {
		if name == "" {
			continue
		}
		p.scope(func() {
			dir := p.register()
			p.openHow(root, "/"+strings.Join(elements[:i], "/"), unix.O_PATH|unix.O_DIRECTORY, resolve).to(dir)
			p.mkdir(dir, name)
			p.close(dir)
		})
	}
}

func (p *program) mkdir(dir reg, name string) {
	// For what is there the kernel says EEXIST before EROFS or EACCES: the open that follows tells what it is.
	p.sys(unix.SYS_MKDIRAT, dir.arg(), p.text(name), num(0o755)).onErrorNext(p, unix.EEXIST)
}

// split cuts a clean absolute path before its last element.
func split(path string) (parent, name string) {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return "/", path[i+1:]
	}
	return path[:i], path[i+1:]
}
