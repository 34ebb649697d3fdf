package guestcheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck/ext4"
	"holdfast/internal/guestcheck/fat"
	"holdfast/internal/guestcheck/layout"
)

// Fix is a change of one file on a side layer. It is complete in itself: it can
// be stored, shown and applied later to the same recovery point.
type Fix struct {
	Check   CheckID        `json:"check"`
	Disk    string         `json:"disk"`
	Start   int64          `json:"start"` // of the volume on the disk, bytes
	Size    int64          `json:"size"`  // of the volume, bytes
	Content layout.Content `json:"content"`
	File    string         `json:"file"`
	What    string         `json:"what"`
	Changes []Change       `json:"changes"`           // line by line
	Refused string         `json:"refused,omitempty"` // why it can't be applied safely; then it is not
	Before  string         `json:"before"`            // the whole file
	After   string         `json:"after"`
}

// Change is a line before and after.
type Change struct {
	Line   int    `json:"line"` // from 1
	Before string `json:"before"`
	After  string `json:"after"`
}

// Outcome is what became of a fix.
type Outcome struct {
	Fix     Fix    `json:"fix"`
	Applied bool   `json:"applied"`
	Reason  string `json:"reason,omitempty"` // why it was not
}

// Plan returns the fixes for what a report found, those that can't be applied
// safely included, with the reason.
func Plan(r Report) []Fix { return slices.Clone(r.fixes) }

// Apply applies fixes to side layers, by disk. A fix that does not fit is
// refused with a reason and changes nothing. An error means that a layer could
// not be read or written: throw all layers away. Run Check on the layers afterwards.
func Apply(ctx context.Context, layers map[string]Layer, fixes []Fix) ([]Outcome, error) {
	var out []Outcome
	for _, f := range fixes {
		o := Outcome{Fix: f, Reason: f.Refused}
		l, ok := layers[f.Disk]
		switch {
		case f.Refused != "":
		case !ok:
			o.Reason = fmt.Sprintf("there is no side layer for disk %s", f.Disk)
		default:
			err := apply(ctx, l, f)
			if e := ctx.Err(); e != nil {
				return out, fmt.Errorf("apply fixes: %w", e)
			}
			var hard *layerError
			if errors.As(err, &hard) {
				return out, dr.Errorf(dr.KindUnavailable, "guestcheck.Apply", "change %s on the side layer of disk %s: %w", f.File, f.Disk, hard.err)
			}
			if err != nil {
				o.Reason = err.Error()
			}
			o.Applied = err == nil
		}
		out = append(out, o)
	}
	return out, nil
}

// layerError is a layer that failed half way.
type layerError struct{ err error }

func (e *layerError) Error() string { return e.err.Error() }

// apply tries the fix on a layer of its own first.
func apply(ctx context.Context, l Layer, f Fix) error {
	stage := NewOverlay(l)
	if f.Start < 0 || f.Size <= 0 || f.Start > l.Size()-f.Size {
		return fmt.Errorf("the volume at %d lies outside of the disk", f.Start)
	}
	fsys, err := f.open(ctx, stage)
	if err != nil {
		return err
	}
	if now, err := content(fsys, f.File); err != nil {
		return err
	} else if now != f.Before {
		return fmt.Errorf("%s is not what it was when the fix was planned", f.File)
	}
	writes, err := rewrite(fsys, f.File, f.After)
	if err != nil {
		return err
	}
	for _, w := range writes {
		if w.Off < 0 || w.Off+int64(len(w.Data)) > f.Size {
			return fmt.Errorf("%s lies outside of its volume", f.File)
		}
		if err := stage.WriteAt(ctx, w.Data, f.Start+w.Off); err != nil {
			return err
		}
	}
	if fsys, err = f.open(ctx, stage); err != nil {
		return fmt.Errorf("the volume can't be read after the change: %w", err)
	}
	if now, err := content(fsys, f.File); err != nil || strings.TrimRight(now, "\n") != strings.TrimRight(f.After, "\n") {
		return fmt.Errorf("%s is not right after the change: %v", f.File, err)
	}
	for _, p := range stage.Pieces() {
		if err := l.WriteAt(ctx, p.Data, p.Off); err != nil {
			return &layerError{err}
		}
	}
	return nil
}

func (f Fix) open(ctx context.Context, d Disk) (fileSystem, error) {
	dev := section(newDevice(ctx, d, &budget{left: defaultMaxRead}), f.Start, f.Size)
	switch f.Content {
	case layout.Ext:
		return ext4.Open(dev, f.Size)
	case layout.FAT:
		return fat.Open(dev, f.Size)
	}
	return nil, fmt.Errorf("files on %s can't be rewritten in place", f.Content)
}

func content(fsys fileSystem, name string) (string, error) {
	r, err := fsys.Open(name)
	if err != nil {
		return "", err
	}
	if r.Size() > maxText {
		return "", fmt.Errorf("%s is larger than %d bytes", name, maxText)
	}
	b, err := io.ReadAll(r)
	return string(b), err
}

