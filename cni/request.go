package cni

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
)

const (
	defaultIfName = "eth0"
	maxValue      = 253 // bytes of a pod's name, namespace or UID
	maxPorts      = 4096

	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
	minRate           = 1_000 // bits a second, the kubelet's limits
	maxRate           = 1_000_000_000_000_000
	unlimitedBurst    = math.MaxInt32 // bits: what containerd passes
)

// invalid returns an ErrInvalid that names field, value and rule.
func invalid(field string, value any, rule string) error {
	return fmt.Errorf("%w: %s %q %s", ErrInvalid, field, fmt.Sprint(value), rule)
}

// normalize checks req and returns it with defaults filled in and without mappings that map nothing.
func (req Request) normalize() (Request, error) {
	if err := utils.ValidateContainerID(req.SandboxID); err != nil || len(req.SandboxID) > 128 {
		return req, invalid("sandbox ID", req.SandboxID, "is not a CNI container ID")
	}
	if req.IfName == "" {
		req.IfName = defaultIfName
	}
	if err := utils.ValidateInterfaceName(req.IfName); err != nil {
		return req, invalid("interface name", req.IfName, err.Msg)
	}
	if !filepath.IsAbs(req.NetNS) || filepath.Clean(req.NetNS) != req.NetNS || strings.ContainsRune(req.NetNS, 0) {
		return req, invalid("network namespace", req.NetNS, "is not a clean absolute path")
	}
	for field, value := range map[string]string{"pod namespace": req.Namespace, "pod name": req.Name, "pod UID": req.UID} {
		// These go into CNI_ARGS, where ; and = separate.
		if len(value) > maxValue || strings.ContainsAny(value, ";=") || strings.ContainsFunc(value, unicode.IsControl) {
			return req, invalid(field, value, "has a control character, ';' or '=', or is longer than 253 bytes")
		}
	}
	ports, err := normalizePorts(req.PortMappings)
	if err != nil {
		return req, err
	}
	req.PortMappings = ports
	if req.Bandwidth == nil {
		if req.Bandwidth, err = bandwidthOf(req.Annotations); err != nil {
			return req, err
		}
	}
	return req, nil
}

func normalizePorts(list []PortMapping) ([]PortMapping, error) {
	if len(list) > maxPorts {
		return nil, invalid("number of host ports", len(list), "is above 4096")
	}
	var ports []PortMapping
	seen := make(map[PortMapping]bool, len(list))
	for _, p := range list {
		if p.HostPort == 0 {
			continue
		}
		p.Protocol = strings.ToLower(p.Protocol)
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if protocolNumber(p.Protocol) == 0 {
			return nil, invalid("protocol", p.Protocol, "of a host port is not tcp, udp or sctp")
		}
		if p.ContainerPort == 0 {
			return nil, invalid("container port", p.ContainerPort, "of a host port must be 1 to 65535")
		}
		if p.HostIP.Zone() != "" {
			return nil, invalid("host IP", p.HostIP, "of a host port has a zone")
		}
		p.HostIP = p.HostIP.Unmap()
		key := p
		key.ContainerPort = 0
		if seen[key] {
			return nil, invalid("host port", strconv.Itoa(int(p.HostPort))+"/"+p.Protocol, "is asked for twice")
		}
		seen[key] = true
		ports = append(ports, p)
	}
	return ports, nil
}

func protocolNumber(name string) uint8 {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

// bandwidthOf reads the annotations that the kubelet documents for bandwidth; nil when there are none.
func bandwidthOf(annotations map[string]string) (*Bandwidth, error) {
	var b Bandwidth
	for key, field := range map[string]*uint64{ingressAnnotation: &b.IngressRate, egressAnnotation: &b.EgressRate} {
		text, ok := annotations[key]
		if !ok {
			continue
		}
		rate, ok := quantity(text)
		if !ok || rate < minRate || rate > maxRate {
			return nil, invalid("annotation "+key, text, "is not a quantity from 1k to 1P")
		}
		*field = rate
	}
	if b == (Bandwidth{}) {
		return nil, nil
	}
	if b.IngressRate > 0 {
		b.IngressBurst = unlimitedBurst
	}
	if b.EgressRate > 0 {
		b.EgressBurst = unlimitedBurst
	}
	return &b, nil
}

// quantity reads a Kubernetes quantity that is not below 1: digits, a fraction, and a suffix.
func quantity(s string) (uint64, bool) {
	number := strings.TrimRightFunc(s, unicode.IsLetter)
	factor, ok := map[string]float64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50,
	}[s[len(number):]]
	if !ok || number == "" || strings.Trim(number, "0123456789.") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f*factor >= math.MaxInt64 {
		return 0, false
	}
	return uint64(f * factor), true
}

// unspecifiedFor reports whether ip means every address of the family of a.
func unspecifiedFor(ip, a netip.Addr) bool {
	return !ip.IsValid() || ip.IsUnspecified() && ip.Is4() == a.Is4()
}
