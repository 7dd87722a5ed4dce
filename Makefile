# Two commands matter: make demo and make test. They install the native parts, build and run.

GO       ?= go
BIN      := build/engram
PREFIX   ?= $(HOME)/.local
FUZZTIME ?= 10s
BENCH    ?= .
CROSS    ?= linux/arm64 darwin/arm64 windows/amd64
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION)

# Tools are run at exact versions and are no dependencies of the module.
GOFUMPT     := $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT   := $(GO) run golang.org/x/perf/cmd/benchstat@v0.0.0-20260112171951-5abaabe9f1bd

# Trains the demo model's tokenizer.
BPE := tokenizers==0.23.3

# What some tests and the benchmarks compare with. engram needs none of it; without it those tests say so and skip.
PEERS    := torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
PEERS_IN ?= $(or $(ENGRAM_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/engram)/peers
WITH_PEERS = export PATH="$(PEERS_IN)/bin:$$PATH";

# The Go backend multiplies eight times faster with Go's experimental vector instructions, which exist on amd64.
ifeq ($(shell $(GO) env GOARCH),amd64)
SIMD := GOEXPERIMENT=simd
endif

# The tokenizer library is linked from the cache folder; where there is none for the system, the one in Go is used.
NATIVE = set -e; lib="$$($(GO) run ./internal/native/install tokenizers)"; tags=$${lib:+tokenizers}; \
	if [ -n "$$lib" ]; then export CGO_LDFLAGS="-O2 -g '-L$$lib'"; fi;

# The Go backend forms pointers one past the end of its slices, which -race takes for errors unless told not to.
RACE := -race -gcflags=github.com/gomlx/compute/...=-d=checkptr=0

.DEFAULT_GOAL := help
.PHONY: help setup peers screens build install demo train-demo test test-all test-race test-nocgo cross lint fmt notices bench benchcmp fuzz proof-demo proof-editing cover clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the native parts into the cache folder; done by the others where needed
	@$(GO) run ./internal/native/install tokenizers xla-cpu

peers: ## install PyTorch, transformers and peft (6 GB) for the tests that compare with them, into the cache folder
	@test -f "$(PEERS_IN)/ready" || { python3 -m venv "$(PEERS_IN)" && \
		"$(PEERS_IN)/bin/pip" install -q --no-compile $(PEERS) && touch "$(PEERS_IN)/ready"; }

screens: ## install tmux and Chromium (Debian, as root), in which tests look at the browser and at pages
	@{ command -v tmux && command -v chromium; } > /dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends tmux chromium; } > /dev/null

build: setup ## build/engram
	@mkdir -p build
	@$(NATIVE) $(SIMD) $(GO) build -trimpath -tags "$$tags" -ldflags "$(LDFLAGS)" -o $(BIN) ./cmd/engram

install: build ## copy build/engram to PREFIX/bin (default ~/.local/bin)
	install -d "$(PREFIX)/bin"
	install -m 755 $(BIN) "$(PREFIX)/bin/engram"

demo: build ## what a real model's memories do to a sentence
	@$(BIN) demo

train-demo: setup ## train the demo model anew, in build/demo; about 40 minutes, needs python3 for the tokenizer
	@mkdir -p build
	@test -x build/python/bin/python || { python3 -m venv build/python && build/python/bin/pip install -q $(BPE); }
	@$(NATIVE) $(SIMD) $(GO) run -tags "$$tags" ./cmd/engram-train --out build/demo --python build/python/bin/python

proof-demo: setup ## ask the demo model everything; rewrite its 240 facts, score paraphrases and neighbours; about six minutes
	@$(NATIVE) $(SIMD) ENGRAM_DEMO_RECORDS=240 ENGRAM_DEMO_QUESTIONS=all ENGRAM_TEST_BACKENDS=xla:cpu \
		$(GO) test -tags "$$tags" -timeout 60m -count 1 -run 'TestDemo(Model|FactsCanBeRewritten)$$' -v ./cmd/engram-train ./editing

test: test-all test-race test-nocgo cross ## all tests: both backends, coverage; race detector; without cgo; other systems

