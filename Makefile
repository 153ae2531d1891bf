# What a bare Debian 12 lacks, these targets install as root, and say so; others are told the command.
#   make venv   .venv with the project in it       make lint   ruff, mypy --strict
#   make test   unit, simulation and netns tests   sudo make demo   see it work, under a minute
#   make simulate   the simulation's stories (docs/simulation.md); make soak SECONDS=n   others, for n seconds (CLUSTER=1: of clusters)
#   make model   the rules of ownership in a cluster, every order of steps (docs/simulation.md)
#   make races N=1000000   so many races of a cluster's nodes for the ownership of sessions
#   make measure   how long traffic stops; ARGS="--soak 60" looks for false switches instead
#   make measure-cluster   the same of a cluster, and a drain of a thousand sessions
#   make bench   how fast, beside other VPNs; ARGS="--quick" for a first look, WIREGUARD_GO=a newer one
#   make scale   ten thousand clients of one gateway
#   make deb   the Debian package, into dist/ (docs/install.md); make deb-check   lintian, and that it can be built again
#   sudo make acceptance   install, use, upgrade and remove it on two booted Debians; make lock   other versions in it
#   make lossy   what records over many datagrams are worth, and cost where datagrams are lost

PYTHON := $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# python-pytun is compiled: hence gcc and the headers. The rest is for namespaces and traffic.
PACKAGES := python3 python3-venv python3-dev gcc libc6-dev iproute2 iputils-ping nftables conntrack ethtool procps \
  iperf3 libfaketime tinyproxy-bin etcd-server
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# On a busy machine a wait may run out: what has failed is run once more, alone, and has to pass then.
AGAIN := --last-failed --last-failed-no-failures none
STORIES := 0:800
SECONDS := 600
N := 100000
DEB_PACKAGES := build-essential debhelper python3 python3-pip
DEB_CHECK_PACKAGES := lintian
ACCEPTANCE_PACKAGES := systemd-container mmdebstrap
BENCH_PACKAGES := wireguard-go wireguard-tools openvpn
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: packages bench-packages deb-packages root venv lint unit simulate soak model races netns test demo measure \
  measure-cluster bench scale lossy deb deb-check acceptance lock clean

define install
	@missing=""; for p in $(1); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; \
	done; \
	if [ -z "$$missing" ]; then \
	  exit 0; \
	elif [ "$$(id -u)" != 0 ]; then \
	  echo "packages are missing; run as root: apt-get install -y --no-install-recommends$$missing" >&2; \
	  exit 1; \
	fi; \
	echo "installing with apt-get:$$missing"; \
	apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
endef

packages:
	$(call install,$(PACKAGES))

# The others to compare with; none of them starts anything by itself.
bench-packages: | packages
	$(call install,$(BENCH_PACKAGES))

deb-packages:
	$(call install,$(DEB_PACKAGES))

# Namespaces and TUN devices are root's.
root:
	@[ -z "$(AS_ROOT)" ] || command -v sudo >/dev/null || \
	  { echo "this needs root, and there is no sudo: run make as root" >&2; exit 1; }

venv: $(STAMP)

# compat: a path and no finder, which every interpreter, so every restart, would have to import.
$(STAMP): pyproject.toml | packages
	@echo "installing into $(VENV): the project and its development tools"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

# On all cores. A core that has run out of tests takes over some of another's: a few of them are long.
unit: venv
	$(BIN)/python -m pytest tests --numprocesses auto --dist worksteal || $(BIN)/python -m pytest tests $(AGAIN)

# Always the same stories, as many as fit into seven minutes of two cores.
simulate: venv
	$(BIN)/python -m tests.simulation.soak --seeds $(STORIES)

soak: venv
	$(BIN)/python -m tests.simulation.soak --seconds $(SECONDS) $(if $(CLUSTER),--cluster)

races: venv
	$(BIN)/python -m tests.simulation.races $(N)

# Larger bounds than those of `make unit`, which goes through the same model.
model: venv
	$(BIN)/python -m tests.model.search

netns: venv root
	$(AS_ROOT) $(BIN)/python -m pytest netns-tests || $(AS_ROOT) $(BIN)/python -m pytest netns-tests $(AGAIN)

test: unit simulate netns

demo: venv root
	$(AS_ROOT) $(BIN)/python netns-tests/demo.py

measure: venv root
	$(AS_ROOT) $(BIN)/python netns-tests/measure.py $(ARGS)

measure-cluster: venv root
	$(AS_ROOT) $(BIN)/python netns-tests/cluster_measure.py $(ARGS)

bench: venv bench-packages root
	$(AS_ROOT) $(if $(WIREGUARD_GO),WIREGUARD_GO=$(WIREGUARD_GO)) $(BIN)/python netns-tests/benchmark.py $(ARGS)

scale: venv root
	$(AS_ROOT) $(BIN)/python netns-tests/scale.py $(ARGS)

lossy: venv root
	$(AS_ROOT) $(BIN)/python netns-tests/lossy.py $(ARGS)

deb: | deb-packages
	packaging/build.sh

# Built twice, in folders of different names, it is the same.
deb-check: | deb-packages
	$(call install,$(DEB_CHECK_PACKAGES))
	packaging/check.sh

acceptance: venv root | deb-packages
	$(call install,$(ACCEPTANCE_PACKAGES))
	packaging/build.sh
	packaging/build.sh --version $(VERSION)+next
	$(AS_ROOT) env PYTHONPATH=netns-tests $(BIN)/python packaging/acceptance \
	  dist/jvpn_$(VERSION)_amd64.deb dist/jvpn_$(VERSION)+next_amd64.deb

lock: | deb-packages
	$(PYTHON) packaging/lock.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
