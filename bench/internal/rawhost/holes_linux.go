package rawhost

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/extent"
)

// holes lists the holes of a sparse file in [off, off+length).
func holes(f *os.File, off, length int64) ([]extent.Extent, error) {
	var out []extent.Extent
	fd, end := int(f.Fd()), off+length
	for off < end {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data from here on
			data = end
		case err != nil:
			return nil, fmt.Errorf("look for holes of %s: %w", f.Name(), err)
		}
		data = min(data, end)
		if data > off {
			out = append(out, extent.Extent{Off: off, Len: data - off})
		}
		if off = data; off >= end {
			break
		}
		if off, err = unix.Seek(fd, off, unix.SEEK_HOLE); err != nil {
			return nil, fmt.Errorf("look for holes of %s: %w", f.Name(), err)
		}
	}
	return out, nil
}