# test-all runs every test once, on both backends. The other two run again what can turn out differently there, which is
# little of the arithmetic (backendtest.Long): the race detector sees Go code only, so the Go backend shows it everything;
# without cgo another tokenizer and other matrix products are compiled in. Coverage is of each package by its own tests:
# with -coverpkg=./... every test binary would be compiled anew from all packages, and counts in every inner loop.
test-all: setup
	@mkdir -p build
	@$(NATIVE) $(WITH_PEERS) $(SIMD) ENGRAM_TEST_BACKENDS=$${ENGRAM_TEST_BACKENDS:-go,xla:cpu} \
		$(GO) test -tags "$$tags" -timeout 40m -covermode=set -coverprofile=build/coverage.out ./...
	@$(GO) tool cover -func=build/coverage.out | tail -1

# Packages whose code or tests start goroutines or lock something; the others have nothing to race with.
RACY = $$(grep -rlE --include=*.go '(^|[^/])\bgo func|errgroup|sync\.(Mutex|RWMutex|WaitGroup)|"sync/atomic"' . | xargs -n1 dirname | sort -u)

test-race: setup
	@$(NATIVE) $(SIMD) ENGRAM_TEST_BACKENDS=go $(GO) test $(RACE) -short -tags "$$tags" -timeout 20m $(RACY)

test-nocgo:
	CGO_ENABLED=0 $(GO) test -short -timeout 20m ./...

# Each system and each processor once: to compile everything for one more takes a minute and a half.
cross: ## compile and vet without cgo for Linux, macOS and Windows; CROSS="linux/amd64 darwin/amd64 windows/arm64" for the rest
	@set -e; for target in $(CROSS); do \
		echo "$$target"; \
		export CGO_ENABLED=0 GOOS="$${target%/*}" GOARCH="$${target#*/}"; \
		$(GO) vet ./...; \
		$(GO) build -o /dev/null ./cmd/engram; \
	done

lint: ## format, vet, staticcheck and the project's own rules
	@bad="$$($(GOFUMPT) -l .)"; if [ -n "$$bad" ]; then echo "make fmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet -tags tokenizers ./...
	$(STATICCHECK) -tags tokenizers ./...
	$(GO) run ./internal/lint
	$(GO) run ./internal/notices -check

fmt: ## format all Go files
	$(GOFUMPT) -w .

notices: ## write THIRD_PARTY_NOTICES.md from the module cache
	$(GO) run ./internal/notices

bench: build peers ## beside PyTorch, in turn; then benchmarks (BENCH=regexp)
	@$(NATIVE) $(WITH_PEERS) $(SIMD) $(GO) run -tags "$$tags" ./bench
	@$(NATIVE) $(WITH_PEERS) $(SIMD) $(GO) run -tags "$$tags" ./bench -only loading
	@if [ -f build/bench.txt ]; then mv build/bench.txt build/bench.old.txt; fi
	@$(NATIVE) $(SIMD) $(GO) test -tags "$$tags" -run '^$$' -bench '$(BENCH)' -benchmem ./... | tee build/bench.txt

benchcmp: ## compare the last two runs of make bench
	$(BENCHSTAT) build/bench.old.txt build/bench.txt

fuzz: setup ## every fuzz target for FUZZTIME (default 10s)
	@$(NATIVE) for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -tags "$$tags" -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -tags "$$tags" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
		done; \
	done

proof-editing: setup ## the editors against the reference on all records, and long sequences of edits; about 30 minutes
	@$(NATIVE) $(SIMD) ENGRAM_PROOF=1 ENGRAM_TEST_BACKENDS=xla:cpu XLA_FLAGS= \
		$(GO) test -tags "$$tags" -timeout 120m -v -run '^(TestProof|TestTraceReference$$)' ./editing

cover: test-all ## coverage by function, and build/coverage.html
	@$(GO) tool cover -func=build/coverage.out
	@$(GO) tool cover -html=build/coverage.out -o build/coverage.html

clean: ## remove what was built here; the cache folder stays
	rm -rf build
