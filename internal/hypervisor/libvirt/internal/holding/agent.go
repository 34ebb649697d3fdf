package holding

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// When an agent dies and is started again at once, libvirt 9.0 may never connect
// to it again: QEMU reports at most one change of the channel a second. If the
// guest is frozen then, nobody else could thaw it, so the agent is asked without
// libvirt. That works if libvirt has let go of the channel, which takes one
// client; else there is no answer in time.

// thawDirectly talks to the guest agent by its channel's socket.
func (k *Keeper) thawDirectly(ctx context.Context, dom golibvirt.Domain) (int32, error) {
	root, err := k.virt.Tree(ctx, "Thaw", dom, virt.Live)
	if err != nil {
		return 0, err
	}
	path := domxml.AgentSocket(root)
	if path == "" {
		return 0, errors.New("the VM has no channel for a guest agent")
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.AgentTimeout)
	defer cancel()
	n, err := askToThaw(ctx, path)
	if err == nil {
		k.cfg.Log.Warn("a guest was thawed without libvirt, which had lost its agent", "vm", dom.Name)
	}
	return n, err
}

// maxAgentLine bounds an answer; those asked for have a few bytes.
const maxAgentLine = 64 << 10

// askToThaw thaws the guest whose agent is behind a socket and lets it confirm
// that. Protocol: QEMU's qga/qapi-schema.json, one JSON object a line; the byte
// 0xff makes the agent, and in the answer to guest-sync-delimited us, drop what came before.
func askToThaw(ctx context.Context, path string) (int32, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t) // a socket takes it
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	return thawOver(c)
}

// thawOver is the conversation.
func thawOver(c io.ReadWriter) (int32, error) {
	r := bufio.NewReaderSize(c, maxAgentLine)
	ask := func(cmd string, result any) error {
		if _, err := io.WriteString(c, cmd+"\n"); err != nil {
			return err
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		var ans struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &ans); err != nil {
			return fmt.Errorf("answer of the guest agent: %w", err)
		}
		if ans.Error != nil {
			return fmt.Errorf("the guest agent refused: %s", ans.Error.Desc)
		}
		return json.Unmarshal(ans.Return, result)
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	id := binary.BigEndian.Uint32(b[:]) >> 1
	if _, err := fmt.Fprintf(c, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id); err != nil {
		return 0, err
	}
	for {
		if err := skipTo(r, 0xff); err != nil {
			return 0, err
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		var ans struct{ Return uint32 }
		if json.Unmarshal(line, &ans) == nil && ans.Return == id {
			break
		}
	}
	var count int32
	if err := ask(`{"execute":"guest-fsfreeze-thaw"}`, &count); err != nil {
		return 0, err
	}
	var status string
	if err := ask(`{"execute":"guest-fsfreeze-status"}`, &status); err != nil {
		return 0, err
	}
	if status != "thawed" {
		return 0, fmt.Errorf("the guest agent says %q", status)
	}
	return count, nil
}

func skipTo(r *bufio.Reader, b byte) error {
	for {
		switch c, err := r.ReadByte(); {
		case err != nil:
			return err
		case c == b:
			return nil
		}
	}
}
