package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// C libraries keep the first two real-time signals of the kernel, 32 and 33, for themselves.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// aliases are names of the CRI and of images for signals that x/sys knows by another one.
var aliases = map[string]string{"SIGCLD": "SIGCHLD", "SIGPOLL": "SIGIO", "SIGIOT": "SIGABRT"}

// criSignal translates the CRI's enumeration.
func criSignal(s runtimeapi.Signal) (unix.Signal, error) {
	name, ok := runtimeapi.Signal_name[int32(s)]
	if !ok {
		return 0, invalid("config.stop_signal", strconv.Itoa(int(s)), "is not a signal of the CRI")
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	if rest, ok := strings.CutPrefix(name, "SIGRTMINPLUS"); ok {
		name = "SIGRTMIN+" + rest
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAXMINUS"); ok {
		name = "SIGRTMAX-" + rest
	}
	n, ok := signalNumber(name)
	if !ok {
		return 0, invalid("config.stop_signal", name, "is not a signal of this host")
	}
	return n, nil
}

// imageSignal reads an image's StopSignal: a name with or without SIG, a number, or a real-time signal with an offset.
func imageSignal(s string) (unix.Signal, error) {
	name := strings.ToUpper(s)
	if digits(name) {
		if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= sigRTMax {
			return unix.Signal(n), nil
		}
	} else {
		if !strings.HasPrefix(name, "SIG") {
			name = "SIG" + name
		}
		if n, ok := signalNumber(name); ok {
			return n, nil
		}
	}
	return 0, invalid("image config StopSignal", s, "must be a signal's name or number")
}

func signalNumber(name string) (unix.Signal, bool) {
	if a, ok := aliases[name]; ok {
		name = a
	}
	for _, base := range []struct {
		prefix string
		from   int
		sign   int
	}{{"SIGRTMIN", sigRTMin, 1}, {"SIGRTMAX", sigRTMax, -1}} {
		rest, ok := strings.CutPrefix(name, base.prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			mark := map[int]byte{1: '+', -1: '-'}[base.sign]
			n, err := strconv.Atoi(rest[1:])
			if rest[0] != mark || !digits(rest[1:]) || err != nil || n > sigRTMax-sigRTMin {
				return 0, false
			}
			offset = n
		}
		return unix.Signal(base.from + base.sign*offset), true
	}
	n := unix.SignalNum(name)
	return n, n != 0
}
