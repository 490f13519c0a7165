# Every target first creates .venv from setup.cfg, and creates it again when setup.cfg changes.
PYTHON ?= python3
EXTRAS ?= dev
DATA ?= demo
RUNNER ?= DirectRunner
OUT ?=
CKPT ?=
BENCHMARKS ?=
DATA_ROOT ?=
CONFIG ?=
JAR ?=
RESUME ?=
ARGS ?=

BIN := .venv/bin

# What make train reads: CONFIG, the configuration named after DATA, or the paper's with the archives of DATA.
NAME := $(basename $(notdir $(DATA)))
OWN := $(or $(CONFIG),$(wildcard training/configs/cocu_$(NAME).yaml))

# A run with other archives than those of DATA (OUT=) has a folder of its own, unless CONFIG says where it is.
RUN := $(if $(OWN),$(basename $(notdir $(OWN))),cocu_$(NAME))
ARCHIVES := $(notdir $(patsubst %/,%,$(OUT)))
OTHER := $(if $(CONFIG),,$(if $(filter %_$(ARCHIVES),$(RUN)),,$(ARCHIVES)))

.DEFAULT_GOAL := help
.PHONY: help setup pack curate show measure verify train eval experiments test engines faults mutants bench gpu lint clean

help: ## list the targets
	@echo "Concept Curation. Usage: make TARGET [VARIABLE=value ...]"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  \1\t\2/' | expand -t 15
	@echo "Variables of curate: DATA (demo, cc3m, cc12m, cc12m_wds, yfcc14m, redcaps12m or a YAML file), OUT, RUNNER, ARGS."
	@echo "Variables of train: DATA or CONFIG (training/configs/*.yaml), OUT (folder of archives), BENCHMARKS (one, to validate), RESUME=no (begin anew), ARGS."
	@echo "Variables of eval: CKPT (default: newest .ckpt in artifacts/), BENCHMARKS (default: demo), DATA_ROOT (default: data), ARGS."
	@echo "Variables of experiments: DATA, BENCHMARKS (one), DATA_ROOT, OUT (archives and runs), QUICK=1 (minutes), ARGS (--jobs 2, ...)."
	@echo "All options: make curate ARGS=--help, make train ARGS=--help, make eval ARGS=--help"

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CoCu needs Python 3.11 or newer; set PYTHON=")'
	@echo "Making .venv from setup.cfg (a few minutes the first time)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install -qq --editable ".[$(EXTRAS)]"
	@touch $@

setup: .venv/installed ## create .venv (every other target does so if needed)

pack: .venv/installed ## pictures and captions in a folder or table -> tars: make pack DATA=some-photos [OUT=packed] [ARGS="..."]
	@$(BIN)/cocu pack '$(DATA)' -o '$(or $(OUT),packed)/{}.tar' $(ARGS)

curate: .venv/installed ## image-text shards -> concept archives: make curate [DATA=demo] [OUT=folder] [RUNNER=inprocess] [ARGS="..."]
	@$(BIN)/cocu curate --data '$(DATA)' $(if $(OUT),--output '$(OUT)') --runner '$(RUNNER)' $(ARGS)

show: .venv/installed ## print archives in readable form: make show OUT=artifacts/cc12m [ARGS="KEY ..."]
	@$(BIN)/cocu show '$(OUT)' $(ARGS)

measure: .venv/installed ## compare every expansion and ranking with the truth: make measure OUT=artifacts/scenes [ARGS="--truth FILE"]
	@$(BIN)/cocu measure '$(OUT)' $(ARGS)

verify: .venv/installed ## check a finished run and compute a sample of it again: make verify OUT=artifacts/scenes
	@$(BIN)/cocu verify '$(OUT)' $(ARGS)

train: .venv/installed ## train GroupViT, or a CLIP, on images, captions and archives: make train [DATA=demo] [CONFIG=file] [OUT=archives] [RESUME=no]
	@$(BIN)/cocu train $(if $(OWN),--config '$(OWN)',--config training/configs/cocu_cc12m.yaml --output 'artifacts/training/cocu_$(NAME)') \
		$(if $(OUT),--data.archives '$(OUT)',$(if $(OWN),,--data.archives 'artifacts/$(NAME)')) \
		$(if $(BENCHMARKS),--model.validation.benchmark '$(BENCHMARKS)',$(if $(OWN),,--model.validation.benchmark null)) $(if $(DATA_ROOT),--model.validation.data_root '$(DATA_ROOT)') \
		$(if $(OTHER),--output 'artifacts/training/$(RUN)_$(OTHER)') $(if $(RESUME),--resume '$(RESUME)') $(ARGS)

eval: .venv/installed ## zero-shot segmentation: make eval [CKPT=last.ckpt or run-folder] [BENCHMARKS=voc,my.yaml] [DATA_ROOT=data] [ARGS="..."]
	@$(BIN)/cocu eval $(if $(CKPT),--checkpoint '$(CKPT)') \
		$(if $(BENCHMARKS),--benchmarks '$(BENCHMARKS)',--benchmarks demo --data-root artifacts --visualize 12) \
		$(if $(DATA_ROOT),--data-root '$(DATA_ROOT)') $(ARGS)

experiments: .venv/installed ## does CoCu help? all arms (hours; resumable): make experiments [DATA=demo] [BENCHMARKS=demo] [QUICK=1] [ARGS="..."]
	@$(BIN)/cocu experiments --data '$(DATA)' $(if $(BENCHMARKS),--benchmark '$(BENCHMARKS)') \
		$(if $(DATA_ROOT),--data-root '$(DATA_ROOT)') $(if $(OUT),--output '$(OUT)') $(if $(QUICK),--quick) $(ARGS)

test: .venv/installed ## run the tests
	@$(BIN)/python -m pytest -n 2 -m 'not engines' $(ARGS)

engines: .venv/installed ## run on Flink and Spark and compare; needs Java and Maven, or JAR=flink-job-server.jar
	@$(BIN)/python -m pipelines.engines.fetch $(foreach jar,$(JAR),--jar '$(jar)')
	@$(BIN)/python -m pytest -v -m engines tests/test_flink_and_spark.py $(ARGS)

faults: .venv/installed ## broken images and tars, servers and full disks as tables, 50 killed runs compared, every reader fuzzed
	@$(BIN)/python tests/faults.py
	@$(BIN)/python tests/kills.py $(ARGS)
	@FUZZ=1 $(BIN)/python -m pytest -q tests/test_fuzz.py
	@$(BIN)/python tests/network_faults.py
	@FAULTS=1 $(BIN)/python -m pytest -q tests/test_environment.py -k disk

mutants: .venv/installed ## make small mistakes in the numeric core; a test must notice each: make mutants [ARGS="WORD ..."]
	@$(BIN)/python tests/mutants.py $(ARGS)

lint: .venv/installed ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

bench: .venv/installed ## measure speed and memory into benchmarks/RESULTS.md; FULL=1: with up to a million samples
	@missed=; for script in benchmarks/*_speed.py benchmarks/scale.py; do \
		$(BIN)/python $$script $(if $(FULL),--full,--quick) $(ARGS) || missed="$$missed $$script"; done; \
		test -z "$$missed" || { echo "marks were missed by$$missed"; exit 1; }

gpu: .venv/installed ## prove it on a GPU, under ten minutes: tests, then speed into benchmarks/GPU.md (without one: a small version)
	@$(BIN)/python benchmarks/gpu.py --tests $(ARGS)

clean: ## remove .venv and caches, never artifacts
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
