#!/bin/sh
# test.sh: everything, as 'make test' runs it. See README.md, section Tests.
set -eu
cd "$(dirname "$0")/.."
scripts/packages.sh test

step() { printf '\n== %s\n' "$1"; }

step "format and vet"
bad=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))
[ -z "$bad" ] || { echo "not gofmt-ed: $bad" >&2; exit 1; }
go vet ./...

step "the static binary builds for every platform, without cgo"
for t in linux/amd64 linux/arm64 windows/amd64; do
	echo "$t"
	CGO_ENABLED=0 GOOS=${t%/*} GOARCH=${t#*/} go build -o /dev/null ./cmd/...
	CGO_ENABLED=0 GOOS=${t%/*} GOARCH=${t#*/} go vet ./cmd/... ./internal/...
done

step "tests with the race detector, without the slow ones"
go test -race -short -timeout 20m ./... "$@"

step "everything: real guests, real servers, chaos and the bounded slices of the long runs"
go test -timeout 25m ./... "$@"

step "the story, driven by the public Go SDK"
scripts/conformance.sh

step "the demo, as the README says it"
HOLDFAST_DEMO_ONCE=1 make --no-print-directory demo
