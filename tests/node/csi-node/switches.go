package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What NodeStageVolume does.
const (
	stageOK       = ""
	stageHang     = "hang"     // no answer until the caller gives up or the switch is moved
	stageDeadline = "deadline" // DeadlineExceeded at once, without having done anything
)

// switches is the file's content, JSON. No file: everything works.
type switches struct {
	// Unregistered is read once, at the start: kubelet never hears of the driver.
	Unregistered bool `json:"unregistered"`
	// Stage is what NodeStageVolume does.
	Stage string `json:"stage"`
	// UnstageFails makes NodeUnstageVolume answer Internal and leave everything mounted.
	UnstageFails bool `json:"unstageFails"`
}

// read ends the process on a file that it does not understand: a misspelt switch must not read as none.
func read(file string) switches {
	var found switches
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return found
	}
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(&found)
	}
	known := found.Stage == stageOK || found.Stage == stageHang || found.Stage == stageDeadline
	if err != nil || !known {
		log.Fatalf("csi-node: switches %q cannot be understood: %v", text, err)
	}
	return found
}

// hold waits while staging is to hang; its error is the caller's own deadline.
func hold(ctx context.Context, file string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for read(file).Stage == stageHang {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-tick.C:
		}
	}
	return nil
}

// logged is the gRPC interceptor that tells every call and its end, but for kubelet's frequent questions.
func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	started := time.Now()
	if of, ok := request.(interface{ GetVolumeId() string }); ok {
		log.Printf("%s volume=%q begins", info.FullMethod, of.GetVolumeId())
	}
	answer, err := next(ctx, request)
	if err != nil || status.Code(err) != codes.OK {
		log.Printf("%s %v %v", info.FullMethod, time.Since(started).Round(time.Millisecond), err)
	} else if _, ok := request.(interface{ GetVolumeId() string }); ok {
		log.Printf("%s %v OK", info.FullMethod, time.Since(started).Round(time.Millisecond))
	}
	return answer, err
}
