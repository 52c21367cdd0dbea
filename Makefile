# make run    both ends on this machine, on loopback: a proxy to point curl or a browser at
# make test   all tests
# make coverage  the same, with branch coverage, below 95 % of which it fails; half as long again
# make test-matrix [SESSIONS=lowest]  its core with the lowest and the newest dependencies, and with
#             the locked ones on every Python from 3.10 on that the machine has; noxfile.py
# make lint   style and types
# make docs   the documents with the API reference as a site; a broken reference fails
# make data   the man page and the completions in share/, and the pictures of the README
# make dist   the wheel and the sdist, into dist/, the same bytes from the same commit
# make install [PREFIX=/opt/gsocks] [EXTRAS='[cli]']  a venv of its own there, and links to it
# make uninstall  removes what make install has made
# make deb    a Debian package with a venv of its own in /opt/gsocks, into dist/
# make lock   renews the exact versions in requirements/, by which all other targets install
# make fuzz   every grammar that a stranger reaches, each for FUZZ_SECONDS
# make mutation  puts MUTANTS small faults into the core, which its tests must find; takes an hour
# make exits  all the real proxies that gsocks is tested with as exits, Debian's and others, as root;
#             builds those of Go, PyPI, npm and Rust; gost (no Go module by its version) has to be on PATH
# make clients  all the client programs of docs/clients.md through gsocks, Debian's and others; builds those of
#             Go, Rust, Java, npm and PyPI, says which of Debian's are not here, and writes the table
# make soak   200 clients for SOAK_SECONDS, half an hour, while exits die and return, other peers attack,
#             the config is reloaded and workers are killed
# make soak-fleet  2,000 sessions over three gateways for FLEET_SOAK_SECONDS, five minutes, while gateways and their
#             Redis are killed, frozen, emptied and cut off in turn
# make bench        gsocks beside other proxies, 35 to 60 minutes, into docs/benchmarks.md
# make bench-quick  the same in small, 2 to 4 minutes: shows that it works, not how fast
# make bench-gateway  gsocks beside other rotating proxies, into docs/benchmarks-gateway.md
# make bench-fleet  what it costs gateways to share a Redis, into bench/results/fleet.json
# make bench-compare BASE=REV [NEW=REV] [ARGS=--counts]  gsocks beside another revision of itself, about 3 minutes
# make bench-counts [ARGS=--quick]  instructions of user code, of this tree and of the commit before it, beside
#             their budgets; needs valgrind, and 2 minutes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests wait more than they work, so that a few processes are quicker than one even on one core
TESTERS ?= 5
SOAK_SECONDS ?= 1800
FLEET_SOAK_SECONDS ?= 300
MUTANTS ?= 300
EXITS := $(CURDIR)/build/exits
CLIENTS := $(CURDIR)/build/clients

# each of some thousand processes would compile gsocks again, and each tester all of the tests
unexport PYTHONDONTWRITEBYTECODE

# make screenshots  some of the dashboard, into docs/images

.PHONY: screenshots run test coverage test-matrix lint docs lock data dist install uninstall deb fuzz mutation exits clients soak soak-fleet bench bench-quick bench-gateway bench-fleet bench-compare bench-counts clean

run: $(VENV)/installed
	@exec $(BIN)/gsocks -c config.example.yaml

test: $(VENV)/installed-dev tests/node/node_modules
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

coverage: $(VENV)/installed-dev tests/node/node_modules
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TESTERS) --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-matrix: $(VENV)/installed-tools
	$(BIN)/nox $(if $(SESSIONS),--sessions $(SESSIONS)) $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	rm -rf docs/_build docs/reference
	$(BIN)/python -m sphinx -q -W --keep-going -n -j auto -b html docs docs/_build

fuzz: $(VENV)/installed-fuzz
	$(BIN)/python -m fuzz

mutation: $(VENV)/installed-dev $(VENV)/installed-mutation
	$(BIN)/python -m tests.support.mutation --count $(MUTANTS)

