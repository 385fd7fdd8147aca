package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// cloud is a fake of the Linode API: instances 1 and 2, and the volumes that a test gives it.
type cloud struct {
	mu      sync.Mutex
	volumes map[int]*volume
	// calls are the mutations that came.
	calls []string
	// refuse answers attach and detach with this status and body instead of doing them.
	refuse     int
	refuseBody string
	// stuck makes attach and detach succeed without any effect.
	stuck bool
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"reason":"Invalid Token"}]}`)
		return
	}
	missing := func() {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"reason":"Not found"}]}`)
	}
	var id int
	switch path := strings.TrimPrefix(r.URL.Path, "/v4/"); {
	case path == "linode/instances/1" || path == "linode/instances/2":
		fmt.Fprint(w, `{}`)
	case path == "volumes":
		// One volume per page.
		var ids []int
		for id := range c.volumes {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		page := 1
		fmt.Sscan(r.URL.Query().Get("page"), &page)
		json.NewEncoder(w).Encode(map[string]any{"data": []*volume{c.volumes[ids[page-1]]}, "pages": len(ids)})
	case scan(path, "volumes/%d/attach", &id) || scan(path, "volumes/%d/detach", &id):
		c.calls = append(c.calls, path)
		switch {
		case c.refuse != 0:
			w.WriteHeader(c.refuse)
			fmt.Fprint(w, c.refuseBody)
		case c.volumes[id] == nil:
			missing()
		default:
			var body struct {
				Instance *int  `json:"linode_id"`
				Persist  *bool `json:"persist_across_boots"`
			}
			json.NewDecoder(r.Body).Decode(&body)
			if strings.HasSuffix(path, "attach") && (body.Instance == nil || body.Persist == nil || *body.Persist) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			if !c.stuck {
				c.volumes[id].LinodeID = body.Instance
			}
			fmt.Fprint(w, `{}`)
		}
	case scan(path, "volumes/%d", &id) && c.volumes[id] != nil:
		json.NewEncoder(w).Encode(c.volumes[id])
	default:
		missing()
	}
}

// scan wants the whole of the path to be as the format says.
func scan(path, format string, id *int) bool {
	n, err := fmt.Sscanf(path, format, id)
	return err == nil && n == 1 && path == fmt.Sprintf(format, *id)
}

func on(instance int) *int { return &instance }

// start gives a controller over a cloud that holds volumes 10 (free), 11 (on 1) and 12 (on 2).
func start(t *testing.T, unpublish string) (*controller, *cloud) {
	t.Helper()
	fake := &cloud{volumes: map[int]*volume{
		10: {ID: 10, Label: "free", Size: 10, FilesystemPath: "/dev/disk/by-id/free"},
		11: {ID: 11, Label: "on-1", Size: 10, LinodeID: on(1), FilesystemPath: "/dev/disk/by-id/on-1"},
		12: {ID: 12, Label: "on-2", Size: 10, LinodeID: on(2)},
	}}
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	api, err := newClient(server.URL, "secret")
	if err != nil {
		t.Fatal(err)
	}
	return &controller{driver: "d", cloud: api, poll: time.Millisecond, faults: newFaults(switches{Unpublish: unpublish})}, fake
}

func expect(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || (code != codes.OK && !strings.Contains(status.Convert(err).Message(), text)) {
		t.Errorf("got %v, want %v with %q", err, code, text)
	}
}

func publish(c *controller, handle, node string) (*csi.ControllerPublishVolumeResponse, error) {
	return c.ControllerPublishVolume(context.Background(), &csi.ControllerPublishVolumeRequest{VolumeId: handle, NodeId: node})
}

func unpublish(ctx context.Context, c *controller, handle, node string) error {
	_, err := c.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: handle, NodeId: node})
	return err
}

func TestPublish(t *testing.T) {
	for _, row := range []struct {
		name, handle, node string
		refuse             int
		body               string
		code               codes.Code
		text               string
		calls              int
	}{
		{"free", "10-free", "1", 0, "", codes.OK, "", 1},
		{"already here", "11-on-1", "1", 0, "", codes.OK, "", 0},
		{"elsewhere", "12-on-2", "1", 0, "", codes.FailedPrecondition, "volume 12 is already attached to linode 2", 0},
		{"no instance", "10-free", "3", 0, "", codes.NotFound, "linode instance 3 not found", 0},
		{"no volume", "99-x", "1", 0, "", codes.NotFound, "volume not found: 99", 0},
		{"race", "10-free", "1", 400, `{"errors":[{"reason":"Volume 10 is already attached"}]}`, codes.Unavailable, "attach volume: [400] Volume 10 is already attached", 1},
		{"busy", "10-free", "1", 400, `{"errors":[{"reason":"Linode busy."}]}`, codes.Internal, "attach volume: [400] Linode busy.", 1},
		{"proxy page", "10-free", "1", 502, `<html>Bad Gateway</html>`, codes.Internal, "attach volume: [502] <html>", 1},
		{"bad handle", "free-10", "1", 0, "", codes.InvalidArgument, "numeric", 0},
		{"bad node", "10-free", "node-1", 0, "", codes.InvalidArgument, "linode id", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, fake := start(t, unpublishOK)
			fake.refuse, fake.refuseBody = row.refuse, row.body
			answer, err := publish(c, row.handle, row.node)
			expect(t, err, row.code, row.text)
			if err == nil && answer.PublishContext[publishContextDevice] == "" {
				t.Error("no device path")
			}
			if len(fake.calls) != row.calls {
				t.Errorf("mutations: %v", fake.calls)
			}
		})
	}
}

