# Sluice. The two commands to know: make demo, make test. Everything they need is set up by themselves.

SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .build
# Debian packages: to build, to run the demo and the tests, to measure.
APT_build := clang llvm libbpf-dev libbpf1 bpftool python3-venv
APT_try := nginx-light curl iproute2 util-linux wrk
APT_bench := haproxy
APT_kafka := default-jdk-headless maven kcat
# Go, Node and their like may be there without a package.
APT_programs = haproxy default-jdk-headless $(if $(shell command -v go),,golang-go) $(if $(shell command -v npm),,nodejs npm)
APT_allprograms := apache2 php-cli wget maven
PROGRAMS := $(STAMP)/programs
FUZZ_TARGET := http1
BPF_OBJECTS := bpf/redirect.bpf.o bpf/verdict.bpf.o bpf/existing.bpf.o
ARCH_INCLUDE := /usr/include/$(shell uname -m)-linux-gnu

.PHONY: help demo test lint type bench soak image bpf abi layouts setup kafka programs allprograms fuzz clean
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: setup kafka ## Run the agent on a small real system; exit 0 only if all came out as the policies say
	@$(PY) -m tests.demo

test: setup kafka programs ## Run every test, the end-to-end ones by the relay and by the kernel, side by side (BPF tests need root and are skipped with the reason without it)
	@$(PY) -m tests

lint: setup ## ruff and the import contracts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-cache

type: setup ## mypy --strict
	@.venv/bin/mypy

bench: setup kafka $(STAMP)/apt-bench ## Measure side by side with direct, Envoy and haproxy, and Kafka beside direct; writes bench/results/
	@.venv/bin/pip install -q -e '.[bench]' && $(PY) -m bench $(BENCH)

soak: setup kafka allprograms ## The same tests with the huge counts (SOAK="tests/e2e/test_kernel_torture.py": a million mixed calls, some 7 minutes)
	@SLUICE_SOAK=1 $(PY) -m pytest --timeout 3600 $(SOAK)

fuzz: setup ## Coverage-guided fuzzing of a parser (FUZZ_TARGET=http1 or kafka, FUZZ=-max_total_time=60)
	@.venv/bin/pip install -q -e '.[fuzz]' && $(PY) -m tests.fuzz.fuzz_$(FUZZ_TARGET) $(FUZZ)

image: ## Build the container image
	docker build -t sluice .

bpf: $(BPF_OBJECTS) ## Compile the BPF programs

abi: bpf $(STAMP)/venv ## Generate bpf/abi.py from the compiled objects
	@$(PY) -m bpf.generate_abi $(BPF_OBJECTS) > bpf/abi.py.new && mv bpf/abi.py.new bpf/abi.py
	@.venv/bin/ruff format -q bpf/abi.py

layouts: $(STAMP)/venv ## Generate parsers/kafka/{layouts,messages}.py from Kafka's own definitions
	@$(PY) -m parsers.kafka.generate > parsers/kafka/layouts.py.new && mv parsers/kafka/layouts.py.new parsers/kafka/layouts.py
	@$(PY) -m parsers.kafka.generate_messages > parsers/kafka/messages.py.new && mv parsers/kafka/messages.py.new parsers/kafka/messages.py
	@.venv/bin/ruff format -q parsers/kafka/layouts.py parsers/kafka/messages.py

setup: $(STAMP)/apt-try $(STAMP)/venv $(BPF_OBJECTS)

kafka: $(STAMP)/kafka-classes ## Fetch the jars of Apache Kafka and compile the Java client, for the tests

# What cannot be fetched or built here is said, and what needs it is skipped later, with the reason.
$(STAMP)/kafka-jars: tests/kafka/pom.xml | $(STAMP)/apt-kafka
	@command -v mvn >/dev/null || { echo "make: no mvn, going on without Kafka" >&2; exit 0; }; \
	echo "  MVN   $(STAMP)/kafka/lib"; rm -rf $(STAMP)/kafka/lib; \
	mvn -q -B -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(STAMP)/kafka/lib >$(STAMP)/mvn.log 2>&1 \
		|| { tail -20 $(STAMP)/mvn.log >&2; rm -rf $(STAMP)/kafka/lib; exit 0; }; \
	touch $@

$(STAMP)/kafka-classes: tests/kafka/clients/Client.java $(STAMP)/kafka-jars
	@[ -d $(STAMP)/kafka/lib ] || exit 0; command -v javac >/dev/null || { echo "make: no javac, no Java client" >&2; exit 0; }; \
	echo "  JAVAC $<"; \
	javac -Xlint:all,-processing,-path -Werror -proc:none -cp '$(STAMP)/kafka/lib/*' -d $(STAMP)/kafka/classes $< && touch $@

programs: $(PROGRAMS)/go-programs $(PROGRAMS)/java/built ## Install and build the servers and clients of tests/programs: the third that `make test` runs

allprograms: programs $(STAMP)/apt-allprograms $(PROGRAMS)/python $(PROGRAMS)/node_modules $(PROGRAMS)/caddy $(PROGRAMS)/jetty $(PROGRAMS)/tomcat ## All of them