func rewrite(fsys fileSystem, name, after string) ([]ext4.Write, error) {
	switch f := fsys.(type) {
	case *ext4.FS:
		return f.Rewrite(name, []byte(after))
	case *fat.FS:
		ws, err := f.Rewrite(name, []byte(after))
		out := make([]ext4.Write, len(ws))
		for k, w := range ws {
			out[k] = ext4.Write(w)
		}
		return out, err
	}
	return nil, fmt.Errorf("%s: this file system is only read", name)
}

// plan adds a fix, and finds out now whether it fits.
func (c *checker) plan(id CheckID, v *volume, file, what, before, after, refused string) {
	f := Fix{Check: id, Disk: v.Disk, Start: v.start, Size: v.Size, Content: v.Content, File: file, What: what, Before: before, After: after, Refused: refused}
	if refused == "" && !v.logical {
		if _, err := rewrite(v.fs, file, after); err != nil {
			f.Refused = err.Error()
		}
	} else if refused == "" {
		f.Refused = "the file lies on a logical volume"
	}
	a, b := strings.Split(after, "\n"), strings.Split(before, "\n")
	for k := range b {
		ch := Change{Line: k + 1, Before: b[k]}
		if k < len(a) {
			ch.After = a[k]
		}
		if ch.Before != ch.After {
			f.Changes = append(f.Changes, ch)
		}
	}
	c.r.fixes = append(c.r.fixes, f)
}

// planFstab names devices by UUID where it is certain which one is meant: on the
// disk that the entry for / proves to be the one with that name.
func (c *checker) planFstab(s string) {
	entries := parseFstab(s)
	proved := "" // such as /dev/sda
	for _, e := range entries {
		if v := c.byName(e.device); e.mount == "/" && v == c.root && v != nil {
			proved = strings.TrimRight(e.device, "0123456789")
		}
	}
	var refused []string
	after, changed := strings.Builder{}, false
	for line := range strings.Lines(s) {
		es := parseFstab(line)
		if len(es) == 0 || !unstable.MatchString(es[0].device) {
			after.WriteString(line)
			continue
		}
		e := es[0]
		v := c.byName(e.device)
		switch {
		case v == nil || v.UUID == "" || proved == "" || strings.TrimRight(e.device, "0123456789") != proved || !holds(v.Content, e.kind):
			refused = append(refused, e.device)
			after.WriteString(line)
		default:
			changed = true
			after.WriteString(strings.Replace(line, e.device, "UUID="+v.UUID, 1))
		}
	}
	const what = "name file systems by UUID in /etc/fstab"
	if changed {
		c.plan(CheckFstab, c.root, "/etc/fstab", what, s, after.String(), "")
	}
	if len(refused) > 0 {
		c.plan(CheckFstab, c.root, "/etc/fstab", what, s, s, "it is not certain which file system is meant by "+strings.Join(refused, ", "))
	}
}

// holds tells whether a volume's content agrees with the type in fstab.
func holds(have layout.Content, kind string) bool {
	switch kind {
	case "ext2", "ext3", "ext4":
		return have == layout.Ext
	case "vfat", "msdos":
		return have == layout.FAT
	}
	return string(have) == kind
}

const consoleArgs = " console=tty0 console=ttyS0,115200n8"

// planConsole adds the serial console to the kernel's arguments, in the boot
// loader's own files. A later update-grub in the guest takes it away again.
func (c *checker) planConsole() {
	done := map[string]bool{}
	for _, e := range c.entries {
		if done[e.object()] || slices.ContainsFunc(e.args, func(a string) bool { return strings.HasPrefix(a, "console=ttyS0") }) {
			continue
		}
		done[e.object()] = true
		s, ok := c.text(CheckConsole, e.v, e.file)
		if !ok {
			continue
		}
		var words []string
		switch base := path.Base(e.file); {
		case strings.HasPrefix(base, "grub") || base == "menu.lst":
			words = []string{"linux", "linux16", "linuxefi", "kernel"}
		case strings.Contains(e.file, "/loader/entries/"):
			words = []string{"options"}
		default:
			words = []string{"append"}
		}
		after := strings.Builder{}
		for line := range strings.Lines(s) {
			f := strings.Fields(line)
			body := strings.TrimRight(line, "\r\n")
			if len(f) < 2 || !slices.Contains(words, strings.ToLower(f[0])) || strings.Contains(body, "console=ttyS0") || strings.HasSuffix(body, `\`) || strings.HasSuffix(f[1], ".c32") {
				after.WriteString(line)
				continue
			}
			after.WriteString(strings.TrimRight(body, " \t") + consoleArgs + line[len(body):])
		}
		refused := ""
		if after.String() == s {
			refused = "the file has no line that the arguments could be added to"
		}
		c.plan(CheckConsole, e.v, e.file, "add the serial console to the kernel's arguments", s, after.String(), refused)
	}
}

// planBlank comments all rules out by emptying the file, as far as its block allows.
func (c *checker) planBlank(file, s string) {
	c.plan(CheckNames, c.root, file, "blank the rules that name interfaces by the source's MAC addresses", s, "# Blanked on the recovery copy by Holdfast.\n", "")
}
