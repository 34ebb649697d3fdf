# The two commands that matter are 'make demo' and 'make test'. See README.md.
.PHONY: demo test build bench clean

demo:
	@scripts/packages.sh demo
	@scripts/demo.sh

test:
	@scripts/test.sh

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

bench:
	@scripts/packages.sh bench
	@scripts/bench.sh

clean:
	rm -rf bin demo-report.json bench.json
