package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/images"
)

const nginxConfig = `worker_processes 1;
error_log /dev/stderr;
pid /var/run/nginx.pid;
user root;
events { worker_connections 64; }
http {
	access_log /dev/stdout;
	server { listen %d; location / { root /usr/share/nginx/html; index index.html; } }
}
`

// set is the images under their public names. The first error sticks.
type set struct {
	registry *registrytest.Registry
	base     registrytest.Layer
	err      error
}

// programs are those that images are made of, by their names in a folder.
const (
	busyboxName = "busybox"
	nginxName   = "nginx"
	probeName   = "probe"
)

// collect puts the programs into a folder: of Debian's packages, and of this tree.
func collect(dir string) error {
	busybox, err := program(dir, "busybox", "bin/busybox")
	if err != nil {
		return err
	}
	nginx, err := program(dir, "nginx", "usr/sbin/nginx")
	if err != nil {
		return err
	}
	for name, from := range map[string]string{busyboxName: busybox, nginxName: nginx} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o755)
		}
		if err != nil {
			return fmt.Errorf("copy program: %w", err)
		}
	}
	_, err = berthd.Build(dir, "./test/probe")
	return err
}

// serve makes every image that the specs pull, of the programs in a folder, and serves them under the public repositories' paths.
func serve(dir string) (*registrytest.Registry, error) {
	registry, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		return nil, err
	}
	busybox := filepath.Join(dir, busyboxName)
	s := &set{registry: registry}
	s.base = s.shell(busybox, images.Passwd, images.Group)
	s.programs(filepath.Join(dir, nginxName), filepath.Join(dir, probeName))
	s.references(busybox)
	if s.err != nil {
		registry.Close()
		return nil, s.err
	}
	return registry, nil
}

// program finds a program of a Debian package, without installing the package: that would replace busybox-static and start nginx.
func program(dir, name, path string) (string, error) {
	if _, err := os.Stat("/" + path); err == nil && name != "busybox" {
		return "/" + path, nil
	}
	// The shell of busybox-static runs its own ls and not /bin/ls, so a masked /bin/ls would not show.
	script := fmt.Sprintf("cd %q && { apt-get download -qq %s 2>/dev/null || { apt-get update -qq && apt-get download -qq %s; }; } && dpkg -x %s_*.deb %s.d", dir, name, name, name, name)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return "", fmt.Errorf("get package %s: %w\n%s", name, err, out)
	}
	return filepath.Join(dir, name+".d", path), nil
}

// shell is the base layer, with the tools that Debian's busybox lacks.
func (s *set) shell(busybox, passwd, group string) registrytest.Layer {
	b := images.ShellWith(busybox, passwd, group)
	for _, tool := range []string{"pgrep", "ipcs", "ipcmk"} {
		b.Program("bin/"+tool, "/usr/bin/"+tool)
	}
	return s.layer(b)
}

// layer ends a layer.
func (s *set) layer(b *images.Builder) registrytest.Layer {
	layer, err := b.Layer()
	if err != nil && s.err == nil {
		s.err = err
	}
	return layer
}

// push makes an image of the base layer, or of others, for each tag, behind an index as the public ones are.
func (s *set) push(repo string, config ocispec.ImageConfig, layers []registrytest.Layer, tags ...string) {
	if config.Env == nil {
		config.Env = []string{images.Path}
	}
	if len(tags) == 0 {
		tags = []string{"latest"}
	}
	for _, tag := range tags {
		if s.err == nil {
			_, _, s.err = s.registry.PushIndex(repo, tag, registrytest.OCI, registrytest.Image{Config: config, Layers: layers})
		}
	}
}

// on is the base layer and one more.
func (s *set) on(fill func(b *images.Builder)) []registrytest.Layer {
	b := images.NewBuilder()
	fill(b)
	return []registrytest.Layer{s.base, s.layer(b)}
}

// programs are the images that specs run.
func (s *set) programs(nginx, probe string) {
	const e2e, staging = "e2e-test-images/", "k8s-staging-cri-tools/"
	sh := ocispec.ImageConfig{Cmd: []string{"sh"}}
	s.push(e2e+"busybox", sh, []registrytest.Layer{s.base}, "1.29-2", "1.29-4", "1.36.1-1", "latest")
	web := func(port int) []registrytest.Layer {
		return s.on(func(b *images.Builder) {
			b.Program("usr/sbin/nginx", nginx).File("etc/nginx/nginx.conf", fmt.Sprintf(nginxConfig, port), 0o644).
				File("usr/share/nginx/html/index.html", "<h1>Welcome to nginx!</h1>\n", 0o644).
				Dir("var/lib/nginx", 0o755).Dir("var/log/nginx", 0o755).Dir("var/run", 0o755)
		})
	}
	server := ocispec.ImageConfig{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT", ExposedPorts: map[string]struct{}{"80/tcp": {}}}
	s.push(e2e+"nginx", server, web(80), "1.14-2", "1.14-4")
	s.push(staging+"hostnet-nginx-amd64", server, web(12003))
	s.push(e2e+"httpd", ocispec.ImageConfig{Cmd: []string{"sh", "-c", "echo httpd; exec httpd -f -v -p 80 -h /www"}},
		s.on(func(b *images.Builder) { b.File("www/index.html", "It works!\n", 0o644) }), "2.4.39-4")
	setuid := s.on(func(b *images.Builder) { b.Program("nnp", probe) })
	for i, f := range setuid[1].Files {
		if f.Name == "nnp" {
			setuid[1].Files[i].Mode = 0o4755
		}
	}
	s.push(e2e+"nonewprivs", ocispec.ImageConfig{Cmd: []string{"/nnp", "euid"}}, setuid, "1.3")
	pause := s.on(func(b *images.Builder) { b.Program("pause", probe) })[1:]
	s.push("pause", ocispec.ImageConfig{Entrypoint: []string{"/pause", "signals"}, User: "65535:65535"}, pause, "3.9", "3.10", "3.10.1", "3.10.2")
}

// references are the images whose names, tags and users specs look at.
func (s *set) references(busybox string) {
	const name = "k8s-staging-cri-tools/test-image-"
	sh := ocispec.ImageConfig{Cmd: []string{"sh"}}
	marked := func(text string) []registrytest.Layer {
		return s.on(func(b *images.Builder) { b.File("marker", text, 0o644) })
	}
	for _, kind := range []string{"latest", "digest", "1", "2", "3"} {
		s.push(name+kind, sh, marked(kind))
	}
	s.push(name+"tag", sh, marked("tag"), "test", "all")
	s.push(name+"tags", sh, marked("tags"), "1", "2", "3")
	for kind, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100"} {
		s.push(name+"user-"+kind, ocispec.ImageConfig{Cmd: []string{"sh"}, User: user}, []registrytest.Layer{s.base})
	}
	grouped := s.shell(busybox, images.Passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n",
		images.Group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
	s.push(name+"predefined-group", ocispec.ImageConfig{Cmd: []string{"sh"}, User: "1000"}, []registrytest.Layer{grouped})
}
