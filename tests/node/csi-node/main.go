// Command csi-node is a CSI node plugin for the tests that behaves as Linode's where a volume recovery can notice: it
// looks for a volume by its link in /dev/disk/by-id and nowhere else, and says so in Linode's words when there is none.
//
// It registers itself with the kubelet (there is no sidecar) and obeys a file of switches that is read at every call.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	if err := run(); err != nil {
		log.Fatalf("csi-node: %v", err)
	}
}

func run() error {
	driver := flag.String("driver-name", "linodebs.csi.linode.com", "the CSI driver's name")
	nodeID := flag.String("node-id", "", "the instance's number, as the cloud's API knows it (required)")
	kubelet := flag.String("kubelet-root", "/var/lib/kubelet", "kubelet's --root-dir")
	switches := flag.String("switches", "", "file of switches, see switches.go (required)")
	maxVolumes := flag.Int64("max-volumes", 8, "how many volumes the node takes")
	flag.Parse()
	if *nodeID == "" || *switches == "" {
		return errors.New("--node-id and --switches are required")
	}
	socket := filepath.Join(*kubelet, "plugins", *driver, "csi.sock")
	service := &node{nodeID: *nodeID, maxVolumes: *maxVolumes, switches: *switches, driver: *driver}
	plugin := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(plugin, service)
	csi.RegisterNodeServer(plugin, service)
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- plugin.Serve(listener) }()

	// kubelet looks into this folder and dials what it finds there: that alone is what registers a driver.
	if read(*switches).Unregistered {
		log.Printf("not registering, as the switches say")
		return <-failed
	}
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, &registrant{driver: *driver, socket: socket})
	door, err := listen(filepath.Join(*kubelet, "plugins_registry", *driver+"-reg.sock"))
	if err != nil {
		return err
	}
	go func() { failed <- registrar.Serve(door) }()
	return <-failed
}

// listen replaces what a killed process has left.
func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace %s: %w", socket, err)
	}
	return net.Listen("unix", socket)
}
