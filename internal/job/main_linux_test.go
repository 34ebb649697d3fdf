package job

import (
	"os"
	"testing"

	"holdfast/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(replicaEnv); url != "" {
		replicaMain(url)
		return
	}
	sqldbtest.Main(m)
}
