package kubelet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/berthd/berth/test/kubelet"
)

// scenario is a pod and what must become of it.
type scenario struct {
	name, spec string
	check      func(*watch) // while it runs
	gone       func(*watch) // when it has been removed; may be nil
}

// imageVolumes is a pod with an image for a volume: all of it, a folder and a file of it.
const imageVolumes = `
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "/all/bin/busybox echo volume; $WAIT"]
  volumeMounts:
  - {name: image, mountPath: /all, mountPropagation: HostToContainer}
  - {name: image, mountPath: /deep/er/etc, subPath: etc, readOnly: true}
  - {name: image, mountPath: /file, subPath: etc/group}
volumes: [{name: image, image: {reference: $IMAGE, pullPolicy: IfNotPresent}}]
`

func scenarios() []scenario {
	return []scenario{
		{"order", `
initContainers:
- {name: first, image: $IMAGE, command: [sh, -c, "echo first >> /shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
- {name: second, image: $IMAGE, command: [sh, -c, "grep -q first /shared/order && echo second >> /shared/order"],
   volumeMounts: [{name: shared, mountPath: /shared}]}
- name: sidecar
  image: $IMAGE
  restartPolicy: Always
  command: [sh, -c, "trap 'echo sidecar >> /out/ends; exit 0' TERM; echo sidecar >> /shared/order; sleep 1; touch /shared/up; sleep 3600 & wait"]
  startupProbe: {exec: {command: [cat, /shared/up]}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
  volumeMounts: [{name: shared, mountPath: /shared}, {name: out, mountPath: /out}]
- {name: third, image: $IMAGE, command: [sh, -c, "cat /shared/up && echo third >> /shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "trap 'sleep 1; echo main >> /out/ends; exit 0' TERM; cat /shared/order; sleep 3600 & wait"]
  volumeMounts: [{name: shared, mountPath: /shared}, {name: out, mountPath: /out}]
volumes:
- {name: shared, emptyDir: {}}
- {name: out, hostPath: {path: $DIR, type: Directory}}
`, checkOrder, func(w *watch) {
			if got := w.file("ends", "sidecar"); got != "main\nsidecar\n" {
				w.Errorf("containers ended in the order %q, want the sidecar last", got)
			}
		}},

		{"probes", `
containers:
- name: exec
  image: $IMAGE
  command: [sh, -c, "sleep 1; touch /tmp/up; $WAIT"]
  startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
  livenessProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 10}
  readinessProbe: {exec: {command: [cat, /out/exec]}, periodSeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: out, mountPath: /out}]
- name: http
  image: $IMAGE
  command: [sh, -c, "sleep 1; probe health :80 /out/http & probe health :81 /bin & $WAIT"]
  ports: [{name: web, containerPort: 80}, {name: alive, containerPort: 81}]
  startupProbe: {httpGet: {path: /, port: alive}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
  livenessProbe: {httpGet: {path: /, port: alive}, periodSeconds: 1, timeoutSeconds: 10}
  readinessProbe: {httpGet: {path: /, port: web}, periodSeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: out, mountPath: /out}]
- name: tcp
  image: $IMAGE
  command: [sh, -c, "sleep 1; probe health :90 /bin & while :; do if [ -e /out/tcp ]; then probe health :91 /bin & while [ -e /out/tcp ]; do sleep 0.1; done; kill $!; wait $!; fi; sleep 0.1; done"]
  startupProbe: {tcpSocket: {port: 90}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
  livenessProbe: {tcpSocket: {port: 90}, periodSeconds: 1, timeoutSeconds: 10}
  readinessProbe: {tcpSocket: {port: 91}, periodSeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: out, mountPath: /out}]
- name: grpc
  image: $IMAGE
  command: [sh, -c, "sleep 1; probe health :95 /out/grpc & probe health :96 /bin & $WAIT"]
  startupProbe: {grpc: {port: 96}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
  livenessProbe: {grpc: {port: 96}, periodSeconds: 1, timeoutSeconds: 10}
  readinessProbe: {grpc: {port: 95}, periodSeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: out, mountPath: /out}]
terminationGracePeriodSeconds: 1
volumes: [{name: out, hostPath: {path: $DIR}}]
`, checkProbes, nil},

		{"unwell", `
# Each container is ill in its first life and well in its second.
containers:
- name: startup
  image: $IMAGE
  command: [sh, -c, "trap 'exit 9' TERM; [ -e /once/startup ] && touch /tmp/ok; touch /once/startup; sleep 3600 & wait"]
  startupProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 3, timeoutSeconds: 10}
  volumeMounts: [{name: once, mountPath: /once}]
- name: exec
  image: $IMAGE
  command: [sh, -c, "trap 'exit 9' TERM; [ -e /once/exec ] && touch /tmp/ok; touch /once/exec; sleep 3600 & wait"]
  livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, initialDelaySeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: once, mountPath: /once}]
- name: http
  image: $IMAGE
  command: [sh, -c, "trap 'exit 9' TERM; probe health :80 /tmp/ok & [ -e /once/http ] && touch /tmp/ok; touch /once/http; wait"]
  livenessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, initialDelaySeconds: 1, timeoutSeconds: 10, failureThreshold: 10}
  volumeMounts: [{name: once, mountPath: /once}]
- name: tcp
  image: $IMAGE
  command: [sh, -c, "trap 'exit 9' TERM; if [ -e /once/tcp ]; then probe health :90 /bin & fi; touch /once/tcp; sleep 3600 & wait"]
  livenessProbe: {tcpSocket: {port: 90}, periodSeconds: 1, initialDelaySeconds: 1, timeoutSeconds: 10, failureThreshold: 10}
  volumeMounts: [{name: once, mountPath: /once}]
- name: grpc
  image: $IMAGE
  command: [sh, -c, "trap 'exit 9' TERM; probe health :95 /tmp/ok & [ -e /once/grpc ] && touch /tmp/ok; touch /once/grpc; wait"]
  livenessProbe: {grpc: {port: 95}, periodSeconds: 1, initialDelaySeconds: 1, timeoutSeconds: 10, failureThreshold: 10}
  volumeMounts: [{name: once, mountPath: /once}]
terminationGracePeriodSeconds: 10
volumes: [{name: once, emptyDir: {}}]
`, checkUnwell, nil},

		{"crash", `
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "echo x >> /count/lives; [ $(wc -l < /count/lives) -lt 4 ] && { echo life $(wc -l < /count/lives); exit 7; }; $WAIT"]
  volumeMounts: [{name: count, mountPath: /count}]
volumes: [{name: count, emptyDir: {}}]
`, func(w *watch) {
			p := w.until("running after three crashes", func(p kubelet.Pod) bool {
				c := p.Container("main")
				return c.RestartCount == 3 && c.State.Running != nil
			})
			end := p.Container("main").LastState.Ended
			if end == nil || end.ExitCode != 7 || end.Reason != "Error" {
				w.Errorf("last state = %+v, want exit code 7, reason Error", end)
			}
			if got := w.logs("main", "previous=true"); got != "life 3\n" {
				w.Errorf("log of the life before = %q, want that of the third", got)
			}
		}, nil},

		{"on-failure", `
restartPolicy: OnFailure
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "[ -e /count/x ] && { echo fine > /dev/termination-log; exit 0; }; touch /count/x; exit 3"]
  volumeMounts: [{name: count, mountPath: /count}]
volumes: [{name: count, emptyDir: {}}]
`, func(w *watch) {
			p := w.until("succeeded", func(p kubelet.Pod) bool { return p.Status.Phase == "Succeeded" })
			c := p.Container("main")
			if c.RestartCount != 1 || c.State.Ended == nil || c.State.Ended.Reason != "Completed" || c.State.Ended.Message != "fine\n" {
				w.Errorf("status = %+v %+v, want one restart, Completed, the message", c, c.State.Ended)
			}
		}, nil},

		{"failed", `
restartPolicy: Never
containers:
- {name: exit, image: $IMAGE, command: [sh, -c, "echo last words; exit 5"], terminationMessagePolicy: FallbackToLogsOnError}
- {name: memory, image: $IMAGE, command: [probe, eat, "256"], resources: {limits: {memory: 32Mi}}}
- {name: missing, image: $IMAGE, command: [/no/such/program]}
`, checkFailed, nil},

		{"volumes", `
initContainers:
- {name: fill, image: $IMAGE, command: [sh, -c, "mkdir -p /disk/sub && echo deep > /disk/sub/file"], volumeMounts: [{name: disk, mountPath: /disk}]}
containers:
- name: writer
  image: $IMAGE
  command: [sh, -c, "echo one > /disk/one; echo two > /memory/two; echo three > /host/three; echo four > /sub/four; $WAIT"]
  volumeMounts:
  - {name: disk, mountPath: /disk}
  - {name: memory, mountPath: /memory}
  - {name: host, mountPath: /host}
  - {name: host, mountPath: /sub, subPath: sub/folder}
- name: reader
  image: $IMAGE
  env:
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: WHERE, value: expanded}
  command: [sh, -c, "$WAIT"]
  volumeMounts:
  - {name: disk, mountPath: /disk, readOnly: true}
  - {name: memory, mountPath: /memory}
  - {name: host, mountPath: /host, readOnly: true}
  - {name: disk, mountPath: /etc/file, subPath: sub/file}
  - {name: host, mountPath: /expanded, subPathExpr: $(WHERE)/x}
  - {name: pod, mountPath: /pod}
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
- {name: host, hostPath: {path: $DIR/host, type: DirectoryOrCreate}}
- {name: pod, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
`, checkVolumes, nil},

		{"propagation", `
containers:
- name: mounter
  image: $IMAGE
  securityContext: {privileged: true}
  command: [sh, -c, "mkdir -p /v/m && mount -t tmpfs -o size=1m inner /v/m && echo seen > /v/m/file || exit 1; trap 'umount /v/m; exit 0' TERM; sleep 3600 & wait"]
  volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]
- name: follower
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]
volumes: [{name: v, emptyDir: {}}]
`, func(w *watch) {
			w.ready()
			until(w.T, "the mount of one container is seen in the other", func() (any, bool) {
				out, err := w.k.Run(w.Context(), w.name, "follower", "cat", "/v/m/file")
				return fmt.Sprint(out, err), out == "seen\n"
			})
		}, nil},

		{"resources", `
containers:
- name: limited
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 250m, memory: 48Mi}}
- name: asked
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  resources: {requests: {cpu: 50m, memory: 8Mi}}
`, checkResources, nil},

		{"host-network", `
hostNetwork: true
containers:
- name: main
  image: $IMAGE
  command: [probe, health, ":$HOSTNETWORK", /bin]
  ports: [{containerPort: $HOSTNETWORK}]
  readinessProbe: {httpGet: {path: /, port: $HOSTNETWORK}, periodSeconds: 1, timeoutSeconds: 10}
`, func(w *watch) {
			w.ready()
			if got := w.run("main", "cat", "/proc/net/dev"); !strings.Contains(got, w.d.Options().Bridge) {
				w.Errorf("the host's bridge is not among the links\n%s", got)
			}
			if err := fetch("http://127.0.0.1:" + w.ports["$HOSTNETWORK"]); err != nil {
				w.Error(err)
			}
		}, nil},

		{"host-port", `
containers:
- name: main
  image: $IMAGE
  command: [probe, serve, ":80", welcome]
  ports: [{containerPort: 80, hostPort: $HOSTPORT}]
  readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}
`, func(w *watch) {
			w.ready()
			until(w.T, "the page by the host's port", func() (any, bool) {
				err := fetch("http://127.0.0.1:" + w.ports["$HOSTPORT"])
				return err, err == nil
			})
		}, nil},

		{"shared-pid", `
shareProcessNamespace: true
containers:
- {name: one, image: $IMAGE, command: [sleep, "7001"]}
- {name: two, image: $IMAGE, command: [sleep, "7002"]}
terminationGracePeriodSeconds: 1
`, func(w *watch) {
			w.ready()
			for _, c := range []string{"one", "two"} {
				got := w.run(c, "ps")
				if !strings.Contains(got, "sleep 7001") || !strings.Contains(got, "sleep 7002") {
					w.Errorf("container %s sees\n%s\nwant the processes of both", c, got)
				}
				if regexp.MustCompile(`(?m)^ *1 .*sleep`).MatchString(got) {
					w.Errorf("a container's process is the first of the shared namespace:\n%s", got)
				}
			}
		}, nil},

		{"hooks", `
containers:
- name: exec
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  lifecycle:
    postStart: {exec: {command: [sh, -c, "sleep 1; echo after > /out/start"]}}
    preStop: {exec: {command: [sh, -c, "sleep 1; echo before > /out/stop"]}}
  volumeMounts: [{name: out, mountPath: /out}]
- name: http
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  lifecycle:
    postStart: {httpGet: {host: 127.0.0.1, port: $HOOKS, path: /start}}
    preStop: {httpGet: {host: 127.0.0.1, port: $HOOKS, path: /stop}}
- name: sleep
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  lifecycle: {preStop: {sleep: {seconds: 1}}}
volumes: [{name: out, hostPath: {path: $DIR}}]
`, func(w *watch) {
			w.ready()
			w.file("start", "after")
			until(w.T, "the hook after the start was called", func() (any, bool) { return w.hooked("/start") })
			if _, err := os.Stat(filepath.Join(w.dir, "stop")); err == nil {
				w.Error("the hook before the end ran already")
			}
		}, func(w *watch) {
			w.file("stop", "before")
			until(w.T, "the hook before the end was called", func() (any, bool) { return w.hooked("/stop") })
		}},

		{"graceful", `
containers:
- name: polite
  image: $IMAGE
  command: [sh, -c, "trap 'echo asked >> /out/polite; sleep 3; echo ended >> /out/polite; exit 0' TERM; sleep 3600 & wait"]
  volumeMounts: [{name: out, mountPath: /out}]
- name: deaf
  image: $IMAGE
  command: [sh, -c, "trap 'echo asked >> /out/deaf' TERM; while :; do sleep 0.1; date +%s > /out/beat; done"]
  volumeMounts: [{name: out, mountPath: /out}]
terminationGracePeriodSeconds: 8
volumes: [{name: out, hostPath: {path: $DIR}}]
`, func(w *watch) { w.ready() }, func(w *watch) {
			if got := w.file("polite", "asked"); got != "asked\nended\n" {
				w.Errorf("the polite container did %q: want it asked once, and given the time that it needs", got)
			}
			if got := w.file("deaf", "asked"); got != "asked\n" {
				w.Errorf("the deaf container did %q: want it asked once", got)
			}
		}},

		{"logs", `
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "for i in 1 2 3 4 5; do echo out $i; done; while [ ! -e /out/1 ]; do sleep 0.1; done; echo err >&2; while [ ! -e /out/2 ]; do sleep 0.1; done; echo later; $WAIT"]
  volumeMounts: [{name: out, mountPath: /out}]
volumes: [{name: out, hostPath: {path: $DIR}}]
`, checkLogs, nil},

		{"user", `
securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000, supplementalGroups: [4000], seccompProfile: {type: RuntimeDefault}}
hostname: named
containers:
- name: main
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  volumeMounts: [{name: v, mountPath: /v}]
volumes: [{name: v, emptyDir: {}}]
`, func(w *watch) {
			w.ready()
			status := w.run("main", "cat", "/proc/1/status")
			for _, want := range []string{`Uid:\s1000\s`, `Gid:\s2000\s`, `CapBnd:\s0+\n`, `NoNewPrivs:\s1`, `Seccomp:\s2`} {
				if !regexp.MustCompile(want).MatchString(status) {
					w.Errorf("/proc/1/status does not match %s:\n%s", want, status)
				}
			}
			if got := w.run("main", "id", "-G"); got != "2000 3000 4000\n" {
				w.Errorf("groups = %q", got)
			}
			if got := w.run("main", "stat", "-c", "%g", "/v"); got != "3000\n" {
				w.Errorf("group of the volume = %q, want that of the pod's file systems", got)
			}
			if got := w.run("main", "hostname"); got != "named\n" {
				w.Errorf("hostname = %q", got)
			}
			if out, err := w.k.Run(w.Context(), w.name, "main", "touch", "/etc/x"); err == nil || !strings.Contains(err.Error(), "Read-only") {
				w.Errorf("write to the root: %q, %v", out, err)
			}
		}, nil},

		{"image-volume", imageVolumes, checkImageVolumes, nil},
		{"user-namespace-image", "hostUsers: false\n" + imageVolumes, checkImageVolumes, nil},

		{"user-namespace", `
hostUsers: false
securityContext: {fsGroup: 3000}
initContainers:
- {name: first, image: $IMAGE, command: [sh, -c, "echo first > /disk/first; echo init > /dev/termination-log"], volumeMounts: [{name: disk, mountPath: /disk}]}
containers:
- name: root
  image: $IMAGE
  command: [sh, -c, "probe health :80 /bin & echo x > /disk/root; echo x > /memory/root; echo x > /etc/made; $WAIT"]
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, timeoutSeconds: 10}
  livenessProbe: {exec: {command: [cat, /etc/made]}, periodSeconds: 1, initialDelaySeconds: 1, timeoutSeconds: 10}
  volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, {name: pod, mountPath: /pod}]
- name: user
  image: $IMAGE
  securityContext: {runAsUser: 1000, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  command: [sh, -c, "echo x > /disk/user; $WAIT"]
  volumeMounts: [{name: disk, mountPath: /disk}]
- name: unmasked
  image: $IMAGE
  securityContext: {procMount: Unmasked}
  command: [sh, -c, "$WAIT"]
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
- {name: pod, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
`, checkUserNamespace, nil},

		{"streams", `
containers:
- {name: shell, image: $IMAGE, command: [sh, -c, "$WAIT"]}
- {name: reader, image: $IMAGE, stdin: true, command: [sh, -c, "while read l; do echo got $l; done"]}
- name: server
  image: $IMAGE
  command: [probe, serve, "127.0.0.1:80", forwarded]
  readinessProbe: {exec: {command: [probe, get, "http://127.0.0.1/"]}, periodSeconds: 1, timeoutSeconds: 10}
terminationGracePeriodSeconds: 1
`, checkStreams, nil},

		{"counter", `
containers:
- name: lines
  image: $IMAGE
  command: [probe, lines, "50", tick]
- name: file
  image: $IMAGE
  command: [sh, -c, "trap 'exit 0' TERM; i=0; while :; do echo $i >> /out/count; i=$((i+1)); sleep 0.05; done"]
  volumeMounts: [{name: out, mountPath: /out}]
volumes: [{name: out, hostPath: {path: $DIR}}]
`, func(w *watch) { w.ready(); w.counted() }, func(w *watch) { w.counted() }},

		{"web", `
containers:
- name: server
  image: $IMAGE
  command: [probe, serve, ":80", page]
  readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}
- {name: client, image: $IMAGE, command: [sh, -c, "while ! probe get http://127.0.0.1/; do sleep 0.1; done; echo loopback; $WAIT"]}
`, func(w *watch) {
			p := w.ready()
			w.logged("client", "loopback")
			if err := fetch("http://" + p.Status.PodIP); err != nil {
				w.Error(err)
			}
		}, nil},
	}
}