$(PROGRAMS)/go-programs: $(wildcard tests/programs/go/*) | $(STAMP)/apt-programs
	@command -v go >/dev/null || { echo "make: no go, going on without programs in Go" >&2; exit 0; }; \
	echo "  GO    $@"; mkdir -p $(PROGRAMS); \
	cd tests/programs/go && GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0 go build -o $(CURDIR)/$@ .

$(PROGRAMS)/java/built: $(wildcard tests/programs/java/*.java) | $(STAMP)/apt-programs
	@command -v javac >/dev/null || { echo "make: no javac, going on without programs in Java" >&2; exit 0; }; \
	echo "  JAVAC tests/programs/java"; javac -Xlint:all -Werror -d $(@D) $^ && touch $@

# What follows is fetched: without it, going on is better than not testing at all.
$(PROGRAMS)/python: pyproject.toml | $(STAMP)/venv
	@echo "  PIP   .[programs,bench]"; mkdir -p $(PROGRAMS); \
	.venv/bin/pip install -q --disable-pip-version-check -e '.[programs,bench]' >$(STAMP)/pip-programs.log 2>&1 \
		|| { tail -5 $(STAMP)/pip-programs.log >&2; echo "make: going on without gunicorn and its like" >&2; exit 0; }; \
	touch $@

$(PROGRAMS)/node_modules: tests/programs/node/package.json tests/programs/node/package-lock.json | $(STAMP)/apt-programs
	@command -v npm >/dev/null || { echo "make: no npm, going on without undici" >&2; exit 0; }; \
	echo "  NPM   $@"; mkdir -p $(PROGRAMS); cp $^ $(PROGRAMS); \
	cd $(PROGRAMS) && npm ci --silent --no-audit --no-fund && touch node_modules || echo "make: going on without undici" >&2

$(PROGRAMS)/caddy: $(wildcard tests/programs/caddy/*) | $(STAMP)/apt-programs
	@command -v go >/dev/null || exit 0; echo "  GO    $@"; mkdir -p $(PROGRAMS); \
	cd tests/programs/caddy && GOTOOLCHAIN=local CGO_ENABLED=0 go build -ldflags='-s -w' -o $(CURDIR)/$@ . \
		|| echo "make: going on without Caddy" >&2

$(PROGRAMS)/jars: tests/programs/java/pom.xml | $(STAMP)/apt-allprograms
	@command -v mvn >/dev/null || { echo "make: no mvn, going on without Jetty and Tomcat" >&2; exit 0; }; \
	echo "  MVN   $@"; rm -rf $@; \
	mvn -q -B -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$@ >$(STAMP)/mvn-programs.log 2>&1 \
		|| { tail -5 $(STAMP)/mvn-programs.log >&2; rm -rf $@; echo "make: going on without Jetty and Tomcat" >&2; }

$(PROGRAMS)/jetty $(PROGRAMS)/tomcat: $(PROGRAMS)/%: $(wildcard tests/programs/java/*/*.java) $(PROGRAMS)/java/built $(PROGRAMS)/jars
	@[ -d $(PROGRAMS)/jars ] && [ -f $(PROGRAMS)/java/built ] || exit 0; echo "  JAVAC tests/programs/java/$*"; \
	javac -Xlint:all,-processing,-path,-classfile -Werror -proc:none -cp '$(PROGRAMS)/jars/*:$(PROGRAMS)/java' -d $@ \
		tests/programs/java/$*/*.java && touch $@

%.bpf.o: %.bpf.c $(wildcard bpf/*.h) | $(STAMP)/apt-build
	@command -v clang >/dev/null || { echo "make: no clang, $@ is not built" >&2; exit 0; }; echo "  BPF   $@"; \
	clang -g -O2 -Wall -Wextra -Werror -target bpf -mcpu=v3 -I$(ARCH_INCLUDE) -c $< -o $@

# On Debian and Ubuntu, as root. Without root, what needs a missing package is skipped later, with the reason.
# policy-rc.d keeps apt from starting servers.
$(STAMP)/apt-%: Makefile
	@mkdir -p $(STAMP)
	@missing=$$(for package in $(APT_$*); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "make: not root, going on without:" $$missing >&2; exit 0; \
		fi; \
		echo "  APT  " $$missing; \
		[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; \
			chmod +x /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
			>$(STAMP)/apt.log 2>&1 || { tail -20 $(STAMP)/apt.log >&2; exit 1; }; \
	fi
	@touch $@

$(STAMP)/venv: pyproject.toml | $(STAMP)/apt-build
	@echo "  VENV  .venv"
	@test -x $(PY) || python3 -m venv .venv
	@.venv/bin/pip install -q --disable-pip-version-check -e '.[dev]' >$(STAMP)/pip.log 2>&1 || { tail -20 $(STAMP)/pip.log >&2; exit 1; }
	@touch $@

clean: ## Remove everything that make has made
	rm -rf .venv $(STAMP) $(BPF_OBJECTS) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
