package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func id(c string) string { return strings.Repeat(c, 64) }

func pod(sandboxID string) *Pod {
	return &Pod{ID: sandboxID, State: Ready, CreatedAt: 7, Config: []byte{1, 2, 0xff},
		Network: Network{NetNS: "/run/netns/x", Attachment: json.RawMessage(`{"a":1}`), IPs: []netip.Addr{netip.MustParseAddr("10.88.0.2")}}, Cgroup: "/berth/x", Ancestors: []string{"/berth"}, Monitor: Process{PID: 3, StartTime: 9}}
}

func container(sandboxID, containerID string) *Container {
	return &Container{ID: containerID, SandboxID: sandboxID, State: Running, Config: []byte("x"), Place: Place{Cgroup: "/berth/x/y"}, End: End{ExitCode: -1}}
}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t testing.TB, s *Store) []PodFolder {
	t.Helper()
	folders, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return folders
}

var addr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestRecordsRoundTrip(t *testing.T) {
	s := open(t)
	a := id("a")
	if err := errors.Join(s.AddPod(pod(a)), s.AddContainer(container(a, id("1")), nil), s.AddContainer(container(a, id("2")), nil)); err != nil {
		t.Fatal(err)
	}
	changed := pod(a)
	changed.State = NotReady
	if err := errors.Join(s.PutPod(changed), s.AddContainer(container(a, id("1")), map[string]int{"n": 5})); err != nil {
		t.Fatal(err)
	}
	want := []PodFolder{{ID: a, Pod: changed, Containers: []ContainerFolder{
		{ID: id("1"), Container: container(a, id("1"))}, {ID: id("2"), Container: container(a, id("2"))}}}}
	if diff := cmp.Diff(want, load(t, s), addr); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	var spec map[string]int
	if err := s.Spec(a, id("1"), &spec); err != nil || spec["n"] != 5 {
		t.Errorf("Spec = %v, %v", spec, err)
	}
	if err := errors.Join(s.RemoveContainer(a, id("1")), s.RemoveContainer(a, id("1")), s.RemovePod(a), s.RemovePod(a)); err != nil {
		t.Error(err)
	}
	if got := load(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestOpenClosesWhatWasOpen(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(root+"/pods", 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(root+"/pods", 0o777)
	old := unix.Umask(0)
	defer unix.Umask(old)
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.AddPod(pod(id("a"))), s.AddContainer(container(id("a"), id("1")), nil)); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(root+"/pods", func(path string, d fs.DirEntry, err error) error {
		if st, _ := d.Info(); st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
		return err
	})
}

func TestDamageStaysWithItsObject(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(path string, old []byte) error
		want   error
	}{
		{"truncated", func(p string, old []byte) error { return os.WriteFile(p, old[:len(old)/2], 0o600) }, ErrDamaged},
		{"empty", func(p string, old []byte) error { return os.WriteFile(p, nil, 0o600) }, ErrDamaged},
		{"zeroed", func(p string, old []byte) error { return os.WriteFile(p, make([]byte, len(old)), 0o600) }, ErrDamaged},
		{"one bit flipped", func(p string, old []byte) error { old[len(old)-5] ^= 4; return os.WriteFile(p, old, 0o600) }, ErrDamaged},
		{"half old, half new", func(p string, old []byte) error {
			return os.WriteFile(p, append(old, old[len(old)/2:]...), 0o600)
		}, ErrDamaged},
		{"newer version", func(p string, old []byte) error {
			return os.WriteFile(p, bytes.Replace(old, []byte("berth 1 "), []byte("berth 2 "), 1), 0o600)
		}, ErrVersion},
		{"a newer version with another first line", func(p string, old []byte) error { return os.WriteFile(p, []byte("berth 9\n{}"), 0o600) }, ErrVersion},
		{"a folder", func(p string, old []byte) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, ErrDamaged},
		{"a FIFO", func(p string, old []byte) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }, ErrDamaged},
		{"a symlink", func(p string, old []byte) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) }, unix.ELOOP},
		{"missing", func(p string, old []byte) error { return os.Remove(p) }, fs.ErrNotExist},
		{"another object's", func(p string, old []byte) error {
			other, err := encode(filepath.Base(p), &Pod{ID: id("f"), State: Ready, Cgroup: "/x"})
			return errors.Join(err, os.WriteFile(p, other, 0o600))
		}, ErrDamaged},
		{"another kind", func(p string, old []byte) error {
			other, err := encode("spec", &Pod{})
			return errors.Join(err, os.WriteFile(p, other, 0o600))
		}, ErrDamaged},
	} {
		for _, object := range []string{"pod", "container"} {
			t.Run(tc.name+" "+object, func(t *testing.T) {
				s := open(t)
				a, b := id("a"), id("b")
				for _, sandboxID := range []string{a, b} {
					if err := errors.Join(s.AddPod(pod(sandboxID)), s.AddContainer(container(sandboxID, id("1")), nil), s.AddContainer(container(sandboxID, id("2")), nil)); err != nil {
						t.Fatal(err)
					}
				}
				path := filepath.Join(s.pods, a, "pod")
				if object == "container" {
					path = filepath.Join(s.RecordDir(a), id("1"), "container")
				}
				old, err := os.ReadFile(path)
				if err == nil {
					err = tc.damage(path, old)
				}
				if err != nil {
					t.Fatal(err)
				}
				got := load(t, s)
				if len(got) != 2 || got[1].Err != nil || got[1].Containers[0].Err != nil || got[0].Containers[1].Err != nil {
					t.Fatalf("others suffered: %+v", got)
				}
				gotErr := got[0].Err
				if object == "container" {
					gotErr = got[0].Containers[0].Err
				}
				if !errors.Is(gotErr, tc.want) {
					t.Errorf("error = %v, want %v", gotErr, tc.want)
				}
				if err := errors.Join(s.RemoveContainer(a, id("1")), s.RemovePod(a)); err != nil {
					t.Errorf("not removable: %v", err)
				}
			})
		}
	}
}

