# The commands of a checkout. Each sets up what it needs: a virtual environment in .venv, from a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Of the GPU benchmarks: one for TensorFlow and onnxruntime, one for PyTorch and JAX, whose CUDA may be of another
# generation.
GPU_VENV ?= .venv-gpu
PEER_VENV ?= .venv-gpu-peer

.PHONY: demo test test-python test-slow lint docs figures objectives loading decoding train-step soak scaling latents \
  anomalies conditions priors explorer saved-models bench-gpu gpu-at-hand clean

demo: $(VENV)/.demo  ## draw avatars, train a few minutes, export, verify; everything lands in runs/demo
	$(BIN)/keras-vae demo

test: $(VENV)/.dev  ## the tests, under 25 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What depends on the version of Python; PYTHON=python3.13 VENV=.venv-3.13 tries it on another.
test-python: $(VENV)/.dev  ## a part of the tests, a minute: every format of export, pretrained models
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/export/test_formats.py tests/cli/test_pretrained.py

test-slow: $(VENV)/.dev  ## the rest: 500 steps in each precision, the wheel in an empty environment, the dearer of variants
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the API reference from docstrings: build/docs/index.html
	$(BIN)/python docs/reference.py build/docs

figures: $(VENV)/.dev  ## measure the sharpness table of docs/figures.md again: benchmarks/results/sharpness.*
	$(BIN)/python -m benchmarks.sharpness

objectives: $(VENV)/.bench  ## the named objectives on a folder of faces, 15 minutes each: benchmarks/results/objectives.*
	$(BIN)/python -m benchmarks.objectives $(if $(FACES),--faces $(FACES))

loading: $(VENV)/.bench  ## how fast a folder of JPEG files comes in, beside PyTorch: benchmarks/results/loading.json
	$(BIN)/python -m benchmarks.loading --folder $(FOLDER)

decoding: $(VENV)/.bench  ## how fast decoders run, beside Keras's export and PyTorch: benchmarks/results/decoding.json
	$(BIN)/python -m benchmarks.decoding

train-step: $(VENV)/.bench  ## how fast a training step is, beside PyTorch, and how its cost grows: half an hour
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.train_step --changes --objectives plain vae-123 --precisions bfloat16 --sizes 64
	$(BIN)/python -m benchmarks.train_step --growth

soak: $(VENV)/.bench  ## 30 minutes of training, its memory, file handles and speed: benchmarks/results/soak.*
	$(BIN)/python -m benchmarks.soak --preset vae-345 --network dfc --perceptual hed-vgg16 --checkpoint-minutes 0.5

scaling: $(VENV)/.bench  ## training by one worker and by several: benchmarks/results/scaling.json
	$(BIN)/python -m benchmarks.scaling

latents: $(VENV)/.bench  ## what latents of a folder of faces know: benchmarks/results/latents.*
	$(BIN)/python -m benchmarks.latents --steps 3500 --kl-target 150 $(if $(FACES),--faces $(FACES))

anomalies: $(VENV)/.bench  ## unusual images of Fashion-MNIST, PYTHAE=python of an environment with it: benchmarks/results/anomalies.*
	$(BIN)/python -m benchmarks.anomalies $(if $(PYTHAE),--pythae $(PYTHAE))

conditions: $(VENV)/.bench  ## samples of the class asked for, Fashion-MNIST: benchmarks/results/conditions.*
	$(BIN)/python -m benchmarks.conditions

priors: $(VENV)/.bench  ## priors of trained runs side by side, RUNS="runs/a runs/b": benchmarks/results/priors.*
	$(BIN)/python -m benchmarks.priors $(RUNS)

explorer: $(VENV)/.bench  ## how soon the explorer's page shows a picture, in headless Chromium: benchmarks/results/explorer.*
	$(BIN)/python -m benchmarks.explorer

bench-gpu: $(GPU_VENV)/.gpu $(PEER_VENV)/.peer  ## on an NVIDIA GPU, ten minutes (MINUTES=20: more): benchmarks/results/gpu.md
	$(GPU_VENV)/bin/python -m benchmarks.bench_gpu --peer-python $(PEER_VENV)/bin/python $(if $(FACES),--faces "$(FACES)") $(if $(MINUTES),--minutes $(MINUTES))

gpu-at-hand:
	@$(PYTHON) -I keras_vae/cli/gpu_cards.py

saved-models: $(VENV)/.demo  ## train the models that come with the package again, half an hour: saved_models/
	$(BIN)/python saved_models/make.py

clean:
	rm -rf $(VENV) $(GPU_VENV) $(PEER_VENV) build dist

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "keras-vae needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "setting up $*"
	$(PYTHON) -m venv $*

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing TensorFlow and the rest into $(VENV), about 3 GB: a minute or more"
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing TensorFlow and the rest into $(VENV), about 3 GB: a minute or more"
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	@echo "installing TensorFlow, PyTorch and the rest into $(VENV): minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev,bench]'
	@touch $@

# Nothing is installed where there is no card: it is looked for first.
$(GPU_VENV)/bin/python $(PEER_VENV)/bin/python: | gpu-at-hand

$(GPU_VENV)/.gpu: pyproject.toml | gpu-at-hand $(GPU_VENV)/bin/python
	@echo "installing TensorFlow with CUDA, onnxruntime-gpu and the rest into $(GPU_VENV), several GB: minutes"
	$(GPU_VENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[demo,gpu]'
	@touch $@

$(PEER_VENV)/.peer: pyproject.toml | gpu-at-hand $(PEER_VENV)/bin/python
	@echo "installing PyTorch and JAX into $(PEER_VENV), several GB: minutes"
	$(PEER_VENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[peer]'
	$(PEER_VENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[peer-jax]' || echo "going on without JAX"
	@touch $@
