# Two commands on a fresh machine: `make quickstart` and `make test`. Each does its own set-up.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

# INPUT: a folder of DICOM series or NIfTI volumes; without it, synthetic patients are made.
INPUT  ?=
NAME   ?= quickstart$(if $(INPUT),-$(notdir $(patsubst %/,%,$(INPUT))))
RUN    := runs/$(NAME)
# names of the synthetic patients' organs; real label maps keep their numbers unless a configuration names them
SHARD  := $(if $(INPUT),,--config data_prep/configs/quickstart.yaml)

.PHONY: help setup quickstart test test-nnunet stress bench-loader bench-step bench-prep bench-probes bench-sequences bench-masking bench-memory bench-plan bench-sources lint
help:
	@echo "make quickstart [INPUT=FOLDER]   images -> shards -> pretraining -> probes -> $(RUN)/report.html"
	@echo "make test                        the tests       make stress   their long versions"
	@echo "make bench-prep [INPUT=FOLDER]   how fast images become shards, as ratios"
	@echo "make bench-loader [INPUT=SHARDS] how fast samples are read, decoded and made into views, as ratios"
	@echo "make bench-step                  our training step beside a plain one and the machine's matrix rate"
	@echo "make bench-plan                  how well one step's time foretells that of others (meddap plan)"
	@echo "make bench-probes                what probing costs from cached features, 52 linear heads beside one"
	@echo "make bench-sequences             what absent MRI sequences cost a step, as ratios"
	@echo "make bench-masking               what whole-sequence masking and unlabelled patients buy, three seeds"
	@echo "make bench-sources INPUT=FOLDER  a run over four sources, killed ten times, and its encoder beside three others"
	@echo "make bench-memory                peak memory of ViT-B and ViT-L steps, and how many images fit a GPU"
	@echo "make test-nnunet                 the nnU-Net trainer, in a venv of its own with nnunetv2"
	@echo "make lint                        ruff and mypy   make setup    only the environment ($(VENV))"

setup: $(VENV)/.installed
$(VENV)/.installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than 3.10; name a newer one: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

# The salt of the hashed ids is the user's; the quickstart's is public, so set MEDDAP_SALT before
# shards of real patients leave your machine.
quickstart: export MEDDAP_SALT := $(or $(MEDDAP_SALT),quickstart)
quickstart: setup
ifeq ($(INPUT),)
	$(PY) -m data_prep.generate --output $(RUN)/patients
endif
	$(PY) data_prep/shard_ct.py --input $(or $(INPUT),$(RUN)/patients) --output $(RUN)/shards $(SHARD) workers=2
	$(PY) -m pretrain.train --config pretrain/configs/quickstart.yaml name=$(NAME) data.root=$(RUN)/shards
	$(PY) -m eval.probe --checkpoint $(RUN)/adapt/00000000 --task eval/configs/quickstart.yaml --output $(RUN)/probe/before data=$(RUN)/shards
	$(PY) -m eval.probe --checkpoint $(RUN) --task eval/configs/quickstart.yaml --output $(RUN)/probe/after data=$(RUN)/shards
	$(PY) -m eval.report --runs $(RUN) --output $(RUN)/report.html

# processes that run the tests, each with one thread
JOBS ?= 2
test: export OMP_NUM_THREADS := 1
test: setup
	$(PY) -m pytest -q -m 'not stress' -n $(JOBS) --durations=20

stress: setup
	$(PY) -m pytest -q -m stress

# nnU-Net brings much with it: a venv of its own on top of ours. It imports timm, timm imports torchvision, and torchvision
# from PyPI is built for PyTorch with CUDA: beside a CPU build it does not import. 0.16.2 is the last release whose Python
# half imports without its compiled half, which nnU-Net does not use (eval/nnunet/GUIDE.md); it exists up to Python 3.11.
test-nnunet: setup
	$(PYTHON) -m venv .venv-nnunet
	$(PY) -c 'import site; print(site.getsitepackages()[0])' > $$(ls -d .venv-nnunet/lib/python3*/site-packages)/meddap.pth
	.venv-nnunet/bin/python -m pip install --quiet --constraint constraints.txt nnunetv2
	.venv-nnunet/bin/python -c 'import torchvision' 2>/dev/null || \
		.venv-nnunet/bin/python -m pip install --quiet --no-deps torchvision==0.16.2
	.venv-nnunet/bin/python -m pytest -q tests/test_eval_nnunet.py

bench-sequences: setup
	$(PY) benchmarks/sequences.py

bench-sources: setup
	$(PY) benchmarks/several_sources.py --input $(or $(INPUT),../shared/data)

bench-masking: setup
	$(PY) benchmarks/masking.py

bench-probes: setup
	$(PY) benchmarks/probes.py

bench-loader: setup
	$(PY) benchmarks/loader.py $(if $(INPUT),--input $(INPUT))

bench-plan: setup
	$(PY) benchmarks/foretold.py

bench-step: setup
	$(PY) benchmarks/step.py

bench-memory: setup
	$(PY) benchmarks/memory.py

bench-prep: setup
	$(PY) benchmarks/prep.py $(if $(INPUT),--input $(INPUT))

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
