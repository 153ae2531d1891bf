# Everything a bare Debian 12 needs is installed by these targets, which say what they install.
#   make venv   .venv with the project in it       make lint   ruff, mypy --strict
#   make test   unit, simulation and netns tests   sudo make demo   see it work, under a minute

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# python-pytun is compiled: hence gcc and the headers. The rest is for namespaces and traffic.
PACKAGES := python3 python3-venv python3-dev gcc libc6-dev iproute2 iputils-ping nftables conntrack ethtool procps
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: packages venv lint unit netns test demo measure clean

packages:
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing with apt-get:$$missing"; \
	  $(AS_ROOT) apt-get update -qq && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

venv: $(STAMP)

$(STAMP): pyproject.toml | packages
	@echo "installing into $(VENV): the project and its development tools"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

unit: venv
	$(BIN)/python -m pytest tests

netns: venv
	$(AS_ROOT) $(BIN)/python -m pytest netns-tests

test: unit netns

demo: venv
	$(AS_ROOT) $(BIN)/python netns-tests/demo.py

measure: venv
	$(AS_ROOT) $(BIN)/python netns-tests/measure.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
