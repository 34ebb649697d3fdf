package arm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm/refusal"
)

// Wait waits for an operation that a typed client began; p and err are what its
// Begin method returned. The waiting is bounded by ctx and OperationTimeout, and
// the error classified with op and object (the resource's id).
//
//	p, err := s.Disks.BeginDelete(ctx, group, name, nil)
//	_, err = arm.Wait(ctx, s, "azure.Remove", id, p, err)
func Wait[T any](ctx context.Context, s *Session, op, object string, p *runtime.Poller[T], err error) (T, error) {
	var none T
	if err != nil {
		return none, Classify(op, object, err)
	}
	bounded, cancel := context.WithTimeout(ctx, s.opts.OperationTimeout)
	defer cancel()
	out, err := wait(bounded, p, s.opts.PollEvery)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return none, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: the operation that Azure accepted was not over after %s", object, s.opts.OperationTimeout)
	}
	if err != nil {
		return none, Classify(op, object, err)
	}
	return out, nil
}

// wait looks at an operation until it is over, as often as Azure says, and else
// less and less often.
func wait[T any](ctx context.Context, p *runtime.Poller[T], every time.Duration) (none T, err error) {
	slowest := 10 * every
	for !p.Done() {
		resp, err := p.Poll(ctx)
		if err != nil {
			return none, err
		}
		if p.Done() {
			break
		}
		delay := every
		if d := refusal.RetryAfter(resp); d > 0 {
			delay = d
		} else {
			every = min(every*3/2, slowest)
		}
		if err := sleep(ctx, delay); err != nil {
			return none, err
		}
	}
	return p.Result(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send makes one call of Resource Manager and checks its status. path begins with a
// slash; a query is added to what it has.
func (s *Session) send(ctx context.Context, method, path, api string, body any, statuses ...int) (*http.Response, error) {
	u, err := url.Parse(s.endpoint + path)
	if err != nil {
		return nil, fmt.Errorf("no path of Resource Manager: %.300q", path)
	}
	q := u.Query()
	if api != "" {
		q.Set("api-version", api)
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	req, err := runtime.NewRequest(ctx, method, u.String())
	if err != nil {
		return nil, err
	}
	req.Raw().Header.Set("Accept", "application/json")
	if body != nil {
		if err := runtime.MarshalAsJSON(req, body); err != nil {
			return nil, err
		}
	}
	resp, err := s.pipe.Do(req)
	if err != nil {
		return nil, err
	}
	if !runtime.HasStatusCode(resp, statuses...) {
		return nil, runtime.NewResponseError(resp)
	}
	return resp, nil
}

// Resource reads the resource with an id into out (a pointer; nil = only look
// whether it is there). IsAbsent(err) tells that Azure has no such resource.
func (s *Session) Resource(ctx context.Context, id, api string, out any) error {
	return s.get(ctx, "azure.Resource", id, id, api, out)
}

func (s *Session) get(ctx context.Context, op, object, path, api string, out any) error {
	resp, err := s.send(ctx, http.MethodGet, path, api, nil, http.StatusOK)
	if err != nil {
		return Classify(op, object, err)
	}
	if out == nil {
		return nil
	}
	if err := runtime.UnmarshalAsJSON(resp, out); err != nil {
		return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: Azure's answer is not understood: %w", object, err)
	}
	return nil
}

// Post makes a POST call that answers at once.
func (s *Session) Post(ctx context.Context, id, api string, body, out any) error {
	resp, err := s.send(ctx, http.MethodPost, id, api, body, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if err != nil {
		return Classify("azure.Post", id, err)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := runtime.UnmarshalAsJSON(resp, out); err != nil {
		return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Post", "%s: Azure's answer is not understood: %w", id, err)
	}
	return nil
}

// maxPages bounds lists, against an Azure that answers in circles.
const maxPages = 10000

// List reads all pages of a list; each gets every element. path may have a query.
func (s *Session) List(ctx context.Context, path, api string, each func(json.RawMessage) error) error {
	const op = "azure.List"
	object := path
	for range maxPages {
		var page struct {
			Value    []json.RawMessage `json:"value"`
			NextLink string            `json:"nextLink"`
		}
		if err := s.get(ctx, op, object, path, api, &page); err != nil {
			return err
		}
		for _, v := range page.Value {
			if err := each(v); err != nil {
				return err
			}
		}
		if page.NextLink == "" {
			return nil
		}
		next, err := url.Parse(page.NextLink)
		if base, berr := url.Parse(s.endpoint); err != nil || berr != nil || next.Host != base.Host || next.Scheme != base.Scheme {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: Azure names a next page at another host", object) // the token must not go there
		}
		path, api = strings.TrimPrefix(next.String(), s.endpoint), ""
	}
	return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: the list does not end after %d pages", object, maxPages)
}

// busy are refusals that end by themselves: another operation is at work on the
// resource, or Azure keeps a NIC for 180 s for the VM it was made for.
func busy(err error) bool {
	var r *Refusal
	if !errors.As(err, &r) {
		return false
	}
	switch r.Code {
	case "AnotherOperationInProgress", "RetryableError", "RetryableErrorDueToAnotherOperation", "CanceledAndSupersededDueToAnotherOperation",
		"NicReservedForAnotherVm", "ReferencedResourceNotProvisioned", "OperationPreempted":
		return true
	}
	return false
}

// again calls f until it does not fail for another operation's sake, bounded by ctx.
func again(ctx context.Context, every time.Duration, f func() error) error {
	delay := every
	for {
		err := f()
		if err == nil || !busy(err) {
			return err
		}
		if sleep(ctx, delay) != nil {
			return err
		}
		delay = min(delay*3/2, 10*every)
	}
}

// PutResource creates or replaces the resource with an id and waits until Azure is
// done; out (a pointer, or nil) gets what then is there. A put by name may be
// repeated, so a lost answer is no harm: what is there is read, and if it is
// complete and carries the owner tag of the body, it counts as made.
func (s *Session) PutResource(ctx context.Context, id, api string, body, out any) error {
	const op = "azure.Put"
	ctx, cancel := context.WithTimeout(ctx, s.opts.OperationTimeout)
	defer cancel()
	var made json.RawMessage
	err := again(ctx, s.opts.PollEvery, func() error {
		resp, err := s.send(ctx, http.MethodPut, id, api, body, http.StatusOK, http.StatusCreated, http.StatusAccepted)
		if err == nil {
			made, err = s.finish(ctx, resp)
		}
		return Classify(op, id, err)
	})
	if lost(err) {
		if now, ok := settled(ctx, s, id, api, body); ok {
			made, err = now, nil
		}
	}
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if len(made) == 0 || string(made) == "null" {
		return s.Resource(ctx, id, api, out)
	}
	if err := json.Unmarshal(made, out); err != nil {
		return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "%s: Azure's answer is not understood: %w", id, err)
	}
	return nil
}

// finish waits for the operation that a response began.
func (s *Session) finish(ctx context.Context, resp *http.Response) (json.RawMessage, error) {
	p, err := runtime.NewPoller[json.RawMessage](resp, s.pipe, nil)
	if err != nil {
		return nil, err
	}
	return wait(ctx, p, s.opts.PollEvery)
}

// lost tells that nobody knows whether Azure did what it was asked.
func lost(err error) bool { return dr.CodeOf(err) == dr.CodeAzureUnreachable }

// settled looks whether the put whose answer was lost was done by Azure.
func settled(ctx context.Context, s *Session, id, api string, body any) (json.RawMessage, bool) {
	type state struct {
		Tags       map[string]string `json:"tags"`
		Properties struct {
			ProvisioningState string `json:"provisioningState"`
		} `json:"properties"`
	}
	var wanted, got state
	text, err := json.Marshal(body)
	if err != nil || json.Unmarshal(text, &wanted) != nil || wanted.Tags[TagOwner] == "" {
		return nil, false
	}
	for delay := s.opts.PollEvery; ; delay = min(delay*3/2, 10*s.opts.PollEvery) {
		var now json.RawMessage
		if err := s.Resource(ctx, id, api, &now); err != nil {
			return nil, false
		}
		if json.Unmarshal(now, &got) != nil || got.Tags[TagOwner] != wanted.Tags[TagOwner] || got.Tags[TagVM] != wanted.Tags[TagVM] {
			return nil, false
		}
		switch got.Properties.ProvisioningState {
		case "Succeeded", "":
			return now, true
		case "Failed", "Canceled":
			return nil, false
		}
		if sleep(ctx, delay) != nil {
			return nil, false
		}
	}
}

// DeleteResource deletes the resource with an id and waits until it is gone. It is
// no error if it is not there. Whether it may be deleted is the caller's to know.
func (s *Session) DeleteResource(ctx context.Context, id, api string) error {
	const op = "azure.Delete"
	ctx, cancel := context.WithTimeout(ctx, s.opts.OperationTimeout)
	defer cancel()
	err := again(ctx, s.opts.PollEvery, func() error {
		resp, err := s.send(ctx, http.MethodDelete, id, api, nil, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
		if err == nil {
			_, err = s.finish(ctx, resp)
		}
		return Classify(op, id, err)
	})
	if IsAbsent(err) || lost(err) && IsAbsent(s.Resource(ctx, id, api, nil)) {
		return nil
	}
	return err
}

// Resource is what a list tells of a resource.
type Resource struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Location string            `json:"location"`
	Tags     map[string]string `json:"tags"`
}

// ownTypes are the types that Holdfast makes, in the order in which they can be
// deleted: what uses another comes before it.
func ownTypes() []string {
	return []string{TypeVM, TypeRestoreCollection, TypeSnapshot, TypeDisk, TypeNIC, TypePublicIP, TypeNetwork, TypeSecurityGroup, TypeAvailabilitySet}
}

// ListByTag lists the resources of the site's resource group with a tag of a
// value ("" = any value), of the types that Holdfast makes, in the order in which
// they can be deleted. Each type's own provider is asked: the subscription's index
// of resources can be minutes behind.
func (s *Session) ListByTag(ctx context.Context, name, value string) ([]Resource, error) {
	var out []Resource
	for _, kind := range ownTypes() {
		err := s.List(ctx, s.GroupID()+"/providers/"+kind, APIVersion(kind), func(raw json.RawMessage) error {
			var r Resource
			if err := json.Unmarshal(raw, &r); err != nil {
				return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.ListByTag", "%s: Azure's list is not understood: %w", kind, err)
			}
			r.Type = kind
			if v, ok := tag(r.Tags, name); ok && (value == "" || v == value) {
				out = append(out, r)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// tag finds a tag; Azure does not tell letters' case apart in tags' names.
func tag(tags map[string]string, name string) (string, bool) {
	if v, ok := tags[name]; ok {
		return v, true
	}
	for k, v := range tags {
		if strings.EqualFold(k, name) {
			return v, true
		}
	}
	return "", false
}

// Tag is the value of a tag, "" if the resource has none of that name.
func (r Resource) Tag(name string) string {
	v, _ := tag(r.Tags, name)
	return v
}

// Remove deletes resources in the order in which they can be deleted, looking at
// each once more before: one that has lost its owner tag, or has another owner than
// in the list, is left alone and reported. It goes on after a failure.
func (s *Session) Remove(ctx context.Context, list []Resource) error {
	var errs []error
	for _, kind := range ownTypes() {
		for _, r := range list {
			if !strings.EqualFold(r.Type, kind) {
				continue
			}
			if err := s.removeOne(ctx, r); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Session) removeOne(ctx context.Context, r Resource) error {
	const op = "azure.Remove"
	owner := r.Tag(TagOwner)
	var now Resource
	err := s.Resource(ctx, r.ID, APIVersion(r.Type), &now)
	switch {
	case IsAbsent(err):
		return nil
	case err != nil:
		return err
	case owner == "" || now.Tag(TagOwner) != owner:
		return dr.New(dr.KindConflict, dr.CodeAzureNameTaken, op, "%s carries the owner tag %q, expected %q; it was not deleted", r.ID, now.Tag(TagOwner), owner)
	}
	if strings.EqualFold(r.Type, TypeDisk) || strings.EqualFold(r.Type, TypeSnapshot) { // one with an address in use can't be deleted
		if err := endAccess(ctx, s, r); err != nil && !IsAbsent(err) {
			s.opts.Log.Warn("address of a disk can't be taken back", "id", r.ID, "error", err)
		}
	}
	return s.DeleteResource(ctx, r.ID, APIVersion(r.Type))
}

// endAccess takes back the signed address of a disk or snapshot.
func endAccess(ctx context.Context, s *Session, r Resource) error {
	resp, err := s.send(ctx, http.MethodPost, r.ID+"/endGetAccess", APIVersion(r.Type), nil, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if err == nil {
		_, err = s.finish(ctx, resp)
	}
	return Classify("azure.Remove", r.ID, err)
}
