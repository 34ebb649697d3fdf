package msvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/cim"
)

// States for RequestState (Msvm_ComputerSystem.RequestStateChange).
const (
	StateStart   uint16 = 2 // also resumes
	StateTurnOff uint16 = 3
	StatePause   uint16 = 9
)

// RequestState changes the state of a VM and waits for the job.
func (c *Client) RequestState(ctx context.Context, vm string, state uint16) error {
	_, _, err := c.callOn(ctx, systemPath(vm), "RequestStateChange", cim.Pairs("RequestedState", state))
	return err
}

// InitiateShutdown asks the guest to shut down; it does not wait for it. 32780
// (not ready) and 32781 (locked) are ordinary answers of a guest that has been asked or is starting.
func (c *Client) InitiateShutdown(ctx context.Context, k Component, reason string) error {
	out, err := c.s.Invoke(ctx, k.Path, "InitiateShutdown", cim.Pairs("Force", true, "Reason", reason))
	if err != nil {
		return err
	}
	switch out.Return {
	case 0, cim.ReturnJobStarted, 32782:
		return nil
	}
	return &cim.ReturnError{Method: "InitiateShutdown", Value: out.Return}
}

// Thumbnail returns the picture of a VM's display as RGB565, little endian (method GetVirtualSystemThumbnailImage).
func (c *Client) Thumbnail(ctx context.Context, settings string, width, height int) ([]byte, error) {
	out, _, err := c.call(ctx, managementService, "GetVirtualSystemThumbnailImage", cim.Pairs("TargetSystem", SettingsPath(settings),
		"WidthPixels", uint16(width), "HeightPixels", uint16(height)))
	if err != nil {
		return nil, err
	}
	list, err := out.Uints("ImageData")
	if err != nil {
		return nil, err
	}
	p := make([]byte, len(list))
	for i, v := range list {
		p[i] = byte(v)
	}
	return p, nil
}

// Summaries reads state and operation of all VMs with one query, for polling.
func (c *Client) Summaries(ctx context.Context) (map[string]System, error) {
	list, err := c.query(ctx, "SELECT CreationClassName, Name, ElementName, EnabledState, OperationalStatus FROM Msvm_ComputerSystem WHERE Name != __SERVER")
	if err != nil {
		return nil, err
	}
	out := map[string]System{}
	for _, in := range list {
		if s := systemOf(in); IsGUID(s.ID) {
			out[s.ID] = s
		}
	}
	return out, nil
}

func newGUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// NotReady reports whether a guest answered that it can't shut down at this moment.
func NotReady(err error) bool {
	var ret *cim.ReturnError
	return errors.As(err, &ret) && (ret.Value == 32780 || ret.Value == 32781)
}
