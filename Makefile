# make demo      set up, run the demonstration and print its main tables
# make test      set up and run every check and test
# make smollm2   a pretrained model on real text; name a folder of local copies with SYNOPSIS_DATA
# make smollm2_icl   the same model on all eleven data sets of in-context learning
# make smollm2_benchmark   from when on compressing pays on that model; about 40 minutes
# make paper     the tables of the gist paper from its released data: RELEASE=DIR, its repository's folder data
# make setup     the environment alone, in .venv

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CORES ?= all
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# A Snakemake that was killed leaves its lock behind; one that fails does not.
LOCKED = [ -z "$$(ls -A .snakemake/locks 2>/dev/null)" ] || echo "Where no other Snakemake works here, type:" \
  "$(BIN)/snakemake --unlock --configfile config/$@.yaml && make $@" >&2

RELEASE ?= gisting/data

.PHONY: setup demo smollm2 smollm2_icl smollm2_benchmark paper test lint browser slurm clean
.DEFAULT_GOAL := demo

setup: .venv/ready

.venv/ready: pyproject.toml envs/constraints.txt
	@echo "Setting up .venv (Python and about 150 packages; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --constraint envs/constraints.txt --editable '.[workflow,gguf,scale,test]'
	@touch $@

# `--quiet rules host` leaves the lines to read: what each stage says, and "3 of 51 steps (6%) done".
demo smollm2 smollm2_icl smollm2_benchmark: setup
	@$(BIN)/snakemake --cores $(CORES) --configfile config/$@.yaml --quiet rules host reason \
	  || { code=$$?; $(LOCKED); exit $$code; }
	@if [ ! results/$@/snakemake-report.html -nt results/$@/scores.parquet ]; then \
	  $(BIN)/snakemake --configfile config/$@.yaml --quiet all --report results/$@/snakemake-report.html; fi
	@$(BIN)/synopsis summary --config config/$@.yaml
	@echo "Report: $$PWD/results/$@/report.html"

paper: setup
	@$(BIN)/synopsis paper --release $(RELEASE) --out results/paper

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

test: lint browser slurm
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --no-loadscope-reorder

# The report is tested in a real browser. Without one, and without the rights to install it, those tests are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium chromium-driver >/dev/null; } \
	  || echo "No chromium: the tests of the report in a browser are skipped."

# tests/slurm starts a Slurm of its own. Without its programs those tests are skipped.
slurm:
	@command -v slurmctld >/dev/null && command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
	  --no-install-recommends slurm-wlm slurmdbd munge mariadb-server >/dev/null; } || echo "No Slurm: its tests are skipped."

clean:
	rm -rf results/demo results/smollm2 results/smollm2_icl results/smollm2_benchmark .snakemake
