package windows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"holdfast/internal/guestcheck/regf"
	"holdfast/internal/readiness"
)

// The boot store is a hive: Objects\{guid}\Elements\{type}, value Element
// (Microsoft, "Boot Configuration Data"; BcdBootMgrElementTypes and others).
const (
	bootManager = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"

	elementDevice  = "11000001"
	elementPath    = "12000002"
	elementSystem  = "21000001" // device of the operating system
	elementDefault = "23000003"
	elementBootEMS = "26000020"
	elementEMS     = "260000b0"
)

// places are where the firmware's loader looks for the boot store.
func (i *inspection) places() (files []string, fits func(Volume) bool) {
	const bios, uefi = "/Boot/BCD", "/EFI/Microsoft/Boot/BCD"
	switch i.in.Generation {
	case 1:
		return []string{bios}, func(v Volume) bool { return v.OnBoot && v.Active }
	case 2:
		return []string{uefi}, func(v Volume) bool { return v.OnBoot && v.ESP }
	}
	return []string{bios, uefi}, func(v Volume) bool { return v.OnBoot && (v.Active || v.ESP) }
}

// bootStore checks that there is a boot store where the firmware's loader wants
// it, and that it starts a Windows which is there.
func (i *inspection) bootStore() {
	files, fits := i.places()
	looked, unread := 0, 0
	for _, v := range i.in.Volumes {
		if !fits(v) {
			continue
		}
		if looked++; v.Files == nil {
			unread++
			i.skipStore(v.Name, fmt.Sprintf("the volume can't be read: %v", v.Err))
			continue
		}
		for _, name := range files {
			f, err := v.Files.Open(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			var h *regf.Hive
			if err == nil {
				h, err = regf.Open(f, f.Size())
			}
			if err == nil {
				i.out.Ran(Firmware)
				err = i.store(h, v.Name+":"+name, name)
			}
			if err != nil {
				i.skipStore(v.Name+":"+name, fmt.Sprintf("the boot store can't be read: %v", err))
			}
			return
		}
	}
	switch {
	case looked == 0:
		i.skipStore("", "it is not known which volume the boot store (BCD) lies on")
	case unread == 0:
		i.out.Found(Firmware, readiness.Blocks, "", "Make it anew at the source with bcdboot C:\\Windows.", "there is no boot store (BCD) where the loader of this firmware looks for it: "+strings.Join(files, " or "))
		for _, a := range []Area{Root, Console} {
			i.out.Skip(a, "", "there is no boot store (BCD)")
		}
	}
}

func (i *inspection) skipStore(object, because string) {
	for _, a := range []Area{Firmware, Root, Console} {
		i.out.Skip(a, object, because)
	}
}

func element(h *regf.Hive, object, kind string) (regf.Value, answer, error) {
	k, err := h.Key(`Objects\` + object + `\Elements\` + kind)
	var v regf.Value
	if err == nil {
		v, err = k.Value("Element")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return v, absent, nil
	}
	return v, have, err
}

// store looks at the default entry. An error means that nothing more is known.
func (i *inspection) store(h *regf.Hive, object, file string) error {
	v, is, err := element(h, bootManager, elementDefault)
	if err != nil {
		return err
	}
	entry := v.Text()
	if is == absent || entry == "" {
		for _, a := range []Area{Root, Console} {
			i.out.Skip(a, object, "the boot store names no default entry")
		}
		return nil
	}
	if _, err := h.Key(`Objects\` + entry); errors.Is(err, fs.ErrNotExist) {
		i.out.Found(Root, readiness.Blocks, object, "Correct it at the source with bcdedit /default.", "the boot store's default entry "+entry+" does not exist")
		return nil
	} else if err != nil {
		return err
	}
	path, is, err := element(h, entry, elementPath)
	if err != nil {
		return err
	}
	uefi := strings.HasPrefix(file, "/EFI/")
	if p := strings.ToLower(path.Text()); is == have && (uefi && strings.HasSuffix(p, ".exe") || !uefi && strings.HasSuffix(p, ".efi")) {
		i.out.Found(Root, readiness.Blocks, object, "Make the boot store anew at the source with bcdboot.", "the boot store's default entry starts "+path.Text()+", which is for the other kind of firmware")
	}
	for _, e := range []string{elementDevice, elementSystem} {
		v, is, err := element(h, entry, e)
		if err != nil {
			return err
		}
		if is == have {
			i.device(object, v.Data)
		}
	}
	return i.ems(h, entry, object)
}

// device checks that a partition of the boot store is there. The layout: a GUID,
// the type at 16 (6 = a partition), the partition's GUID or offset in bytes at
// 32, the style at 52 (0 = GPT, 1 = MBR), the disk's id at 56.
func (i *inspection) device(object string, b []byte) {
	le := binary.LittleEndian
	if len(b) < 72 || le.Uint32(b[16:]) != 6 {
		i.out.Ran(Root) // such as locate=, which looks on all volumes
		return
	}
	p, style := b[32:48], le.Uint32(b[52:])
	want, is := "", func(Volume) bool { return false }
	switch {
	case style == 0:
		id := fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(p), le.Uint16(p[4:]), le.Uint16(p[6:]), p[8:10], p[10:])
		want, is = "partition "+id, func(v Volume) bool { return strings.EqualFold(v.PartUUID, id) }
	case style == 1 && bytes.Equal(p[8:], make([]byte, 8)):
		start := int64(le.Uint64(p))
		want, is = fmt.Sprintf("a partition at byte %d", start), func(v Volume) bool { return v.Start == start }
	default:
		i.out.Skip(Root, object, "the boot store names the partition of Windows in a way that is not known")
		return
	}
	i.out.Ran(Root)
	for _, v := range i.in.Volumes {
		if is(v) {
			return
		}
	}
	if !i.in.Whole {
		i.out.Skip(Root, object, "the boot store names "+want+", and not all partition tables can be used")
		return
	}
	i.out.Found(Root, readiness.Blocks, object, "Do not exclude the disk, or correct the boot store with bcdboot.", "none of the replicated disks has the partition that the boot store starts Windows from: "+want)
}

// ems: without Emergency Management Services nothing is seen at the serial console.
func (i *inspection) ems(h *regf.Hive, entry, object string) error {
	on := true
	for _, e := range [][2]string{{bootManager, elementBootEMS}, {entry, elementEMS}} {
		v, is, err := element(h, e[0], e[1])
		if err != nil {
			return err
		}
		on = on && is == have && len(v.Data) > 0 && v.Data[0] != 0
	}
	i.out.Ran(Console)
	if !on && i.in.Target == "azure" {
		i.out.Found(Console, readiness.Notes, object, "bcdedit /ems {current} on; bcdedit /bootems {bootmgr} on.", "the serial console (Emergency Management Services) is not on for boot manager and Windows: nothing is seen there of a boot that fails")
	}
	return nil
}
