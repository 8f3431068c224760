package sandbox

import (
	"cmp"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
)

// logPath is where the monitor writes the container's log. Its folder is the kubelet's to make.
func logPath(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	path, err := spec.LogPath(pod, config)
	if err != nil || path == "" {
		return "", err
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return "", &spec.InvalidError{Field: "config.log_path", Value: path, Rule: "must be in a folder that is there"}
	}
	return path, nil
}

// logFolder is where a pod's log_directory is, by no symbolic link; "" when it is not there.
func logFolder(pod *runtimeapi.PodSandboxConfig) string {
	if pod.GetLogDirectory() == "" {
		return ""
	}
	folder, err := filepath.EvalSymlinks(pod.GetLogDirectory())
	if err != nil {
		return "" // no log can be written to, which CreateContainer tells
	}
	return folder
}

// realLogPath is where a container's log is by no symbolic link, but for those that were planted after the sandbox was made: the kubelet may keep its
// logs behind a link, and a pod that sees all logs of the node must not lead them elsewhere.
func (m *Manager) realLogPath(c *container) string {
	rec := m.containerRecord(c)
	if rec.LogPath == "" {
		return ""
	}
	folder := cmp.Or(m.record(c.pod).LogFolder, logFolder(c.pod.config))
	return filepath.Join(folder, c.config.GetLogPath())
}
