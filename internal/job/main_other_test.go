//go:build !linux

package job

import (
	"testing"

	"holdfast/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { sqldbtest.Main(m) }
