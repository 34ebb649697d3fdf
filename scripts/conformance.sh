#!/bin/sh
# conformance.sh: sets the demo's stage (a vault, two KVM sites, a running VM)
# and lets the public Go SDK for Site Recovery tell the whole story on it.
set -eu
cd "$(dirname "$0")/.."
mkdir -p bin
CGO_ENABLED=0 go build -trimpath -o bin/holdfast ./cmd/holdfast
CGO_ENABLED=0 go build -trimpath -o bin/holdfast-demo ./demo

log=$(mktemp)
bin/holdfast-demo -bin bin/holdfast -stage >"$log" 2>&1 &
stage=$!
finish() {
	kill "$stage" 2>/dev/null || true
	wait "$stage" 2>/dev/null || true
	rm -f "$log"
}
trap finish EXIT INT TERM

n=0
until grep -q 'STAGE endpoint=' "$log"; do
	n=$((n + 1))
	if [ "$n" -gt 1200 ] || ! kill -0 "$stage" 2>/dev/null; then
		echo "the stage was not set:" >&2
		cat "$log" >&2
		exit 1
	fi
	sleep 0.25
done
endpoint=$(sed -n 's/.*STAGE endpoint=\([^ ]*\).*/\1/p' "$log")
cd conformance
HOLDFAST_ENDPOINT_FILE="$endpoint" HOLDFAST_STORY=1 HOLDFAST_PRIMARY_FABRIC=primary HOLDFAST_RECOVERY_FABRIC=recovery HOLDFAST_VM=ledger \
	go test -count=1 -v -timeout 15m ./...
