# SQLite's driver is C.
export CGO_ENABLED = 1

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
SOAK ?= 10m
ARGS ?=
# The race detector waits for a second before a program ends, for goroutines that are
# left; the tests leave none.
GORACE ?= atexit_sleep_ms=10

# Symbols for debuggers take the linker half of its time. A slow machine has the time it
# needs.
GO_TEST = SMALLBEN_REQUIRE_POSTGRES=1 GORACE="$(GORACE)" go test -race -shuffle=on -ldflags=-w -timeout=30m

# Modules of their own, so that no user downloads what they depend on: the peers
# of the benchmark, a queue, and a driver of browsers.
MODULES = . $(patsubst %/go.mod,%,$(wildcard bench/go.mod examples/*/go.mod console/*/go.mod))

.PHONY: help demo test test-packages test-river test-browser lint bench soak cover pictures

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run persistent jobs on a SQLite file; stop with Ctrl-C, and start again (ARGS="-for 5s" ends by itself)
	@sh scripts/setup.sh compiler
	go run ./examples/basic $(ARGS)

test: ## run all tests, race detector on, on SQLite and a PostgreSQL of their own
	@sh scripts/setup.sh compiler
	@sh scripts/setup.sh postgres
	@[ "$$CI" != true ] || { sh scripts/setup.sh prometheus && sh scripts/setup.sh pgbouncer; }
	@sh scripts/setup.sh chromium || [ "$$CI" != true ]
	@$(MAKE) --no-print-directory -j 3 test-packages test-river test-browser
	$(GO_TEST) ./test

# They wait for much of their time, and so run side by side; only the processes of
# ./test, which kill and delay each other, are tested alone.
test-packages:
	$(GO_TEST) -p 2 $$(go list ./... | grep -v '/test$$')

test-river:
	cd examples/river && $(GO_TEST) ./...

test-browser:
	cd console/browsertest && SMALLBEN_REQUIRE_POSTGRES=1 go test -shuffle=on -timeout=30m ./...

lint: ## gofmt, go vet, staticcheck, go mod tidy: any finding fails
	@sh scripts/setup.sh compiler
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt -w these:"; echo "$$out"; exit 1; fi
	@for module in $(MODULES); do \
		(cd $$module && set -ex && go vet ./... && go run $(STATICCHECK) ./... && go mod tidy -diff) || exit 1; \
	done

bench: ## run the benchmarks of the hot paths
	@sh scripts/setup.sh compiler
	go test -run '^$$' -bench . -benchmem ./...

soak: ## run everything at random for SOAK=10m
	@sh scripts/setup.sh compiler
	@sh scripts/setup.sh postgres
	SMALLBEN_REQUIRE_POSTGRES=1 SMALLBEN_SOAK=$(SOAK) go test -race -run Soak -count=1 -timeout=0 -v . ./test
	SMALLBEN_SOAK=$(SOAK) go test -run AgreesWithBruteForce -count=1 -timeout=0 -v ./internal/walltime

cover: ## say which statements the tests do not reach
	@sh scripts/setup.sh compiler
	@sh scripts/setup.sh postgres
	SMALLBEN_REQUIRE_POSTGRES=1 go test -coverpkg=. -coverprofile=cover.out . ./test
	@go tool cover -func=cover.out | awk '$$3 != "100.0%"'

pictures: ## draw the pictures of the console in the README anew
	@sh scripts/setup.sh compiler
	@sh scripts/setup.sh chromium
	cd console/browsertest && SMALLBEN_PICTURES=$(CURDIR)/docs/console go test -count=1 -run Pictures ./...
