package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// ErrNoParser means that the program is missing that loads profiles.
var ErrNoParser = errors.New("apparmor_parser is not installed (Debian's package apparmor)")

const (
	parserName  = "apparmor_parser"
	loadTimeout = 10 * time.Second
	includes    = "/etc/apparmor.d"
)

// parserFolders are looked in besides PATH, which the folders of administrators' programs need not be in.
var parserFolders = []string{"/usr/sbin", "/sbin"}

var loading sync.Mutex

// Load puts the default profile into the kernel, and replaces an older one. Errors: ErrNoParser.
func Load(ctx context.Context) error {
	loading.Lock()
	defer loading.Unlock()
	parser, err := findParser()
	if err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", Name, err)
	}
	text := Profile()
	if _, err := os.Stat(includes + "/" + abi); err == nil {
		text = "abi <" + abi + ">,\n" + text
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %s: %w: %s", Name, parserName, err, bytes.TrimSpace(out))
	}
	return nil
}

func findParser() (string, error) {
	if found, err := exec.LookPath(parserName); err == nil {
		return found, nil
	}
	for _, folder := range parserFolders {
		if found, err := exec.LookPath(folder + "/" + parserName); err == nil {
			return found, nil
		}
	}
	return "", ErrNoParser
}
