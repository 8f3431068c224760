package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/wait"
)

// fetch gets a page, or an error within a second.
func fetch(address string) (string, error) {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// wantPage polls, since a server may still be starting.
func wantPage(d *harness.Daemon, address, want string) {
	d.T.Helper()
	var got string
	var err error
	if !wait.Until(harness.Patience, 10*time.Millisecond, func() bool {
		got, err = fetch(address)
		return err == nil && strings.HasPrefix(got, want)
	}) {
		d.T.Errorf("page of %s = %q, %v, want %q", address, got, err, want)
	}
}

func server(d *harness.Daemon, name string) *runtimeapi.ContainerConfig {
	return d.Container(name, []string{"probe", "serve", ":80", "page of " + name})
}

func TestAddresses(t *testing.T) {
	d := harness.Start(t)
	a, b := d.RunPod(d.Pod("a")), d.RunPod(d.Pod("b"))
	for _, p := range []*harness.Pod{a, b} {
		ips := p.IPs()
		if len(ips) != 2 {
			t.Fatalf("addresses = %q, want one of each family", ips)
		}
		v4, v6 := netip.MustParseAddr(ips[0]), netip.MustParseAddr(ips[1])
		if !netip.MustParsePrefix(d.Subnet+".0/24").Contains(v4) || !v6.Is6() {
			t.Errorf("addresses = %q, want of %s and IPv6", ips, d.Subnet)
		}
	}
	if a.IPs()[0] == b.IPs()[0] || a.IPs()[1] == b.IPs()[1] {
		t.Errorf("two pods have the same address: %q %q", a.IPs(), b.IPs())
	}
	ca, cb := a.Run(server(d, "a")), b.Run(server(d, "b"))
	wantPage(d, a.IPs()[0]+":80", "page of a")
	wantPage(d, "["+a.IPs()[1]+"]:80", "page of a")
	for _, address := range []string{a.IPs()[0], "[" + a.IPs()[1] + "]"} {
		if got := cb.Sh("probe get http://" + address + "/"); !strings.HasPrefix(got, "page of a\nfrom ") || strings.Contains(got, d.Subnet+".1\n") {
			t.Errorf("from pod to pod by %s: %q", address, got)
		}
	}
	if got := ca.Sh("probe get http://127.0.0.1/"); !strings.HasPrefix(got, "page of a") {
		t.Errorf("by loopback: %q", got)
	}
	if got := ca.Sh("probe get 'http://[::1]/'"); !strings.HasPrefix(got, "page of a") {
		t.Errorf("by IPv6 loopback: %q", got)
	}
	if got := ca.Sh("ls /sys/class/net | tr '\\n' ' '"); !strings.Contains(got, "eth0") || !strings.Contains(got, "lo") {
		t.Errorf("links = %q, want eth0 and lo", got)
	}
	// Out of the pod, through the host.
	l, err := net.Listen("tcp4", d.Subnet+".1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) }))
	if got := ca.Sh("probe get http://" + l.Addr().String()); !strings.HasPrefix(got, a.IPs()[0]+":") {
		t.Errorf("the host sees %q, want the pod's address %s", got, a.IPs()[0])
	}
	d.Check()
	address := a.IPs()[0]
	a.Stop()
	d.Check()
	if s := a.Status(); s.State != podNotReady {
		t.Errorf("state = %s", s.State)
	}
	if _, err := fetch(address + ":80"); err == nil {
		t.Error("a stopped pod answers")
	}
}

// The primary address is of the family that the configuration prefers, in the status and in /etc/hosts.
func TestPrimaryAddress(t *testing.T) {
	for pref, family := range map[string]string{"ipv6": "6", "ipv4": "4", "cni": "4"} {
		d := harness.Start(t, harness.WithConfig(fmt.Sprintf("ip_pref = %q", pref)))
		pod := d.RunPod(d.Pod("primary"))
		var families string
		for _, ip := range pod.IPs() {
			families += map[bool]string{true: "4", false: "6"}[netip.MustParseAddr(ip).Is4()]
		}
		if len(families) != 2 || families[:1] != family {
			t.Errorf("%s: addresses %q", pref, pod.IPs())
		}
		if got := pod.Run(d.Sleeper("c")).Sh("tail -n 2 /etc/hosts | cut -f1"); got != strings.Join(pod.IPs(), "\n") {
			t.Errorf("%s: /etc/hosts has %q, want %q", pref, got, pod.IPs())
		}
		before := pod.IPs()
		d.Restart()
		if after := pod.IPs(); strings.Join(after, " ") != strings.Join(before, " ") {
			t.Errorf("%s: after a restart %q, before %q", pref, after, before)
		}
		pod.Remove()
		d.Check()
	}
}

func TestHostPorts(t *testing.T) {
	d := harness.Start(t)
	tcp, udp, local := harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)
	pod := d.RunPod(d.Pod("ports", harness.HostPort(runtimeapi.Protocol_TCP, tcp, 80, ""), harness.HostPort(runtimeapi.Protocol_UDP, udp, 53, ""),
		harness.HostPort(runtimeapi.Protocol_TCP, local, 80, "127.0.0.1"), harness.HostPort(runtimeapi.Protocol_TCP, 0, 8080, "")))
	pod.Run(server(d, "web"))
	pod.Run(d.Container("echo", []string{"probe", "udp", ":53"}))
	other := d.RunPod(d.Pod("other")).Run(d.Sleeper("c"))
	host := hostAddress(t)
	wantPage(d, pod.IPs()[0]+":80", "page of web")
	for _, address := range []string{"127.0.0.1", "localhost", host, d.Subnet + ".1"} {
		wantPage(d, fmt.Sprintf("%s:%d", address, tcp), "page of web")
	}
	wantPage(d, fmt.Sprintf("127.0.0.1:%d", local), "page of web")
	if got, err := fetch(fmt.Sprintf("%s:%d", host, local)); err == nil {
		t.Errorf("a port of 127.0.0.1 answers at %s: %q", host, got)
	}
	if got := other.Sh(fmt.Sprintf("probe get http://%s:%d/", host, tcp)); !strings.HasPrefix(got, "page of web") {
		t.Errorf("from another pod by host port: %q", got)
	}
	hairpin := pod.Run(d.Sleeper("hairpin"))
	if got := hairpin.Sh(fmt.Sprintf("probe get http://%s:%d/", host, tcp)); !strings.HasPrefix(got, "page of web") {
		t.Errorf("from the pod itself by host port: %q", got)
	}
	for _, address := range []string{"127.0.0.1", host} {
		d.Eventually(harness.Timeout, "UDP by "+address, func() bool { // the server may still be starting
			conn, err := net.Dial("udp", net.JoinHostPort(address, fmt.Sprint(udp)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(3 * time.Second))
			buf := make([]byte, 16)
			conn.Write([]byte("ping"))
			n, _ := conn.Read(buf)
			return string(buf[:n]) == "ping"
		})
	}
	// A port is of one pod, until it stops.
	if _, err := d.TryRunPod(d.Pod("thief", harness.HostPort(runtimeapi.Protocol_TCP, tcp, 80, ""))); err == nil {
		t.Error("two pods have the same host port")
	}
	d.Check()
	d.Restart()
	wantPage(d, fmt.Sprintf("127.0.0.1:%d", tcp), "page of web")
	pod.Stop()
	if got, err := fetch(fmt.Sprintf("127.0.0.1:%d", tcp)); err == nil {
		t.Errorf("the port of a stopped pod answers: %q", got)
	}
	heir := d.RunPod(d.Pod("heir", harness.HostPort(runtimeapi.Protocol_TCP, tcp, 80, "")))
	heir.Run(server(d, "heir"))
	wantPage(d, fmt.Sprintf("127.0.0.1:%d", tcp), "page of heir")
	pod.Remove()
	heir.Remove()
	other.Pod.Remove()
	d.AsBefore()
}

// hostAddress is an IPv4 address of the host that is not loopback; hosts without a network have none.
func hostAddress(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() && !strings.HasPrefix(ip.IP.String(), "10.250.") {
			return ip.IP.String()
		}
	}
	return "127.0.0.1"
}

func TestHostPortsOfIPv6(t *testing.T) {
	d := harness.Start(t)
	port := harness.FreePort(t)
	pod := d.RunPod(d.Pod("ports6", harness.HostPort(runtimeapi.Protocol_TCP, port, 80, "::")))
	pod.Run(server(d, "web"))
	wantPage(d, "["+pod.IPs()[1]+"]:80", "page of web")
	gateway := fmt.Sprintf("fd00:be27:%s::1", strings.TrimPrefix(d.Subnet, "10.250."))
	wantPage(d, fmt.Sprintf("[%s]:%d", gateway, port), "page of web")
}

// TestAddressesRunOut: the error says so, and an address that was given back can be had again.
func TestAddressesRunOut(t *testing.T) {
	d := harness.Start(t)
	d.Stop()
	config := readRaw(t, d.Options().Config)
	d.Write(d.Options().Config, strings.Replace(config, d.Subnet+".0/24", d.Subnet+".0/29", 1))
	d.Start()
	var pods []*harness.Pod
	for i := range 8 {
		pod, err := d.TryRunPod(d.Pod(fmt.Sprintf("p%d", i)))
		if err != nil {
			if !strings.Contains(err.Error(), d.Subnet) {
				t.Errorf("%v does not name the range", err)
			}
			break
		}
		pods = append(pods, pod)
	}
	if len(pods) != 5 { // of 8: network, gateway, broadcast
		t.Fatalf("%d pods got an address of a /29, want 5", len(pods))
	}
	d.Check()
	pods[2].Stop()
	d.Eventually(5*time.Second, "the address can be had again", func() bool {
		_, err := d.TryRunPod(d.Pod("again"))
		return err == nil
	})
	d.Check()
}

// fakePlugin is a CNI plugin in shell that writes down each call and gives addresses of its own.
const fakePlugin = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> %[1]s/calls
[ -e %[1]s/slow ] && sleep 0.3
[ -e %[1]s/hang ] && [ $CNI_COMMAND = ADD ] && sleep 1000
cat > %[1]s/stdin.$CNI_COMMAND
case $CNI_COMMAND in
ADD)
	[ -e %[1]s/fail ] && { echo '{"cniVersion":"1.0.0","code":11,"msg":"the fake plugin is told to fail"}'; exit 1; }
	[ -e %[1]s/garbage ] && { echo 'no JSON'; exit 0; }
	ip netns exec "$(basename "$CNI_NETNS")" ip link add "$CNI_IFNAME" type veth peer name fake-peer >/dev/null 2>&1
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.7/24","interface":0},{"address":"2001:db8::7/64","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
`

// plugin installs the fake plugin and its configuration, and returns a function that lists its calls.
func plugin(t testing.TB, d *harness.Daemon) (calls func() []string) {
	t.Helper()
	path := d.Write(d.CNIBin+"/fake", fmt.Sprintf(fakePlugin, d.Dir))
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(d.CNIConf+"/10-fake.conflist", `{"cniVersion":"1.0.0","name":"fakenet","plugins":[{"type":"fake","capabilities":{"bandwidth":true}}]}`)
	return func() []string {
		text, _ := os.ReadFile(d.Dir + "/calls")
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

func countCalls(calls []string, command, id string) (n int) {
	for _, c := range calls {
		if strings.HasPrefix(c, command+" "+id) {
			n++
		}
	}
	return n
}

func TestCNIPlugin(t *testing.T) {
	d := harness.Start(t)
	bridged := d.RunPod(d.Pod("bridged"))
	calls := plugin(t, d)
	// The folder is watched: the next pod uses what came, the pod that is there keeps what it has.
	var pod *harness.Pod
	d.Eventually(5*time.Second, "a pod gets its address from the plugin", func() bool {
		pod = d.RunPod(d.Pod("plugged", func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations["kubernetes.io/ingress-bandwidth"], c.Annotations["kubernetes.io/egress-bandwidth"] = "10M", "1M"
		}))
		if pod.IPs()[0] == "192.0.2.7" {
			return true
		}
		pod.Remove()
		return false
	})
	if got := strings.Join(pod.IPs(), " "); got != "192.0.2.7 2001:db8::7" {
		t.Errorf("addresses = %q", got)
	}
	if got := bridged.IPs()[0]; !strings.HasPrefix(got, d.Subnet) {
		t.Errorf("address of the first pod = %s", got)
	}
	// No plugin of the configuration brings the loopback up.
	if got := pod.Run(d.Sleeper("c")).Sh("cat /sys/class/net/lo/flags"); got != "0x9" {
		t.Errorf("flags of lo = %s, want 0x9: a loopback that is up", got)
	}
	stdin := readFile(t, d.Dir+"/stdin.ADD")
	if !strings.Contains(stdin, `"name":"fakenet"`) || !strings.Contains(stdin, `"ingressRate":10000000`) || !strings.Contains(stdin, `"egressRate":1000000`) {
		t.Errorf("the plugin got %s", stdin)
	}
	// The configuration goes: the pod is still taken away by the one that made it.
	if err := os.Remove(d.CNIConf + "/10-fake.conflist"); err != nil {
		t.Fatal(err)
	}
	d.Restart()
	if got := pod.IPs()[0]; got != "192.0.2.7" {
		t.Errorf("address after a restart = %s", got)
	}
	pod.Stop()
	if n := countCalls(calls(), "DEL", pod.ID); n != 1 {
		t.Errorf("%d DELs, want 1: %q", n, calls())
	}
	bridged.Stop()
}

// TestCNIFailureIsUndone: an ADD that failed is followed by DEL, the pod is not there, and the next call works.
func TestCNIFailureIsUndone(t *testing.T) {
	d := harness.Start(t)
	d.Stop()
	calls := plugin(t, d)
	d.Start()
	for _, how := range []string{"fail", "garbage"} {
		d.Write(d.Dir+"/"+how, "")
		_, err := d.TryRunPod(d.Pod("unlucky"))
		if err == nil {
			t.Fatalf("%s: the pod runs", how)
		}
		if how == "fail" && !strings.Contains(err.Error(), "the fake plugin is told to fail") {
			t.Errorf("%v does not carry the plugin's message", err)
		}
		os.Remove(d.Dir + "/" + how)
		d.AsBefore()
	}
	if add, del := countCalls(calls(), "ADD", ""), countCalls(calls(), "DEL", ""); add != 2 || del < 2 {
		t.Errorf("%d ADDs and %d DELs, want a DEL for each ADD", add, del)
	}
	d.RunPod(d.Pod("unlucky"))
}

func TestNetworkReady(t *testing.T) {
	d := harness.Start(t)
	networkReady := func() bool { return d.Status()["NetworkReady"].GetStatus() }
	ready := func() {
		t.Helper()
		d.Eventually(5*time.Second, "the network is ready", networkReady)
	}
	ready()
	broken := d.Write(d.CNIConf+"/00-broken.conflist", `{"cniVersion":`)
	d.Eventually(5*time.Second, "the network is not ready", func() bool { return !networkReady() })
	if c := d.Status()["NetworkReady"]; !strings.Contains(c.Message, "00-broken.conflist") || c.Reason == "" {
		t.Errorf("condition = %v, want one that names the file", c)
	}
	if _, err := d.TryRunPod(d.Pod("none")); err == nil || !strings.Contains(err.Error(), "00-broken.conflist") {
		t.Errorf("a pod with a broken configuration: %v", err)
	}
	d.AsBefore()
	d.Eventually(harness.Timeout, "a pod waits a while for a configuration that can be used", func() bool { // which may not be enough on a busy machine
		d.Write(broken, `{"cniVersion":`)
		d.Eventually(5*time.Second, "the network is not ready", func() bool { return !networkReady() })
		defer ready()
		removed := make(chan error, 1)
		time.AfterFunc(300*time.Millisecond, func() { removed <- os.Remove(broken) })
		pod, err := d.TryRunPod(d.Pod("patient"))
		if err := <-removed; err != nil {
			t.Fatal(err)
		}
		if err != nil {
			return false
		}
		pod.Remove()
		return true
	})
	missing := d.Write(d.CNIConf+"/00-missing.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}`)
	d.Eventually(5*time.Second, "a pod with a missing plugin is refused", func() bool {
		pod, err := d.TryRunPod(d.Pod("none"))
		if err == nil {
			pod.Remove()
			return false
		}
		return strings.Contains(err.Error(), "no-such-plugin")
	})
	d.AsBefore()
	os.Remove(missing)
	if err := os.RemoveAll(d.CNIConf); err != nil {
		t.Fatal(err)
	}
	ready()
	if err := os.Mkdir(d.CNIConf, 0o755); err != nil {
		t.Fatal(err)
	}
	plugin(t, d)
	d.Eventually(5*time.Second, "a folder that was made again is watched", func() bool {
		pod := d.RunPod(d.Pod("again"))
		defer pod.Remove()
		return pod.IPs()[0] == "192.0.2.7"
	})
}
