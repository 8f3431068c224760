package images

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// Passwd and Group are the account files of the images made here.
const (
	Passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	Group  = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
)

// Path is where programs of the images stand.
const Path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Builder collects the files of one layer. Parents come before what is in them, and nothing comes twice.
// The first error sticks and is told by Files.
type Builder struct {
	files []registrytest.File
	seen  map[string]bool
	err   error
}

// NewBuilder returns an empty layer.
func NewBuilder() *Builder { return &Builder{seen: map[string]bool{}} }

// Files returns the layer's entries in their order.
func (b *Builder) Files() ([]registrytest.File, error) { return b.files, b.err }

// Layer returns the layer.
func (b *Builder) Layer() (registrytest.Layer, error) {
	return registrytest.Layer{Files: b.files}, b.err
}

func (b *Builder) add(f registrytest.File) *Builder {
	f.Name = strings.TrimPrefix(f.Name, "/")
	if dir := path.Dir(strings.TrimSuffix(f.Name, "/")); dir != "." && !b.seen[dir+"/"] {
		b.Dir(dir, 0o755)
	}
	if !b.seen[f.Name] {
		b.seen[f.Name] = true
		b.files = append(b.files, f)
	}
	return b
}

// Dir adds a folder.
func (b *Builder) Dir(name string, mode int64) *Builder {
	return b.add(registrytest.File{Name: strings.TrimSuffix(name, "/") + "/", Mode: mode})
}

// File adds a regular file of root's.
func (b *Builder) File(name, body string, mode int64) *Builder {
	return b.add(registrytest.File{Name: name, Body: []byte(body), Mode: mode})
}

// Symlink adds a symbolic link.
func (b *Builder) Symlink(name, target string) *Builder {
	return b.add(registrytest.File{Name: name, Type: tar.TypeSymlink, Linkname: target, Mode: 0o777})
}

// Hardlink adds another name for a file that is in the layer.
func (b *Builder) Hardlink(name, target string) *Builder {
	return b.add(registrytest.File{Name: name, Type: tar.TypeLink, Linkname: strings.TrimPrefix(target, "/"), Mode: 0o755})
}

// Program adds a program of this machine as name, with the libraries that it is linked with under their own paths.
func (b *Builder) Program(name, source string) *Builder {
	body, err := os.ReadFile(source)
	if err != nil {
		return b.fail(fmt.Errorf("copy program: %w", err))
	}
	b.File(name, string(body), 0o755)
	libs, err := libraries(source)
	if err != nil {
		return b.fail(err)
	}
	for _, lib := range libs {
		body, err := os.ReadFile(lib)
		if err != nil {
			return b.fail(fmt.Errorf("copy library: %w", err))
		}
		b.File(lib, string(body), 0o755)
	}
	return b
}

func (b *Builder) fail(err error) *Builder {
	if b.err == nil {
		b.err = err
	}
	return b
}

// libraries returns the paths of the dynamic loader and of all libraries that it would load.
func libraries(program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", program, err)
	}
	defer f.Close()
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil, nil
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("list libraries of %s: %w", program, err)
	}
	if strings.Contains(string(out), "not found") {
		return nil, fmt.Errorf("list libraries of %s: one is missing:\n%s", program, out)
	}
	var libs []string
	for _, word := range strings.Fields(string(out)) {
		if filepath.IsAbs(word) {
			libs = append(libs, word)
		}
	}
	return libs, nil
}

// Shell fills a layer with a root file system around a busybox binary: each applet is a hard link to /bin/busybox, so that one masked
// applet masks no other.
func Shell(busybox string) *Builder { return ShellWith(busybox, Passwd, Group) }

// ShellWith is Shell with other account files.
func ShellWith(busybox, passwd, group string) *Builder {
	b := NewBuilder()
	b.Program("bin/busybox", busybox)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return b.fail(fmt.Errorf("list applets of %s: %w", busybox, err))
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			b.Hardlink("bin/"+applet, "bin/busybox")
		}
	}
	for _, dir := range []string{"root", "home", "etc", "proc", "sys", "dev", "usr/bin", "usr/sbin", "var/www"} {
		b.Dir(dir, 0o755)
	}
	return b.Dir("tmp", 0o1777).File("etc/passwd", passwd, 0o644).File("etc/group", group, 0o644)
}

// Busybox finds the machine's statically linked busybox.
func Busybox() (string, error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("find busybox: %w; install Debian's package busybox-static (make setup)", os.ErrNotExist)
}
