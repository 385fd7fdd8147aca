// Command csi-controller is a CSI controller for the tests, over the Linode API v4 (or a simulator of it), that behaves
// as Linode's own controller does where a volume recovery can notice: the same capabilities, the same codes and words.
//
// LINODE_URL and LINODE_TOKEN name the API and the token, as for Linode's driver.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

func main() {
	if err := run(); err != nil {
		log.Fatalf("csi-controller: %v", err)
	}
}

func run() error {
	endpoint := flag.String("endpoint", "", "the Unix socket to serve CSI on, as a path or unix:// URL (required)")
	driver := flag.String("driver-name", "linodebs.csi.linode.com", "the CSI driver's name")
	poll := flag.Duration("poll-interval", 500*time.Millisecond, "time between two looks at a volume that attaches or detaches")
	controlAddress := flag.String("control-address", "", "loopback address of the test's control endpoint; port 0 lets the kernel choose; empty for none")
	controlFile := flag.String("control-address-file", "", "file that receives the control endpoint's address once everything is served")
	initial := flag.String("faults", "{}", `faults from the start, as PUT /faults takes them, e.g. {"unpublish":"fail"}`)
	flag.Parse()

	socket := strings.TrimPrefix(*endpoint, "unix://")
	if socket == "" {
		return errors.New("--endpoint is required")
	}
	if *poll <= 0 {
		return errors.New("--poll-interval must be positive")
	}
	cloud, err := newClient(os.Getenv("LINODE_URL"), os.Getenv("LINODE_TOKEN"))
	if err != nil {
		return err
	}
	wanted, err := parseSwitches(json.NewDecoder(strings.NewReader(*initial)))
	if err != nil {
		return fmt.Errorf("--faults: %w", err)
	}
	state, calls := newFaults(wanted), &callLog{}

	// A socket left by a killed process would refuse the bind.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	service := &controller{driver: *driver, version: "test", cloud: cloud, poll: *poll, faults: state}
	server := grpc.NewServer(grpc.UnaryInterceptor(calls.intercept))
	csi.RegisterIdentityServer(server, service)
	csi.RegisterControllerServer(server, service)

	if *controlAddress != "" {
		if err := serveControl(*controlAddress, *controlFile, control(state, calls)); err != nil {
			return err
		}
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() { <-stop; server.Stop() }()
	return server.Serve(listener)
}

// serveControl starts the control endpoint and then makes its address known.
func serveControl(address, file string, handler http.Handler) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--control-address: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--control-address %q is not a loopback address", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { log.Fatalf("csi-controller: control endpoint: %v", http.Serve(listener, handler)) }()
	if file == "" {
		return nil
	}
	// Renamed into place, so that a reader never sees half an address.
	whole := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	if err := os.WriteFile(whole, []byte(listener.Addr().String()+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(whole, file)
}
