// Package uml_test holds berth against a host with cgroup version 2 alone, AppArmor, every capability, and a kernel of 2022.
//
// It runs in the User-Mode Linux that hack/uml boots (make test-uml), and nowhere else: there is much that it changes on its host. What that kernel
// lacks (cpuset, pressure files, NAT by nftables, hugepages) is tested by package integration on the machine itself.
package uml_test
