package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostileImage is the mount of an image with a link to a folder of the host, and that folder.
func hostileImage(t *testing.T) (m *Mount, victim string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: overlayfs")
	}
	dir := t.TempDir()
	victim = filepath.Join(dir, "victim")
	image, empty := filepath.Join(dir, "image"), filepath.Join(dir, "empty")
	for _, d := range []string{victim, filepath.Join(image, "etc"), empty} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{filepath.Join(victim, "secret"): "host", filepath.Join(image, "etc/conf"): "image"}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"abs": "/etc", "up": "../../../etc/conf", "out": victim, "climb": strings.Repeat("../", 20) + victim[1:],
		"magic": "/proc/self/root", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(image, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &Mount{Type: TypeImage, Target: "/volume", Options: []string{"lowerdir+=" + image, "lowerdir+=" + empty},
		Set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV}, victim
}

func TestPartOfAnImage(t *testing.T) {
	m, _ := hostileImage(t)
	for path, want := range map[string]error{"": nil, "etc": nil, "abs/conf": nil, "up": nil, "out": unix.ENOENT, "out/secret": unix.ENOENT,
		"climb/secret": unix.ENOENT, "magic": unix.ENOENT, "loop": unix.ELOOP, "fifo": unix.EINVAL, "etc/conf/x": unix.ENOTDIR, "no": unix.ENOENT} {
		one := *m
		one.SubPath = path
		fd, directory, err := openImage(&one, nil)
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
		if err != nil {
			continue
		}
		if directory != (path == "" || path == "etc") {
			t.Errorf("%q: folder %t", path, directory)
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil || st.Flags&(unix.ST_RDONLY|unix.ST_NODEV) != unix.ST_RDONLY|unix.ST_NODEV {
			t.Errorf("%q: flags %#x, %v", path, st.Flags, err)
		}
		unix.Close(fd)
	}
}

// What older kernels need: the same, and nothing on the host's mount table.
func TestPartOfAnImageByChild(t *testing.T) {
	m, _ := hostileImage(t)
	for path, want := range map[string]error{"etc": nil, "abs": nil, "out": unix.ENOENT, "climb/secret": unix.ENOENT, "magic": unix.ENOENT, "loop": unix.ELOOP} {
		all, _, err := openImage(m, nil)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := subtreeByChild(all, path)
		unix.Close(all)
		var fault *Error
		if errors.As(err, &fault) {
			err = fault.Errno
		}
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
		if err != nil {
			continue
		}
		if text, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(fd) + "/conf"); err != nil || string(text) != "image" {
			t.Errorf("%q: %q, %v", path, text, err)
		}
		unix.Close(fd)
	}
	if list := mountsOf(t, t.Name()); len(list) > 0 {
		t.Errorf("the host has mounts: %q", list)
	}
}

func TestImageOnTheHost(t *testing.T) {
	m, _ := hostileImage(t)
	for path, file := range map[string]string{"": "etc/conf", "abs": "conf", "up": ""} {
		one, target := *m, filepath.Join(t.TempDir(), "target")
		one.SubPath = path
		if err := MountImage(&one, target); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(target, file))
		if err != nil || string(text) != "image" {
			t.Errorf("%q: %q, %v", path, text, err)
		}
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}
}
