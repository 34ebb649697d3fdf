#!/bin/sh
# demo.sh: builds holdfast and plays the story, as 'make demo' does. See README.md.
set -eu
cd "$(dirname "$0")/.."
mkdir -p bin
echo "Building…"
CGO_ENABLED=0 go build -trimpath -o bin/holdfast ./cmd/holdfast
CGO_ENABLED=0 go build -trimpath -o bin/holdfast-demo ./demo
exec bin/holdfast-demo -bin bin/holdfast -report demo-report.json
