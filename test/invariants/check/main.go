// Command check holds the host against the records and the CRI lists of a running berthd and prints what differs, a line each:
//
//	go run ./test/invariants/check [--root DIR] [--state DIR] [--socket PATH] [--bridge NAME]
//
// The exit status is 0 if nothing differs for invariants.Grace at most, 1 if something does, 2 if it could not look.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/invariants"
)

func main() {
	var d invariants.Daemon
	flag.StringVar(&d.Root, "root", "/var/lib/berth", "berthd's root")
	flag.StringVar(&d.State, "state", "/run/berth", "berthd's state")
	flag.StringVar(&d.Bridge, "bridge", "berth0", "name of the built-in bridge")
	socket := flag.String("socket", "", "CRI socket (default STATE/berth.sock)")
	flag.Parse()
	if *socket == "" {
		*socket = filepath.Join(d.State, "berth.sock")
	}
	lines, err := look(d, *socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(2)
	}
	for _, line := range lines {
		fmt.Println(line)
	}
	if len(lines) > 0 {
		os.Exit(1)
	}
	fmt.Println("CRI lists, records and host agree")
}

func look(d invariants.Daemon, socket string) ([]string, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	rt := runtimeapi.NewRuntimeServiceClient(conn)
	return invariants.Settle(context.Background(), func(ctx context.Context) ([]string, error) { return invariants.Hold(ctx, d, rt) })
}
