PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests start hundreds of processes, and each would compile edgekd anew if no bytecode were written. Many wait for such a
# process: two workers on each core, where tests/conftest.py keeps them, keep it busy.
WORKERS := $(shell echo $$(( $$(nproc) * 2 )))
ONE_PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PYTEST := $(ONE_PYTEST) --numprocesses=$(WORKERS) --dist=worksteal

# Folder of the virtual camera: packages, keys, disk.
CAMERA := build/camera

.PHONY: demo collected test test-slow test-all test-release test-camera attacks coverage test-gpu gpu kit camera check docs \
	schemas wheel bench clean

## Run the main job on rendered scenes: installs into .venv, ends with the paths of the bundle and the report.
demo: $(VENV)/demo.installed
	$(BIN)/edgekd demo

## Run the tests but the slow ones, those of a release and of the virtual camera, two at a time on each core. They need ../shared for real models and data, or skip visibly.
test: $(VENV)/dev.installed
	$(PYTEST) -m "not slow and not release and not camera"

## Run the slow tests: every family of detectors, every way to train, builds of real models.
test-slow: $(VENV)/dev.installed
	$(PYTEST) -m slow

## Run both in one session, as CI does: libraries are imported, and what tests share is made, once.
test-all: $(VENV)/dev.installed
	$(PYTEST) -m "not release and not camera"

# Collect the tests, and so compile them and what they import: workers that start at once would each compile all of it.
collected: $(VENV)/dev.installed
	$(ONE_PYTEST) --collect-only -qq

## Run what is left to a release: further Pythons, shells and cases of a kind, detectors by packages that `dev` does not bring (LibreYOLO, rfdetr).
test-release: $(VENV)/dev.installed
	$(BIN)/pip install --quiet -e ".[libreyolo,rfdetr]"
	$(PYTEST) -m release

## Attack agent and build host with hostile bundles, models and data: fails where an attack succeeds.
attacks: $(VENV)/dev.installed
	$(BIN)/python bench/attacks.py --out runs/attacks.json

## Run the tests of the virtual camera, an ARM64 machine in QEMU; neither CI nor another target does. About an hour.
test-camera: camera
	EDGEKD_CAMERA=$(CAMERA) $(BIN)/python -m pytest -m camera

## Run all tests, and measure which lines they reach. Takes a good part longer than both.
coverage: $(VENV)/dev.installed
	$(PYTEST) --cov=edgekd --cov-report=term:skip-covered --cov-fail-under=90

## On a machine with an NVIDIA GPU: the tests that need one, and how fast and frugal detectors are there. In .venv-gpu.
test-gpu:
	@nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo "no NVIDIA GPU here" >&2; exit 2; }
	$(MAKE) VENV=.venv-gpu gpu

gpu: $(VENV)/gpu.installed
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python bench/stand_in.py --out runs/gpu/stand_in.json
	$(BIN)/python bench/camera_to_detections.py --gpu --rounds 6 --seconds 1 --out runs/gpu/camera_to_detections.json

## The validation kit, for a Jetson that is not at hand: the demo's bundle, the agent, run.sh. In build/.
kit: demo
	$(BIN)/python kit/pack.py --bundle runs/demo/detector-xavier.edgekd --out build/edgekd-validation-kit.tar.gz

## The virtual camera, from Debian's packages to detections: docs/guides/virtual-camera.md. In build/camera.
camera: $(VENV)/dev.installed
	[ -d $(CAMERA)/scenes ] || PYTHONPATH=tests $(BIN)/python -c "import pathlib, tiny; folder = pathlib.Path('$(CAMERA)'); \
	    tiny.write_data(folder / 'scenes'); tiny.write_model(folder / 'tiny.onnx')"
	$(BIN)/edgekd build $(CAMERA)/tiny.onnx --data $(CAMERA)/scenes --target examples/camera/virtual-camera.toml \
	    --out $(CAMERA)/model
	PATH="$(abspath $(BIN)):$$PATH" examples/camera/make_image.sh $(CAMERA) \
	    $(CAMERA)/model/tiny-virtual-camera.edgekd $(CAMERA)/scenes/images/val
	rm -rf $(CAMERA)/machine
	$(BIN)/python examples/camera/machine.py $(CAMERA) $(CAMERA)/machine 5

## The documentation as a site, in build/site; a link that leads nowhere is an error.
docs: $(VENV)/dev.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

## The JSON schemas in docs/schemas, from the types of the documents; the table of families, from the tests; the
## results, from those of benchmarks.
schemas: $(VENV)/dev.installed
	$(BIN)/python docs/schemas/generate.py
	$(BIN)/python docs/families.py
	$(BIN)/python docs/results.py
	$(BIN)/python docs/readme.py
	$(BIN)/python docs/diagrams.py

## The wheel and the source distribution, in dist/.
wheel: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet "build>=1.2"
	rm -rf build/lib dist
	$(BIN)/python -m build --quiet --outdir dist

## Lint, format, types, size of functions and files; Dockerfiles.
check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy edgekd examples kit
	$(BIN)/lint-imports
	$(BIN)/python tests/size_gate.py
	$(BIN)/hadolint --config docker/jetson/hadolint.yaml docker/jetson/Dockerfile.*

## Measure again what README and docs claim. Takes about an hour on two cores.
bench: $(VENV)/dev.installed
	$(BIN)/python bench/harness_overhead.py
	$(BIN)/python bench/camera_to_detections.py
	$(BIN)/python bench/quantization_baselines.py
	$(BIN)/python bench/storage_formats.py
	$(BIN)/python bench/scorer_agreement.py
	$(BIN)/python bench/pseudo_labels.py
	$(BIN)/python bench/build_vs_ultralytics.py
	$(BIN)/python bench/agent.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[openvino,rtx]"
	touch $@

$(VENV)/gpu.installed: $(VENV)/dev.installed
	$(BIN)/python -m pip install --quiet --editable ".[gpu]"
	$(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu # they are in each other's place
	$(BIN)/python -m pip install --quiet --no-deps onnxruntime-gpu
	touch $@

$(VENV)/dev.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/demo.installed
