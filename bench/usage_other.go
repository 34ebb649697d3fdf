//go:build !linux

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"holdfast/internal/extent"
)

// The measurements need /proc, rusage, sparse files and control of the page cache as Linux has them.
var errLinuxOnly = fmt.Errorf("bench runs on Linux only: %w", errors.ErrUnsupported)

func selfCPU() (time.Duration, error)                       { return 0, errLinuxOnly }
func processCPU(int) (time.Duration, error)                 { return 0, errLinuxOnly }
func peakRSS() (int64, error)                               { return 0, errLinuxOnly }
func loadAverage() (l [3]float64)                           { return l }
func hostInfo() Host                                        { return Host{} }
func enoughSpace(string, int64) error                       { return errLinuxOnly }
func holes(*os.File, int64, int64) ([]extent.Extent, error) { return nil, errLinuxOnly }
func chill(string) error                                    { return errLinuxOnly }
