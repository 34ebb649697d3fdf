package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// Limits of what boot diagnostics may hold.
const (
	maxSerial     = 64 << 20
	maxScreenshot = 32 << 20
)

// Screenshot returns the VM's display from Azure's boot diagnostics, which are some
// seconds to minutes old. Azure keeps a bitmap; the result is a PNG.
func (h *Host) Screenshot(ctx context.Context, id dr.VMID) ([]byte, error) {
	const op = "Screenshot"
	m, code, err := h.powerOf(ctx, op, id)
	if err != nil {
		return nil, err
	}
	if !on(code) {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "azure."+op, "VM %s is not running", m.Name)
	}
	_, address, err := h.diagnostics(ctx, op, m)
	if err != nil {
		return nil, err
	}
	raw, found, err := h.download(ctx, op, m, address, maxScreenshot)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "Azure has no picture of VM %s yet", m.Name)
	}
	b, err := toPNG(raw)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "azure."+op, "picture of VM %s: %w", m.Name, err)
	}
	return b, nil
}

// SerialLog returns the end of what the guest wrote to its first serial port, from
// Azure's boot diagnostics. A VM that wrote nothing yet has an empty log.
func (h *Host) SerialLog(ctx context.Context, id dr.VMID, limit int) ([]byte, error) {
	const op = "SerialLog"
	m, err := h.az.Find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	address, _, err := h.diagnostics(ctx, op, m)
	if err != nil {
		return nil, err
	}
	b, _, err := h.download(ctx, op, m, address, maxSerial)
	return b[max(0, len(b)-max(limit, 0)):], err
}

// diagnostics asks for the addresses of the serial log and the screenshot. They are secrets.
func (h *Host) diagnostics(ctx context.Context, op string, m site.Machine) (serial, screenshot string, err error) {
	if d := m.Properties.DiagnosticsProfile; d == nil || d.BootDiagnostics == nil || d.BootDiagnostics.Enabled == nil || !*d.BootDiagnostics.Enabled {
		return "", "", dr.Errorf(dr.KindUnsupported, "azure."+op, "%s has no boot diagnostics: neither its serial port nor its display is kept", m.Resource())
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	r, err := h.s.VMs.RetrieveBootDiagnosticsData(ctx, m.Place.Group, m.Name, nil)
	err = arm.Classify("azure."+op, m.Resource(), err)
	return site.Str(r.SerialConsoleLogBlobURI), site.Str(r.ConsoleScreenshotBlobURI), absentVM(op, m, err)
}

// download reads a blob at a signed address; false means that there is none. The
// address's query never gets into an error.
func (h *Host) download(ctx context.Context, op string, m site.Machine, address string, limit int64) ([]byte, bool, error) {
	if address == "" {
		return nil, false, nil
	}
	fail := func(err error) error {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address
		}
		kind, code := dr.KindUnavailable, dr.CodeAzureUnreachable
		if errors.Is(err, context.Canceled) {
			kind, code = dr.KindCanceled, ""
		}
		return dr.New(kind, code, "azure."+op, "read the boot diagnostics of VM %s: %w", m.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, false, dr.Errorf(dr.KindUnavailable, "azure."+op, "Azure's address of the boot diagnostics of VM %s can't be used", m.Name)
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, false, fail(err)
	}
	defer resp.Body.Close() // only read
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, false, nil
	default:
		return nil, false, fail(fmt.Errorf("HTTP status %d %s", resp.StatusCode, resp.Header.Get("x-ms-error-code")))
	}
	// The end is what counts; blobs take no ranges that count from the end.
	var b bytes.Buffer
	for {
		_, err := io.CopyN(&b, resp.Body, limit)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, fail(err)
		}
		if int64(b.Len()) > 2*limit {
			b.Next(b.Len() - int(limit))
		}
		if limit == maxScreenshot {
			return nil, false, fail(errors.New("the picture is too large"))
		}
	}
	return b.Bytes(), true, nil
}
