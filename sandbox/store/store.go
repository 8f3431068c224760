package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Store is the folder ROOT/pods.
type Store struct{ pods string }

// Open makes ROOT/pods if it is missing, and takes away access that others may have to it.
func Open(root string) (*Store, error) {
	s := &Store{pods: filepath.Join(root, "pods")}
	if err := os.MkdirAll(s.pods, 0o700); err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	if err := os.Chmod(s.pods, 0o700); err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	return s, nil
}

// RecordDir is the folder with one folder per container of the sandbox; the monitor writes exit records there.
func (s *Store) RecordDir(sandboxID string) string {
	return filepath.Join(s.pods, sandboxID, "containers")
}

// ExitPath is where the monitor records how the container ended.
func (s *Store) ExitPath(sandboxID, containerID string) string {
	return filepath.Join(s.RecordDir(sandboxID), containerID, "exit")
}

// AddPod makes the folder of a new sandbox and writes its record.
func (s *Store) AddPod(p *Pod) error {
	if err := errors.Join(mkdir(filepath.Join(s.pods, p.ID)), mkdir(s.RecordDir(p.ID))); err != nil {
		return fmt.Errorf("add record of sandbox %s: %w", p.ID, err)
	}
	return s.PutPod(p)
}

// PutPod replaces the record of a sandbox that is there.
func (s *Store) PutPod(p *Pod) error {
	return put(filepath.Join(s.pods, p.ID), "pod", p)
}

// AddContainer makes the folder of a new container and writes its OCI runtime spec and then its record.
func (s *Store) AddContainer(c *Container, spec any) error {
	folder := filepath.Join(s.RecordDir(c.SandboxID), c.ID)
	if err := mkdir(folder); err != nil {
		return fmt.Errorf("add record of container %s: %w", c.ID, err)
	}
	if err := put(folder, "spec", spec); err != nil {
		return err
	}
	return s.PutContainer(c)
}

// PutContainer replaces the record of a container that is there.
func (s *Store) PutContainer(c *Container) error {
	return put(filepath.Join(s.RecordDir(c.SandboxID), c.ID), "container", c)
}

// Spec reads the container's OCI runtime spec into spec, a pointer.
func (s *Store) Spec(sandboxID, containerID string, spec any) error {
	return get(filepath.Join(s.RecordDir(sandboxID), containerID), "spec", spec)
}

// RemoveContainer removes the folder of a container, its record last. It is idempotent.
func (s *Store) RemoveContainer(sandboxID, containerID string) error {
	if !ValidID(sandboxID) || !ValidID(containerID) {
		return fmt.Errorf("remove record of container %q: not an ID", containerID)
	}
	return removeFolder(filepath.Join(s.RecordDir(sandboxID), containerID), "container")
}

// RemovePod removes the folder of a sandbox with all that is in it, its record last. It is idempotent.
func (s *Store) RemovePod(sandboxID string) error {
	if !ValidID(sandboxID) {
		return fmt.Errorf("remove record of sandbox %q: not an ID", sandboxID)
	}
	return removeFolder(filepath.Join(s.pods, sandboxID), "pod")
}

// removeFolder leaves the record for last, so that a removal that is cut short is found and finished.
func removeFolder(folder, record string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		return os.Remove(folder)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", folder, err)
	}
	for _, e := range entries {
		if e.Name() != record {
			if err := os.RemoveAll(filepath.Join(folder, e.Name())); err != nil {
				return fmt.Errorf("remove %s: %w", folder, err)
			}
		}
	}
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("remove %s: %w", folder, err)
	}
	return nil
}

// PodFolder is what Load found of one sandbox.
type PodFolder struct {
	ID         string
	Pod        *Pod  // nil when Err is set
	Err        error // ErrDamaged, ErrVersion, fs.ErrNotExist (creation or removal was cut short), or what reading gave
	Containers []ContainerFolder
}

// ContainerFolder is what Load found of one container.
type ContainerFolder struct {
	ID        string
	Container *Container // nil when Err is set
	Err       error
}

// Load reads all records. What is wrong with one is in its Err; foreign names are left out. The error is of the folder itself, or a Shortage
// that has lasted: it says nothing of any record.
func (s *Store) Load() ([]PodFolder, error) {
	for start := time.Now(); ; time.Sleep(loadPause) {
		folders, err := s.load()
		if err == nil {
			return folders, nil
		}
		if !Shortage(err) || time.Since(start) > loadPatience {
			return nil, fmt.Errorf("load records: %w", err)
		}
	}
}

func (s *Store) load() ([]PodFolder, error) {
	entries, err := os.ReadDir(s.pods)
	if err != nil {
		return nil, err
	}
	var folders []PodFolder
	for _, e := range entries {
		if !ValidID(e.Name()) {
			continue
		}
		folder, err := s.loadPod(e.Name())
		if err != nil {
			return nil, err
		}
		folders = append(folders, folder)
	}
	return folders, nil
}

// loadPod reads the records of one sandbox. The error is a Shortage.
func (s *Store) loadPod(sandboxID string) (PodFolder, error) {
	folder := PodFolder{ID: sandboxID}
	var p Pod
	if folder.Err = get(filepath.Join(s.pods, sandboxID), "pod", &p); folder.Err == nil {
		folder.Err = p.validate(sandboxID)
	}
	if folder.Err == nil {
		folder.Pod = &p
	}
	entries, err := os.ReadDir(s.RecordDir(sandboxID))
	if both := errors.Join(folder.Err, err); Shortage(both) {
		return PodFolder{}, both
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && folder.Err == nil {
		folder.Pod, folder.Err = nil, fmt.Errorf("load records of sandbox %s: %w", sandboxID, err)
	}
	for _, e := range entries {
		if !ValidID(e.Name()) {
			continue
		}
		c := s.loadContainer(sandboxID, e.Name())
		if Shortage(c.Err) {
			return PodFolder{}, c.Err
		}
		folder.Containers = append(folder.Containers, c)
	}
	return folder, nil
}

func (s *Store) loadContainer(sandboxID, containerID string) ContainerFolder {
	folder := ContainerFolder{ID: containerID}
	var c Container
	if folder.Err = get(filepath.Join(s.RecordDir(sandboxID), containerID), "container", &c); folder.Err == nil {
		folder.Err = c.validate(sandboxID, containerID)
	}
	if folder.Err == nil {
		folder.Container = &c
	}
	return folder
}

func mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// put replaces folder/kind by one rename.
func put(folder, kind string, record any) (err error) {
	frame, err := encode(kind, record)
	if err != nil {
		return err
	}
	path := filepath.Join(folder, kind)
	if err := writeFile(path+".tmp", frame); err != nil {
		return fmt.Errorf("write record %s: %w", path, errors.Join(err, removeFile(path+".tmp")))
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	return nil
}

func writeFile(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Write(content)
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// get reads folder/kind. It never blocks on what is not a regular file.
func get(folder, kind string, record any) (err error) {
	path := filepath.Join(folder, kind)
	f, err := openFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxRecord {
		return fmt.Errorf("read record %s: not a regular file of at most %d bytes: %w", path, maxRecord, ErrDamaged)
	}
	frame, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if err := decode(kind, frame, record); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
