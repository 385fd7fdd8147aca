package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// node is the CSI identity and node service.
type node struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	driver     string
	nodeID     string
	maxVolumes int64
	switches   string
}

func (n *node) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: n.driver, VendorVersion: "test"}, nil
}

func (n *node) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (n *node) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.nodeID, MaxVolumesPerNode: n.maxVolumes}, nil
}

func (n *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	stage := csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{{
		Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: stage}},
	}}}, nil
}

func (n *node) NodeStageVolume(ctx context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if read(n.switches).Stage == stageDeadline {
		return nil, status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	}
	if err := hold(ctx, n.switches); err != nil {
		return nil, err
	}
	device, err := find(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	done := &csi.NodeStageVolumeResponse{}
	if request.GetVolumeCapability().GetBlock() != nil {
		return done, nil
	}
	target := request.GetStagingTargetPath()
	if mounted(target) {
		return done, nil
	}
	kind := request.GetVolumeCapability().GetMount().GetFsType()
	if kind == "" {
		kind = "ext4"
	}
	// blkid exits with 2 when there is nothing on the device.
	if output, err := exec.CommandContext(ctx, "blkid", "-p", device).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			return nil, status.Errorf(codes.Internal, "blkid %s: %v: %s", device, err, output)
		}
		if err := command(ctx, "mkfs."+kind, "-q", "-F", device); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, status.Errorf(codes.Internal, "cannot create %s: %v", target, err)
	}
	return done, command(ctx, "mount", "-t", kind, device, target)
}

func (n *node) NodeUnstageVolume(ctx context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if read(n.switches).UnstageFails {
		return nil, status.Errorf(codes.Internal, "NodeUnstageVolume failed to unmount %s: refused by the test's switch", request.GetStagingTargetPath())
	}
	return &csi.NodeUnstageVolumeResponse{}, unmount(ctx, request.GetStagingTargetPath())
}

func (n *node) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	done, target, source := &csi.NodePublishVolumeResponse{}, request.GetTargetPath(), request.GetStagingTargetPath()
	if mounted(target) {
		return done, nil
	}
	if request.GetVolumeCapability().GetBlock() == nil {
		if err := os.MkdirAll(target, 0o750); err != nil {
			return nil, status.Errorf(codes.Internal, "cannot create %s: %v", target, err)
		}
		return done, command(ctx, "mount", "--bind", source, target)
	}
	device, err := find(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return nil, status.Errorf(codes.Internal, "cannot create %s: %v", filepath.Dir(target), err)
	}
	if err := os.WriteFile(target, nil, 0o640); err != nil {
		return nil, status.Errorf(codes.Internal, "cannot create %s: %v", target, err)
	}
	return done, command(ctx, "mount", "--bind", device, target)
}

func (n *node) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	target := request.GetTargetPath()
	if err := unmount(ctx, target); err != nil {
		return nil, err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, status.Errorf(codes.Internal, "cannot remove %s: %v", target, err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// find gives the device of a volume. As in Linode's driver, whose words these are, udev's links are all it goes by.
func find(handle string) (string, error) {
	_, label, _ := strings.Cut(handle, "-")
	var tried []string
	for _, prefix := range []string{"linode-", "scsi-0Linode_Volume_"} {
		link := "/dev/disk/by-id/" + prefix + label
		if device, err := filepath.EvalSymlinks(link); err == nil {
			return device, nil
		}
		tried = append(tried, link)
	}
	return "", status.Errorf(codes.Internal, "Unable to find device path out of attempted paths: [%s]", strings.Join(tried, " "))
}

// mounted reads the mount table only: a look at the place itself could block, or fail with EIO.
func mounted(target string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(table), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == target {
			return true
		}
	}
	return false
}

func unmount(ctx context.Context, target string) error {
	for mounted(target) {
		if err := command(ctx, "umount", target); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, name string, arguments ...string) error {
	output, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return status.Errorf(codes.Internal, "%s %s: %v: %s", name, strings.Join(arguments, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
