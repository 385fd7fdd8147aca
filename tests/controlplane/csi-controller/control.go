package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// What ControllerUnpublishVolume does.
const (
	unpublishOK   = "ok"
	unpublishFail = "fail" // Internal while the cloud says that the volume is attached to that instance
	unpublishHang = "hang" // no answer until the caller gives up or the switch is moved
)

// switches is what a test can set, and what GET and PUT /faults carry.
type switches struct {
	Unpublish string `json:"unpublish"`
	// Volumes for which it is otherwise, by their number.
	Volumes map[int]string `json:"volumes"`
}

func (s switches) validate() error {
	for _, word := range append(slices.Collect(maps.Values(s.Volumes)), s.Unpublish) {
		switch word {
		case unpublishOK, unpublishFail, unpublishHang:
		default:
			return fmt.Errorf("unpublish is %q, must be %q, %q or %q", word, unpublishOK, unpublishFail, unpublishHang)
		}
	}
	return nil
}

// unpublish is what ControllerUnpublishVolume does for a volume.
func (s switches) unpublish(id int) string {
	if own, ok := s.Volumes[id]; ok {
		return own
	}
	return s.Unpublish
}

// faults holds the switches and wakes those who wait for a change.
type faults struct {
	mu      sync.Mutex
	now     switches
	changed chan struct{}
}

func newFaults(now switches) *faults { return &faults{now: now, changed: make(chan struct{})} }

func (f *faults) get() switches {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *faults) set(now switches) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now
	close(f.changed)
	f.changed = make(chan struct{})
}

// hold waits while the volume's Unpublish is to hang; its error is the caller's own deadline.
func (f *faults) hold(ctx context.Context, id int) error {
	for {
		f.mu.Lock()
		now, changed := f.now, f.changed
		f.mu.Unlock()
		if now.unpublish(id) != unpublishHang {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// call is one CSI call that reached this process, as GET /calls shows it.
type call struct {
	Method   string     `json:"method"`
	Volume   string     `json:"volume,omitempty"`
	Node     string     `json:"node,omitempty"`
	Started  time.Time  `json:"started"`
	Finished *time.Time `json:"finished,omitempty"`
	// Code is the gRPC code's name; empty while the call runs.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// callLog keeps every call in the order in which they came.
type callLog struct {
	mu    sync.Mutex
	calls []call
}

// intercept is the gRPC interceptor that writes the log.
func (l *callLog) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	entry := call{Method: info.FullMethod, Started: time.Now()}
	if of, ok := request.(interface{ GetVolumeId() string }); ok {
		entry.Volume = of.GetVolumeId()
	}
	if of, ok := request.(interface{ GetNodeId() string }); ok {
		entry.Node = of.GetNodeId()
	}
	l.mu.Lock()
	at := len(l.calls)
	l.calls = append(l.calls, entry)
	l.mu.Unlock()

	answer, err := next(ctx, request)

	finished, outcome := time.Now(), status.Convert(err)
	l.mu.Lock()
	l.calls[at].Finished, l.calls[at].Code, l.calls[at].Message = &finished, outcome.Code().String(), outcome.Message()
	l.mu.Unlock()
	log.Printf("%s volume=%q node=%q %v %s %q", info.FullMethod, entry.Volume, entry.Node,
		finished.Sub(entry.Started).Round(time.Millisecond), outcome.Code(), outcome.Message())
	return answer, err
}

func (l *callLog) snapshot() []call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]call{}, l.calls...)
}

// control is the test's side door: GET and PUT /faults, GET /calls, GET /healthz.
func control(f *faults, l *callLog) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /calls", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.snapshot()) })
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { answer(w, f.get()) })
	mux.HandleFunc("PUT /faults", func(w http.ResponseWriter, r *http.Request) {
		wanted, err := parseSwitches(json.NewDecoder(r.Body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.set(wanted)
		answer(w, wanted)
	})
	return mux
}

// parseSwitches refuses what it does not know: a misspelt fault must not read as no fault.
func parseSwitches(from *json.Decoder) (switches, error) {
	wanted := switches{Unpublish: unpublishOK}
	from.DisallowUnknownFields()
	if err := from.Decode(&wanted); err != nil {
		return switches{}, err
	}
	return wanted, wanted.validate()
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
