package snapshot

import "os"

// MountInScratch is the way that older kernels need.
func (s *Store) MountInScratch(folders []string) (*os.File, error) { return s.mountInScratch(folders) }