exits: $(VENV)/installed-dev build/exits/made
	ALL_EXITS=1 $(BIN)/python -m pytest -n $(TESTERS) tests/test_real_exits.py tests/test_real_shadowsocks.py tests/test_real_trojan.py

build/exits/made: tests/exits/requirements.txt tests/exits/goproxy/main.go tests/exits/goproxy/go.mod
	cd tests/exits/goproxy && GOBIN=$(EXITS)/bin go install .
	GOBIN=$(EXITS)/bin go install github.com/sagernet/sing-box/cmd/sing-box@v1.14.1
	command -v ssserver || cargo install --quiet --locked --root $(EXITS) shadowsocks-rust@1.25.0 \
		--no-default-features --features local,server,aead-cipher,aead-cipher-2022
	command -v glider || GOBIN=$(EXITS)/bin go install github.com/nadoo/glider@v0.16.4
	$(PYTHON) -m venv $(EXITS)/venv
	$(EXITS)/venv/bin/pip install --quiet --disable-pip-version-check -r tests/exits/requirements.txt
	npm install --silent --no-audit --no-fund --prefix $(EXITS)/node proxy-chain@3.0.1
	touch $@

clients: $(VENV)/installed-dev build/clients/made
	$(BIN)/python -m tests.clients

build/clients/made: $(shell find tests/clients/built -type f)
	mkdir -p $(CLIENTS)/bin
	cp -r tests/clients/built/go/. tests/clients/built/java $(CLIENTS)
	cd $(CLIENTS) && go build -o bin/goclients .
	mkdir -p $(CLIENTS)/rust
	cp -r tests/clients/built/rust/. $(CLIENTS)/rust
	cd $(CLIENTS)/rust && cargo build --quiet --release
	cp $(CLIENTS)/rust/target/release/rustclients $(CLIENTS)/bin
	cp $(CLIENTS)/rust/Cargo.lock $(CLIENTS)
	mvn --quiet --file $(CLIENTS)/java/pom.xml dependency:copy-dependencies -DoutputDirectory=$(CLIENTS)/java/lib
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(CLIENTS)/venv/bin/pip install --quiet --disable-pip-version-check -r tests/clients/built/requirements.txt
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS)/node $$(cd tests/clients/built/node && cat packages.txt)
	touch $@

screenshots: $(VENV)/installed-dev tests/node/node_modules
	SCREENSHOTS=1 $(BIN)/python -m pytest tests/test_real_dashboard.py

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.support.soak --seconds $(SOAK_SECONDS)

