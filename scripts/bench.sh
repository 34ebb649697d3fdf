#!/bin/sh
# bench.sh: measures the data plane beside its peers and writes bench.json, as
# 'make bench' runs it. See docs/performance.md. Arguments go to the program.
set -eu
cd "$(dirname "$0")/.."
mkdir -p bin
CGO_ENABLED=0 go build -trimpath -o bin/bench ./bench
exec bin/bench "$@"
