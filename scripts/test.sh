#!/bin/sh
# test.sh: everything, as 'make test' runs it. See README.md, section Tests.
set -eu
cd "$(dirname "$0")/.."
scripts/packages.sh test

began=$(date +%s)
step() { printf '\n== %s (%d min)\n' "$1" $((($(date +%s) - began) / 60)); }

# Everything is built without cgo, as it is shipped; only the race detector needs it. One
# way of building is compiled once.
export CGO_ENABLED=0

step "format and vet"
bad=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))
[ -z "$bad" ] || { echo "not gofmt-ed: $bad" >&2; exit 1; }
go vet ./...

step "the static binary builds for every platform"
go build -o /dev/null ./cmd/...
GOARCH=arm64 go build -o /dev/null ./cmd/...
GOOS=windows go build -o /dev/null ./cmd/...
GOOS=windows go vet ./cmd/... ./internal/...

step "tests with the race detector, without the slow ones"
CGO_ENABLED=1 go test -race -short -timeout 20m ./... "$@"

# The slow packages wait for guests and servers most of the time: they begin first, and
# three run at once. Packages whose tests don't know -short have been run already.
step "everything that is slow: real guests, real servers, chaos and the bounded slices of the long runs"
first="./internal/hypervisor/libvirt ./demo ./internal/job ./internal/hypervisor/hyperv ./internal/guesttest"
slow=$(grep -rlE 'testing\.Short\(\)|guesttest\.Main|sqldbtest|objstoretest' --include='*_test.go' . | grep -v '^./conformance/' | xargs -n1 dirname | sort -u)
go test -p 3 -timeout 25m $first $(for d in $slow; do case " $first " in *" $d "*) ;; *) echo "$d" ;; esac; done) "$@"

step "the story, driven by the public Go SDK"
scripts/conformance.sh

step "the demo, as the README says it"
HOLDFAST_DEMO_ONCE=1 make --no-print-directory demo
