package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var errUsage = errors.New("wrong arguments, see test/probe/doc.go")

// commands by name, with the least number of arguments.
var commands = map[string]struct {
	args int
	run  func(args []string) error
}{
	"serve":   {2, serve},
	"health":  {2, health},
	"udp":     {1, udp},
	"echo":    {1, echo},
	"get":     {1, get},
	"lines":   {2, lines},
	"bytes":   {2, writeBytes},
	"eat":     {1, eat},
	"fork":    {1, fork},
	"stay":    {0, stay},
	"ignore":  {0, ignore},
	"signals": {0, signals},
	"exit":    {1, exit},
	"call":    {1, call},
	"orphan":  {0, orphan},
	"reach":   {1, reach},
	"euid":    {0, func([]string) error { fmt.Printf("Effective uid: %d\n", os.Geteuid()); return nil }},
	"stdin":   {0, func([]string) error { _, err := io.Copy(os.Stdout, os.Stdin); return err }},
}

func main() {
	if len(os.Args) < 2 {
		fail(errUsage)
	}
	c, ok := commands[os.Args[1]]
	if !ok || len(os.Args)-2 < c.args {
		fail(errUsage)
	}
	if err := c.run(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "probe:", err)
	if errors.Is(err, errUsage) {
		os.Exit(64)
	}
	os.Exit(1)
}

func serve(args []string) error {
	return http.ListenAndServe(args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s\nfrom %s\n", args[1], host)
	}))
}

// health speaks HTTP/1 and HTTP/2 without TLS. A gRPC answer is one message (gRPC's PROTOCOL-HTTP2.md) whose field 1 is a
// grpc.health.v1 ServingStatus.
func health(args []string) error {
	const serving, notServing = 1, 2
	server := http.Server{Addr: args[0], Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := os.Stat(args[1])
		switch isRPC := r.Header.Get("Content-Type") == "application/grpc"; {
		case isRPC:
			status := byte(serving)
			if err != nil {
				status = notServing
			}
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, status})
			w.Header().Set("Grpc-Status", "0")
		case err != nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return server.ListenAndServe()
}

func echo(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

func udp(args []string) error {
	conn, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

func get(args []string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// lines keeps to the rate by the clock: a pause of the machine is made up for.
func lines(args []string) error {
	rate, err := strconv.Atoi(args[0])
	if err != nil || rate < 1 {
		return errUsage
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	tick := time.NewTicker(5 * time.Millisecond)
	start, n := time.Now(), 0
	var b strings.Builder
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		b.Reset()
		for due := int(time.Since(start).Seconds() * float64(rate)); n < due; n++ {
			fmt.Fprintf(&b, "%s %d\n", args[1], n)
		}
		if _, err := os.Stdout.WriteString(b.String()); err != nil {
			return err
		}
	}
}

func writeBytes(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil || len(args[1]) != 1 {
		return errUsage
	}
	chunk := []byte(strings.Repeat(args[1], 64<<10))
	for n > 0 {
		w, err := os.Stdout.Write(chunk[:min(n, len(chunk))])
		if err != nil {
			return err
		}
		n -= w
	}
	return nil
}

func eat(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return errUsage
	}
	debug.SetGCPercent(-1)
	var all [][]byte
	for range n {
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Printf("ate %d MiB\n", len(all))
	time.Sleep(time.Hour)
	return nil
}

func fork(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return errUsage
	}
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	started := 0
	for range n {
		cmd := exec.Command("/proc/self/exe", "stay")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Println("fork:", err)
			break
		}
		started++
	}
	fmt.Printf("forked %d\n", started)
	time.Sleep(time.Hour)
	return nil
}

// stay is a child of fork: with a session and a child of its own it is not reached through its parent.
func stay([]string) error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	unix.Setsid()
	if os.Getenv("PROBE_LEAF") == "" {
		cmd := exec.Command("/proc/self/exe", "stay")
		cmd.Env = []string{"PROBE_LEAF=1"}
		if err := cmd.Start(); err != nil {
			fmt.Println("fork:", err)
		}
	}
	time.Sleep(time.Hour)
	return nil
}

