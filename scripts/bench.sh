#!/bin/sh
# bench.sh: measures the data plane beside its peers and writes bench.json, as
# 'make bench' runs it. See docs/performance.md. Arguments go to the program.
set -eu
cd "$(dirname "$0")/.."
mkdir -p bin
export CGO_ENABLED=0
# With the commit in it, where git can say it.
go build -trimpath -buildvcs=true -o bin/bench ./bench 2>/dev/null || go build -trimpath -o bin/bench ./bench
exec bin/bench "$@"
