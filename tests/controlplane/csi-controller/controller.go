package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// waitLimit is how long Linode's driver waits for the cloud to finish an attach or a detach.
const waitLimit = 5 * time.Minute

// publishContextDevice is the key under which Linode's driver hands the device's path to its node plugin.
const publishContextDevice = "devicePath"

// controller is the CSI identity and controller service.
type controller struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	driver  string
	version string
	cloud   *client
	poll    time.Duration
	faults  *faults
}

func (c *controller) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: c.driver, VendorVersion: c.version}, nil
}

func (c *controller) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := func(t csi.PluginCapability_Service_Type) *csi.PluginCapability {
		return &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}}
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		service(csi.PluginCapability_Service_CONTROLLER_SERVICE),
		service(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
	}}, nil
}

func (c *controller) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// ControllerGetCapabilities: with both LIST capabilities external-attacher compares every VolumeAttachment with the
// cloud once a minute, and publishes again what was detached behind its back.
func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var all []*csi.ControllerServiceCapability
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
	} {
		all = append(all, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: all}, nil
}

func (c *controller) ControllerPublishVolume(ctx context.Context, request *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	id, instance, err := target(request.GetVolumeId(), request.GetNodeId())
	if err != nil {
		return nil, err
	}
	if err := c.cloud.instance(ctx, instance); isNotFound(err) {
		return nil, status.Errorf(codes.NotFound, "linode instance %d not found", instance)
	} else if err != nil {
		return nil, failure(ctx, "get linode instance %d: %v", instance, err)
	}
	found, err := c.cloud.volume(ctx, id)
	switch {
	case isNotFound(err):
		return nil, status.Errorf(codes.NotFound, "volume not found: %d", id)
	case err != nil:
		return nil, failure(ctx, "get volume %d: %v", id, err)
	case found.attachedTo(instance):
		return published(found), nil
	case found.LinodeID != nil:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %d is already attached to linode %d", id, *found.LinodeID)
	}
	if err := c.cloud.attach(ctx, id, instance); err != nil {
		if strings.Contains(err.Error(), "is already attached") {
			// A race with another attach: Linode's driver lets the sidecar come back.
			return nil, status.Errorf(codes.Unavailable, "attach volume: %v", err)
		}
		return nil, failure(ctx, "attach volume: %v", err)
	}
	attached, err := c.await(ctx, id, func(v volume) bool { return v.attachedTo(instance) })
	if err != nil {
		return nil, failure(ctx, "wait for volume %d to attach: %v", id, err)
	}
	return published(attached), nil
}

func (c *controller) ControllerUnpublishVolume(ctx context.Context, request *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	done := &csi.ControllerUnpublishVolumeResponse{}
	id, instance, err := target(request.GetVolumeId(), request.GetNodeId())
	if err != nil {
		return nil, err
	}
	if err := c.faults.hold(ctx, id); err != nil {
		return nil, failure(ctx, "detach volume %d: %v", id, err)
	}
	found, err := c.cloud.volume(ctx, id)
	if isNotFound(err) {
		return done, nil
	}
	if err != nil {
		return nil, failure(ctx, "get volume %d: %v", id, err)
	}
	if found.LinodeID != nil && *found.LinodeID != instance {
		// Attached to another instance than the one asked about: nothing to do, says Linode's driver.
		return done, nil
	}
	if c.faults.get().unpublish(id) == unpublishFail {
		if found.attachedTo(instance) {
			return nil, status.Errorf(codes.Internal, "detach volume %d: [500] refused by the test's fault switch", id)
		}
		return done, nil
	}
	// Also when the API says that it is attached nowhere: Linode's driver calls and forgives a 404 only.
	if err := c.cloud.detach(ctx, id); isNotFound(err) {
		return done, nil
	} else if err != nil {
		return nil, failure(ctx, "detach volume %d: %v", id, err)
	}
	if _, err := c.await(ctx, id, func(v volume) bool { return v.LinodeID == nil }); err != nil && !isNotFound(err) {
		return nil, failure(ctx, "wait for volume %d to detach: %v", id, err)
	}
	return done, nil
}

// ListVolumes answers with one page that holds all volumes, each with the instance that the cloud says has it.
func (c *controller) ListVolumes(ctx context.Context, request *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if token := request.GetStartingToken(); token != "" {
		return nil, status.Errorf(codes.Aborted, "invalid starting token: %q", token)
	}
	all, err := c.cloud.volumes(ctx)
	if err != nil {
		return nil, failure(ctx, "list volumes: %v", err)
	}
	answer := &csi.ListVolumesResponse{}
	for _, v := range all {
		var nodes []string
		if v.LinodeID != nil {
			nodes = []string{strconv.Itoa(*v.LinodeID)}
		}
		answer.Entries = append(answer.Entries, &csi.ListVolumesResponse_Entry{
			Volume: &csi.Volume{VolumeId: v.handle(), CapacityBytes: v.Size << 30},
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: nodes},
		})
	}
	return answer, nil
}

// await asks about the volume at every tick until it is as wanted. The first look comes one tick after the request,
// as in linodego.
func (c *controller) await(ctx context.Context, id int, wanted func(volume) bool) (volume, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	tick := time.NewTicker(c.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return volume{}, ctx.Err()
		case <-tick.C:
			if found, err := c.cloud.volume(ctx, id); err != nil || wanted(found) {
				return found, err
			}
		}
	}
}

func published(v volume) *csi.ControllerPublishVolumeResponse {
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{publishContextDevice: v.FilesystemPath}}
}

// failure is Internal, unless the caller's own time was up.
func failure(ctx context.Context, format string, arguments ...any) error {
	message := fmt.Sprintf(format, arguments...)
	if ctx.Err() != nil {
		return status.Error(status.FromContextError(ctx.Err()).Code(), message)
	}
	return status.Error(codes.Internal, message)
}

// target reads the two ids of a call: "<id>-<label>", split at the first hyphen, and the instance's decimal id.
func target(handle, node string) (id, instance int, err error) {
	head, _, _ := strings.Cut(handle, "-")
	if id, err = strconv.Atoi(head); err != nil {
		return 0, 0, status.Errorf(codes.InvalidArgument, "volume handle %q has no numeric head", handle)
	}
	if instance, err = strconv.Atoi(node); err != nil {
		return 0, 0, status.Errorf(codes.InvalidArgument, "node id %q is not a linode id", node)
	}
	return id, instance, nil
}