func ignore([]string) error {
	c := make(chan os.Signal, 16)
	signal.Notify(c)
	fmt.Println("ready")
	for s := range c {
		if sig, ok := s.(unix.Signal); ok && sig != unix.SIGURG {
			fmt.Println(unix.SignalName(sig))
		}
	}
	return nil
}

func signals([]string) error {
	c := make(chan os.Signal, 16)
	signal.Notify(c)
	fmt.Println("ready")
	for s := range c {
		if sig, ok := s.(unix.Signal); ok && sig != unix.SIGURG && sig != unix.SIGCHLD {
			fmt.Println(unix.SignalName(sig))
			return nil
		}
	}
	return nil
}

func exit(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return errUsage
	}
	if len(args) > 1 {
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return errUsage
		}
		time.Sleep(d)
	}
	os.Exit(code)
	return nil
}

// calls are system calls that a container may not be allowed to make.
var calls = map[string]func() error{
	"socket-alg":      func() error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) },
	"socket-vsock":    func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"socket-ping":     func() error { return socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP) },
	"socket-raw":      func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
	"unshare-user":    func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"unshare-mount":   func() error { return unix.Unshare(unix.CLONE_NEWNS) },
	"sethostname":     func() error { return unix.Sethostname([]byte("changed")) },
	"chroot":          func() error { return unix.Chroot("/") },
	"mount":           func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
	"mknod":           func() error { return unix.Mknod("/tmp/probe-null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	"reboot":          func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) },
	"keyctl":          func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err },
	"io_uring":        func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0) },
	"userfaultfd":     func() error { return raw(unix.SYS_USERFAULTFD, 1, 0) },
	"bpf":             func() error { return raw(unix.SYS_BPF, 0, 0) },
	"setns":           func() error { return raw(unix.SYS_SETNS, 0, unix.CLONE_NEWNET) },
	"personality":     func() error { return raw(unix.SYS_PERSONALITY, 0xffffffff, 0) },
	"getcpu":          func() error { return raw(unix.SYS_GETCPU, 0, 0) },
	"setuid-root":     func() error { return unix.Setuid(0) },
	"write-proc":      func() error { return open("/proc/sys/kernel/shm_rmid_forced", unix.O_WRONLY) },
	"write-sys":       func() error { return open("/sys/kernel/mm/transparent_hugepage/enabled", unix.O_WRONLY) },
	"write-cgroup":    func() error { return unix.Mkdir("/sys/fs/cgroup/pids/probe", 0o755) },
	"read-kcore":      func() error { return open("/proc/kcore", unix.O_RDONLY) },
	"write-core":      func() error { return open("/proc/sys/kernel/core_pattern", unix.O_WRONLY) },
	"write-sysrq":     func() error { return open("/proc/sysrq-trigger", unix.O_WRONLY) },
	"write-release":   func() error { return open("/sys/fs/cgroup/memory/release_agent", unix.O_WRONLY) },
	"mount-proc":      mountProc,
	"set-caps":        setCaps,
	"open-zero":       func() error { return open("/dev/zero", unix.O_RDWR) },
	"open-kmsg":       func() error { return open("/dev/kmsg", unix.O_RDONLY) },
	"open-null-twice": func() error { return errors.Join(open("/dev/null", unix.O_RDWR), open("/dev/full", unix.O_RDONLY)) },
}

func call(args []string) error {
	f, ok := calls[args[0]]
	if !ok {
		return errUsage
	}
	fmt.Println(outcome(f()))
	return nil
}

func socket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func raw(nr, a, b uintptr) error {
	if _, _, errno := unix.RawSyscall(nr, a, b, 0); errno != 0 {
		return errno
	}
	return nil
}

func orphan([]string) error {
	cmd := exec.Command("/proc/self/exe", "exit", "0", "1m")
	cmd.Stdout = os.Stdout
	return cmd.Start()
}
