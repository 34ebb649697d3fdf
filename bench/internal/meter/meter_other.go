//go:build !linux

package meter

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// The measurements need /proc, rusage, sparse files and control of the page cache as Linux has them.
var errLinuxOnly = fmt.Errorf("bench runs on Linux only: %w", errors.ErrUnsupported)

func SelfCPU() (time.Duration, error)       { return 0, errLinuxOnly }
func ProcessCPU(int) (time.Duration, error) { return 0, errLinuxOnly }
func PeakRSS() (int64, error)               { return 0, errLinuxOnly }
func LoadAverage() (l [3]float64)           { return l }
func Machine() (string, int64)              { return "unknown", 0 }
func EnoughSpace(string, int64) error       { return errLinuxOnly }
func Chill(string) error                    { return errLinuxOnly }
func Allocated(st fs.FileInfo) int64        { return st.Size() }