// short makes the opening of files with this name fail, n times.
func short(t *testing.T, name string, errno unix.Errno, n int) {
	t.Helper()
	old := openFile
	t.Cleanup(func() { openFile = old })
	openFile = func(path string, flag int, perm os.FileMode) (*os.File, error) {
		if filepath.Base(path) == name && n > 0 {
			n--
			return nil, &fs.PathError{Op: "open", Path: path, Err: errno}
		}
		return old(path, flag, perm)
	}
}

// A file that cannot be opened for want of descriptors or memory is not damaged: taken for that, its containers were killed.
func TestLoadInAShortage(t *testing.T) {
	patience := loadPatience
	t.Cleanup(func() { loadPatience = patience })
	for _, name := range []string{"pod", "container"} {
		for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.ENOBUFS, unix.EIO, unix.EACCES} {
			t.Run(name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				s := open(t)
				a := id("a")
				if err := errors.Join(s.AddPod(pod(a)), s.AddContainer(container(a, id("1")), nil)); err != nil {
					t.Fatal(err)
				}
				if errno == unix.EIO || errno == unix.EACCES { // these are of the file
					short(t, name, errno, 1)
					if got := load(t, s); !errors.Is(errors.Join(got[0].Err, got[0].Containers[0].Err), errno) {
						t.Errorf("Load = %+v", got)
					}
					return
				}
				loadPatience = patience
				short(t, name, errno, 2)
				want := []PodFolder{{ID: a, Pod: pod(a), Containers: []ContainerFolder{{ID: id("1"), Container: container(a, id("1"))}}}}
				if diff := cmp.Diff(want, load(t, s), addr); diff != "" {
					t.Errorf("Load after a short while of it (-want +got):\n%s", diff)
				}
				loadPatience = 0
				short(t, name, errno, 1000)
				got, err := s.Load()
				if !errors.Is(err, errno) || !strings.Contains(err.Error(), s.pods) || got != nil {
					t.Errorf("Load while it lasts = %+v, %v", got, err)
				}
			})
		}
	}
}

func TestLoadPassesOverForeignNames(t *testing.T) {
	s := open(t)
	for _, name := range []string{"lost+found", id("A"), id("a") + "0"} {
		if err := os.Mkdir(filepath.Join(s.pods, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got := load(t, s); len(got) != 0 {
		t.Errorf("Load = %v", got)
	}
	if err := s.RemovePod("../x"); err == nil {
		t.Error("RemovePod(../x) succeeded")
	}
	if err := s.RemoveContainer(id("a"), ".."); err == nil {
		t.Error("RemoveContainer(..) succeeded")
	}
}

func TestLeftTempFilesDoNotMatter(t *testing.T) {
	s := open(t)
	a := id("a")
	if err := s.AddPod(pod(a)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.pods, a, "pod.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := load(t, s); len(got) != 1 || got[0].Err != nil {
		t.Errorf("Load = %+v", got)
	}
	if err := errors.Join(s.PutPod(pod(a)), s.RemovePod(a)); err != nil {
		t.Error(err)
	}
}

func TestPutIntoARemovedFolderFails(t *testing.T) {
	s := open(t)
	if err := s.PutPod(pod(id("a"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("PutPod = %v, want ErrNotExist", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, record := range []any{pod(id("a")), &Pod{}} {
		frame, err := encode("pod", record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Add([]byte("berth 1 pod x 0\n"))
	f.Add([]byte("berth 99999999999 pod\n"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var p Pod
		if err := decode("pod", frame, &p); err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Errorf("decode: %v is neither sentinel", err)
			}
			return
		}
		again, err := encode("pod", &p)
		if err != nil {
			t.Fatal(err)
		}
		var q Pod
		if err := decode("pod", again, &q); err != nil {
			t.Errorf("decode of encode: %v", err)
		}
	})
}

func BenchmarkPutPod(b *testing.B) {
	s := open(b)
	p := pod(id("a"))
	p.Config = bytes.Repeat([]byte{1}, 3000)
	if err := s.AddPod(p); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.PutPod(p); err != nil {
			b.Fatal(err)
		}
	}
}
