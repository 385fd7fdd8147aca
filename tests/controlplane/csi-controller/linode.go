package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// requestTimeout bounds one request to the cloud's API, so that a silent cloud cannot hold a CSI call for ever.
const requestTimeout = 30 * time.Second

// pageSize is the largest page that the Linode API v4 hands out.
const pageSize = 500

// volume is what the controller reads of a Linode volume.
type volume struct {
	ID    int    `json:"id"`
	Label string `json:"label"`
	// Size in GiB.
	Size int64 `json:"size"`
	// LinodeID is nil when the API says that the volume is attached nowhere.
	LinodeID       *int   `json:"linode_id"`
	FilesystemPath string `json:"filesystem_path"`
}

// handle is the CSI volume handle of Linode's driver.
func (v volume) handle() string { return fmt.Sprintf("%d-%s", v.ID, v.Label) }

// attachedTo tells whether the API says that the instance holds the volume.
func (v volume) attachedTo(instance int) bool { return v.LinodeID != nil && *v.LinodeID == instance }

// apiError is an answer of the API that is not 2xx, printed as linodego prints it: "[404] Not found".
type apiError struct {
	code   int
	reason string
}

func (e *apiError) Error() string { return fmt.Sprintf("[%d] %s", e.code, e.reason) }

func isNotFound(err error) bool {
	var e *apiError
	return errors.As(err, &e) && e.code == http.StatusNotFound
}

// client speaks the few calls of the Linode API v4 that Linode's CSI controller needs. It never retries: the
// sidecar above it does.
type client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// newClient takes the API's address with or without the version at its end, as linodego does.
func newClient(address, token string) (*client, error) {
	base, err := url.Parse(strings.TrimRight(address, "/"))
	if err != nil {
		return nil, fmt.Errorf("LINODE_URL: %w", err)
	}
	if base.Scheme == "" || base.Host == "" {
		return nil, fmt.Errorf("LINODE_URL %q is not an absolute URL", address)
	}
	if last := path.Base(base.Path); last != "v4" && last != "v4beta" {
		base = base.JoinPath("v4")
	}
	return &client{base: base, token: token, http: &http.Client{Timeout: requestTimeout}}, nil
}

func (c *client) call(ctx context.Context, method, resource string, query url.Values, body, answer any) error {
	target := c.base.JoinPath(resource)
	target.RawQuery = query.Encode()
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), payload)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	request.Header.Set("Accept", "application/json")
	// The cloud's log then tells these requests from those of the program under test.
	request.Header.Set("User-Agent", "csi-controller")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return &apiError{code: response.StatusCode, reason: reason(text)}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s %s: unreadable answer: %w", method, resource, err)
	}
	return nil
}

// reason takes the sentence out of an error body; a proxy's HTML page is shown as it is, cut.
func reason(body []byte) string {
	var envelope struct {
		Errors []struct {
			Reason string `json:"reason"`
			Field  string `json:"field"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &envelope) == nil && len(envelope.Errors) > 0 {
		var all []string
		for _, e := range envelope.Errors {
			if e.Field != "" {
				all = append(all, fmt.Sprintf("[%s] %s", e.Field, e.Reason))
			} else {
				all = append(all, e.Reason)
			}
		}
		return strings.Join(all, "; ")
	}
	return strings.TrimSpace(string(body[:min(len(body), 200)]))
}

func (c *client) volume(ctx context.Context, id int) (volume, error) {
	var v volume
	err := c.call(ctx, http.MethodGet, fmt.Sprintf("volumes/%d", id), nil, nil, &v)
	return v, err
}

// volumes reads every page of the list.
func (c *client) volumes(ctx context.Context) ([]volume, error) {
	var all []volume
	for page, pages := 1, 1; page <= pages; page++ {
		var answer struct {
			Data  []volume `json:"data"`
			Pages int      `json:"pages"`
		}
		query := url.Values{"page": {fmt.Sprint(page)}, "page_size": {fmt.Sprint(pageSize)}}
		if err := c.call(ctx, http.MethodGet, "volumes", query, nil, &answer); err != nil {
			return nil, err
		}
		all, pages = append(all, answer.Data...), answer.Pages
	}
	return all, nil
}

// instance only asks whether there is one.
func (c *client) instance(ctx context.Context, id int) error {
	return c.call(ctx, http.MethodGet, fmt.Sprintf("linode/instances/%d", id), nil, nil, nil)
}

// attach uses persist_across_boots=false as Linode's driver does: the attachment does not survive a reboot.
func (c *client) attach(ctx context.Context, id, instance int) error {
	body := map[string]any{"linode_id": instance, "persist_across_boots": false}
	return c.call(ctx, http.MethodPost, fmt.Sprintf("volumes/%d/attach", id), nil, body, nil)
}

// detach names no instance, because the API takes none: it detaches from whichever holds the volume.
func (c *client) detach(ctx context.Context, id int) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("volumes/%d/detach", id), nil, struct{}{}, nil)
}
