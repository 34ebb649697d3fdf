package ledger

import (
	"embed"
	"io/fs"
	"strings"
)

//go:embed *.go guest/*.go
var source embed.FS

// ModulePath is the import path prefix under which GuestSource must be laid out: module "holdfast", directory internal/ledger.
const ModulePath = "holdfast"

// GuestSource returns the Go sources (tests left out) of this package and of
// the guest program below it, path → text. They need nothing but the standard
// library, so the program can be compiled anywhere, whoever runs the test and wherever the repository is.
func GuestSource() (map[string][]byte, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(source, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files[path], err = source.ReadFile(path)
		return err
	})
	return files, err
}