soak-fleet: $(VENV)/installed-dev
	$(BIN)/python -m tests.support.fleet_soak --seconds $(FLEET_SOAK_SECONDS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench
	$(BIN)/python -m bench.document bench/results/full.json

bench-quick: $(VENV)/installed-bench
	$(BIN)/python -m bench --quick

bench-gateway: $(VENV)/installed-bench
	$(BIN)/python -m bench.gateway
	$(BIN)/python -m bench.document bench/results/gateway.json

# needs redis-server; this and the next need none of the packages in the extra "bench"
bench-fleet: $(VENV)/installed-dev
	$(BIN)/python -m bench.fleet

bench-compare: $(VENV)/installed
	$(BIN)/python -m bench.compare $(BASE) $(NEW) $(ARGS)

bench-counts: $(VENV)/installed
	$(BIN)/python -m bench.budgets $(ARGS)

data: $(VENV)/installed-dev
	$(BIN)/python -m release.data_files
	$(BIN)/python -m release.pictures

dist: $(VENV)/installed $(VENV)/installed-tools
	rm -rf dist
	$(BIN)/python -m release.dist dist
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/twine check --strict dist/*

# PREFIX has a venv of its own; BINDIR and SHAREDIR get links into it, UNITDIR the units of systemd
PREFIX ?= /opt/gsocks
BINDIR ?= /usr/local/bin
SHAREDIR ?= /usr/local/share
UNITDIR ?= /etc/systemd/system
EXTRAS ?=

install:
	$(PYTHON) -m venv --clear $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements/build.txt -r requirements/run.txt
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation .$(EXTRAS)
	$(DESTDIR)$(PREFIX)/bin/pip uninstall --quiet --yes setuptools
	deploy/link.sh "$(DESTDIR)" "$(PREFIX)" "$(BINDIR)" "$(SHAREDIR)" "$(UNITDIR)"

uninstall:
	deploy/link.sh --remove "$(DESTDIR)" "$(PREFIX)" "$(BINDIR)" "$(SHAREDIR)" "$(UNITDIR)"
	rm -rf $(DESTDIR)$(PREFIX)

deb: $(VENV)/installed
	deploy/debian/build.sh dist

# LOCK_OPTIONS= adds what pyproject.toml has come to need and leaves all other versions alone
LOCK_OPTIONS ?= --upgrade
lock = $(BIN)/uv --quiet --no-config pip compile --universal --python-version 3.10 \
	--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock"
# a package that is in several files has one version, that of dev.txt
same = $(lock) --constraints requirements/dev.txt $(LOCK_OPTIONS)

lock: $(VENV)/installed-tools
	$(lock) $(LOCK_OPTIONS) --group build -o requirements/build.txt
	$(lock) $(LOCK_OPTIONS) pyproject.toml --extra test --extra lint --extra clients \
		--extra contract --extra scraping -o requirements/dev.txt
	$(same) pyproject.toml -o requirements/run.txt
	$(same) pyproject.toml --extra test --extra clients -o requirements/core.txt
	$(same) pyproject.toml --extra docs -o requirements/docs.txt
	$(same) pyproject.toml --extra fuzz -o requirements/fuzz.txt
	$(same) pyproject.toml --extra mutation -o requirements/mutation.txt
	$(same) pyproject.toml --extra bench -o requirements/bench.txt
	$(same) --constraints requirements/docs.txt --group tools -o requirements/tools.txt
	$(lock) --upgrade --resolution lowest-direct pyproject.toml --extra test --extra clients \
		-o requirements/lowest.txt

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gsocks needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

# where the tools are installed, by their uv: a fifth of the CPU time of pip
packages = $(if $(wildcard $(BIN)/uv),$(BIN)/uv pip install --python $(BIN)/python, \
	$(BIN)/pip install --disable-pip-version-check) --quiet

# exact versions, held by their hashes; then gsocks itself, built by the setuptools of the lock
define install
$(packages) --require-hashes -r requirements/build.txt -r requirements/$(1).txt
$(packages) --no-deps --no-build-isolation -e .
@touch $@ $(VENV)/installed
endef

$(VENV)/installed: $(BIN)/python pyproject.toml requirements/build.txt requirements/run.txt
	$(call install,run)

$(VENV)/installed-dev: $(BIN)/python pyproject.toml requirements/build.txt requirements/dev.txt
	$(call install,dev)

$(VENV)/installed-docs: $(BIN)/python pyproject.toml requirements/build.txt requirements/docs.txt
	$(call install,docs)

$(VENV)/installed-fuzz: $(BIN)/python pyproject.toml requirements/build.txt requirements/fuzz.txt
	$(call install,fuzz)

$(VENV)/installed-mutation: $(BIN)/python pyproject.toml requirements/build.txt requirements/mutation.txt
	$(call install,mutation)

$(VENV)/installed-bench: $(BIN)/python pyproject.toml requirements/build.txt requirements/bench.txt
	$(call install,bench)

$(VENV)/installed-tools: $(BIN)/python requirements/tools.txt
	$(packages) --require-hashes -r requirements/tools.txt
	@touch $@

# Node's clients; where there is no npm, their tests are skipped and say so
tests/node/node_modules: tests/node/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --prefix tests/node && touch $@; fi

clean:
	rm -rf $(VENV) .nox build dist docs/_build docs/reference tests/node/node_modules .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
