# berth: see README.md. Every target is one of `make help`. ARGS is handed to bench and test-critest.

GO      ?= go
# For the binaries and the tests alike, so that nothing is compiled twice. grpcnotrace leaves out gRPC's request traces, which nobody
# can see here: they bring in html/template, 3 MiB of every daemon.
export GOFLAGS += -trimpath -tags=grpcnotrace
BIN     := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED = 0

# Debian packages that the tests and the demonstration use besides Go; `make setup` installs those that are missing.
PACKAGES := busybox-static gcc libc6-dev libseccomp-dev nftables iproute2 procps util-linux e2fsprogs ca-certificates git runc

# For test-uml alone: a kernel that runs as a program, its modules' loader, the loader of AppArmor profiles, crun, which runs on
# cgroup v2 only, and what makes a small system whose init is systemd.
UML_PACKAGES := user-mode-linux kmod apparmor e2fsprogs runc crun debootstrap

# What both of the other runtimes are held to there.
UML_HANDLER := ^Test(Handlers|ExecTimeout|OutOfMemory|DefaultCgroup|SharedPIDNamespace|MonitorKilled|UpdateCreatedContainer|$\
	VolumesOfImages|ImageVolumeOutlivesItsImage|Capabilities|HostileMountTargets)$$

# What is run in User-Mode Linux besides its own tests: all that cgroup version 2, an old overlayfs and a full capability set may change.
UML_SUITES := ./test/uml ./oci/apparmor ./sandbox/cgroup ./oci/runtime/engine \
	'./test/integration=^Test(LifeOfAPod|ExitCodes|StopSignalAndGrace|TheWholeTreeEnds|ExecSync|ExecTimeout|LowerOOMScore|DefaultCgroup|SmallLimits|$\
	PidsLimitReached|OutOfMemory|TheMonitorIsOutside|UsersAndGroups|Capabilities|NoNewPrivileges|Privileged|Devices|Seccomp|NothingLeaks|$\
	RestartKeepsEverything|MonitorKilled|BadRecords|RunFolderGone|SharedPIDNamespace|Sysctls|HostileMountTargets|MountPropagation|DefaultMounts|$\
	UpdateRunning|UpdateMemory|UpdateCreated|StatsOfKnown|MetricsOf|StatusSays|VolumesOfImages|MountOptions|Hooks|StartContainerHook|CDIDevices)' \
	'BERTH_TEST_HANDLER=runc ./test/integration=$(UML_HANDLER)' 'BERTH_TEST_HANDLER=crun ./test/integration=$(UML_HANDLER)'

# What of critest is not run there: host ports by that kernel, and what no machine has.
UML_CRITEST := -focus . -skip public.image.with.digest|port.mapping.with.host.port|NRI

# What is run below a real systemd there.
UML_SYSTEMD := './test/integration=^Test(Systemd|CgroupParentsOf|DefaultCgroup|LifeOfAPod|OutOfMemory|MonitorKilled|SharedPIDNamespace|UpdateRunning|StatsOfKnown|SELinux)' \
	'BERTH_TEST_CANCELS=8 ./test/integration=^TestEveryCallGivenUp$$/(Run|Stop|Remove|Create|Start|Update)' \
	'./oci/runtime/engine=^TestLabel' \
	'BERTH_TEST_HANDLER=runc ./test/integration=^Test(SystemdDriver|SystemdRestarts|OutOfMemory)$$' \
	'BERTH_TEST_HANDLER=crun ./test/integration=^Test(SystemdDriver|SystemdRestarts|OutOfMemory)$$'

# Tests of images alone, which run no container: no handler changes them.
IMAGES := Pull|Mirrors|StackEquals|ImageFsInfo|RemovedWhileInUse

# What is not: races that take long and are the machine's own as well.
UML_SKIP := ^Test(BoundVolumesMissNoMount|CwdThroughDescriptors|SwappedVolumeLeadsNowhere)$$

UNIT = $(shell $(GO) list ./... | grep -v -E '/test/(integration|kubelet|uml)$$')

.PHONY: help build test test-unit test-integration test-uml test-kubelet test-critest test-critest-uml bench demo lint man setup clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build berthd, berth-monitor and berth into bin/ (static, no C)
	@mkdir -p $(BIN)
	$(GO) build -ldflags "$(LDFLAGS)" -o $(BIN)/ ./cmd/...

demo: build ## run a pod from a registry to a served page, on berthd's defaults (root)
	@hack/setup gcc libc6-dev || true # for the kernel's floor alone
	@BERTH_BIN=$(BIN) $(GO) run ./hack/demo

test: setup lint test-unit test-integration ## setup, lint, unit and integration tests (root)

test-unit: ## unit tests of all packages (root for those that touch the kernel)
	$(GO) test -count=1 -v -timeout 15m $(UNIT)

test-integration: build ## berthd, berth-monitor and the kernel, driven over the CRI; once more with runc (root)
	BERTH_BIN=$(BIN) $(GO) test -count=1 -v -timeout 30m ./test/integration
	BERTH_BIN=$(BIN) BERTH_TEST_HANDLER=runc BERTH_TEST_ROUNDS=10 $(GO) test -count=1 -v -timeout 20m -skip '$(IMAGES)' ./test/integration

test-uml: build ## cgroup v2, AppArmor, every capability, Linux 6.1 and systemd, in User-Mode Linux (root)
	@hack/setup busybox-static gcc libc6-dev $(UML_PACKAGES)
	BERTH_BIN=$(BIN) $(GO) run ./hack/uml -skip '$(UML_SKIP)' $(UML_SUITES)
	BERTH_BIN=$(BIN) $(GO) run ./hack/uml -systemd $(UML_SYSTEMD)

test-kubelet: build setup ## a real kubelet, compiled once for this machine, with pods of all kinds on berth (root)
	BERTH_BIN=$(BIN) $(GO) test -count=1 -v -timeout 14m ./test/kubelet

test-critest: build setup ## the CRI's conformance tests in five random orders; needs critest on PATH (root)
	BERTH_BIN=$(BIN) $(GO) run ./hack/critest $(ARGS)

test-critest-uml: build ## those tests on cgroup v2 and with AppArmor, with each handler, in User-Mode Linux; needs critest on PATH (root)
	@hack/setup busybox-static gcc libc6-dev $(UML_PACKAGES)
	BERTH_BIN=$(BIN) $(GO) run ./hack/uml -timeout 14m $(foreach more,-show -handler=runc -handler=crun,'./hack/critest -seeds 1 $(UML_CRITEST) $(more)')

bench: build setup ## latencies beside the kernel's own floor, crowds, memory, pulls; other runtimes beside berth (root)
	@BERTH_BIN=$(BIN) $(GO) run ./hack/bench $(ARGS)

lint: build ## budgets, import order, formats, vet, manual pages, a build for arm64
	$(GO) run ./hack/lint -bin $(BIN)

man: build ## write the configuration's keys into their manual page
	$(GO) run ./hack/lint -bin $(BIN) -write

setup: ## install the Debian packages that are missing (root)
	@hack/setup $(PACKAGES)

clean: ## remove bin/
	rm -rf $(BIN)