func TestUnpublish(t *testing.T) {
	for _, row := range []struct {
		name, fault, handle, node string
		refuse                    int
		body                      string
		code                      codes.Code
		text                      string
		calls                     int
	}{
		{"attached", "ok", "11-on-1", "1", 0, "", codes.OK, "", 1},
		{"attached to another", "ok", "12-on-2", "1", 0, "", codes.OK, "", 0},
		{"attached nowhere", "ok", "10-free", "1", 0, "", codes.OK, "", 1},
		{"attached nowhere, refused", "ok", "10-free", "1", 400, `{"errors":[{"reason":"not attached"}]}`, codes.Internal, "detach volume 10: [400] not attached", 1},
		{"attached nowhere, 404", "ok", "10-free", "1", 404, `{"errors":[{"reason":"Not found"}]}`, codes.OK, "", 1},
		{"no volume", "ok", "99-x", "1", 0, "", codes.OK, "", 0},
		{"busy", "ok", "11-on-1", "1", 400, `{"errors":[{"reason":"Linode busy."}]}`, codes.Internal, "detach volume 11: [400] Linode busy.", 1},
		{"fault, attached", "fail", "11-on-1", "1", 0, "", codes.Internal, "detach volume 11: ", 0},
		{"fault, attached to another", "fail", "12-on-2", "1", 0, "", codes.OK, "", 0},
		{"fault, attached nowhere", "fail", "10-free", "1", 0, "", codes.OK, "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, fake := start(t, row.fault)
			fake.refuse, fake.refuseBody = row.refuse, row.body
			expect(t, unpublish(context.Background(), c, row.handle, row.node), row.code, row.text)
			if len(fake.calls) != row.calls {
				t.Errorf("mutations: %v", fake.calls)
			}
		})
	}
}

// A detach that the cloud accepts and never finishes ends with the caller's patience.
func TestUnpublishWaitsForTheCloud(t *testing.T) {
	c, fake := start(t, unpublishOK)
	fake.stuck = true
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	expect(t, unpublish(ctx, c, "11-on-1", "1"), codes.DeadlineExceeded, "")
	if len(fake.calls) != 1 {
		t.Errorf("mutations: %v", fake.calls)
	}
}

func TestHang(t *testing.T) {
	c, fake := start(t, unpublishHang)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	expect(t, unpublish(ctx, c, "11-on-1", "1"), codes.DeadlineExceeded, "detach volume 11: ")
	if len(fake.calls) != 0 {
		t.Errorf("mutations: %v", fake.calls)
	}
	done := make(chan error, 1)
	go func() { done <- unpublish(context.Background(), c, "11-on-1", "1") }()
	// A switch to the same position wakes and holds again.
	c.faults.set(switches{Unpublish: unpublishHang})
	c.faults.set(switches{Unpublish: unpublishOK})
	expect(t, <-done, codes.OK, "")
	if len(fake.calls) != 1 {
		t.Errorf("mutations: %v", fake.calls)
	}
}

// A fault of one volume is no fault of another.
func TestFaultOfOneVolume(t *testing.T) {
	c, fake := start(t, unpublishOK)
	c.faults.set(switches{Unpublish: unpublishOK, Volumes: map[int]string{11: unpublishFail}})
	expect(t, unpublish(context.Background(), c, "11-on-1", "1"), codes.Internal, "detach volume 11: ")
	expect(t, unpublish(context.Background(), c, "10-free", "1"), codes.OK, "")
	if len(fake.calls) != 1 {
		t.Errorf("mutations: %v", fake.calls)
	}
}

func TestListVolumesReadsEveryPageAndNamesTheHolders(t *testing.T) {
	c, _ := start(t, unpublishOK)
	answer, err := c.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range answer.Entries {
		got = append(got, fmt.Sprint(e.Volume.VolumeId, e.Status.PublishedNodeIds))
	}
	if want := []string{"10-free[]", "11-on-1[1]", "12-on-2[2]"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddresses(t *testing.T) {
	for given, want := range map[string]string{
		"http://127.0.0.1:1":         "http://127.0.0.1:1/v4",
		"http://127.0.0.1:1/v4/":     "http://127.0.0.1:1/v4",
		"http://127.0.0.1:1/v4beta":  "http://127.0.0.1:1/v4beta",
		"http://127.0.0.1:1/somehow": "http://127.0.0.1:1/somehow/v4",
	} {
		c, err := newClient(given, "")
		if err != nil || c.base.String() != want {
			t.Errorf("%s: got %v %v, want %s", given, c, err, want)
		}
	}
	if _, err := newClient("127.0.0.1", ""); err == nil {
		t.Error("an address without a scheme was taken")
	}
}

func TestControlRefusesWhatItDoesNotKnow(t *testing.T) {
	f := newFaults(switches{Unpublish: unpublishOK})
	handler := control(f, &callLog{})
	for body, code := range map[string]int{
		`{"unpublish":"fail"}`:                        http.StatusOK,
		`{"unpublish":"maybe"}`:                       http.StatusBadRequest,
		`{"unpublish":"ok","volumes":{"11":"maybe"}}`: http.StatusBadRequest,
		`{"unpublsh":"ok"}`:                           http.StatusBadRequest,
		`not json`:                                    http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/faults", strings.NewReader(body)))
		if w.Code != code {
			t.Errorf("%s: got %d, want %d", body, w.Code, code)
		}
	}
	if f.get().Unpublish != unpublishFail {
		t.Errorf("the good one did not stay: %v", f.get())
	}
}
