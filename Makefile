# Every command of the project. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# Another package index beside the default one, for a CPU build of torch where the default is CUDA's.
PACKAGE_INDEX ?=
COMPOSE ?= docker compose
# Folder of CRDs as KServe and the Prometheus operator publish them; docs/kubernetes.md says which files.
CRDS ?=
# More flags for serve, train, adopt, score, evaluate, select, experiment, test and the benchmarks.
ARGS ?=

bin := $(VENV)/bin
install := $(bin)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(PACKAGE_INDEX),--extra-index-url $(PACKAGE_INDEX)) --constraint constraints.txt

bench-index := $(if $(PACKAGE_INDEX),--package-index $(PACKAGE_INDEX))

.PHONY: help serve train adopt score evaluate select experiment test check format compose-test clients-test triton-test ray-test \
	prometheus-test deployment-test manifests-test training-test contract-test source-test label-studio-test browser-test screenshots bench bench-quick bench-overload soak faults attacks rolling clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /: /'

serve: $(VENV)/training  ## set up, train the digits if there is no bundle, serve on port 8000
	@$(bin)/python -m training --data digits --unless-exists --output "$${DROPSERVE_MODELS_FOLDER:-models}"
	@exec $(bin)/python -m service $(ARGS)

train: $(VENV)/training  ## train and export, e.g. make train ARGS="--data mnist"
	@$(bin)/python -m training $(ARGS)

adopt: $(VENV)/training  ## make a bundle of an ONNX classifier, e.g. make adopt ARGS="net.onnx --data folder:PATH --name pets"
	@$(bin)/python -m training.adopt $(ARGS)

score: $(VENV)/training  ## score files without a server, e.g. make score ARGS="photos/ --model pets --output pets.csv"
	@$(bin)/python -m service.score $(ARGS)

evaluate: $(VENV)/training  ## measure a bundle, e.g. make evaluate ARGS="models/digits/1"
	@$(bin)/python -m training.evaluate $(ARGS)

select: $(VENV)/training  ## list the images most worth labelling, e.g. make select ARGS="--model models/pets/1 --pool folder:PATH"
	@$(bin)/python -m training.select $(ARGS)

experiment: $(VENV)/training  ## reproduce a claim of the literature, e.g. make experiment ARGS="table --quick"
	@$(bin)/python -m training.experiments $(ARGS)

test: $(VENV)/dev  ## set up and run the whole suite
	$(bin)/python -m pytest $(ARGS)

check: $(VENV)/dev  ## lint, formatting and types, over source and tests
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

format: $(VENV)/dev  ## bring the code into its one form
	$(bin)/ruff check --fix
	$(bin)/ruff format

compose-test: $(VENV)/dev  ## build the containers, bring them up, use them, take them down
	COMPOSE="$(COMPOSE)" PACKAGE_INDEX="$(PACKAGE_INDEX)" $(bin)/python -m pytest -m compose -n 0 --timeout=3000

clients-test: $(VENV)/dev .venv-clients  ## run the stock clients of Triton, KServe and MLServer against the service
	DROPSERVE_CLIENTS_PYTHON=$(CURDIR)/.venv-clients/bin/python $(bin)/python -m pytest -m clients -n 0

triton-test: $(VENV)/dev .venv-triton  ## send the same requests to a real Triton and compare
	DROPSERVE_TRITON_PYTHON=$(CURDIR)/.venv-triton/bin/python $(bin)/python -m pytest -m triton -n 0

ray-test: $(VENV)/dev .venv-ray  ## serve with Ray on two nodes, and kill replicas and a node
	DROPSERVE_RAY_PYTHON=$(CURDIR)/.venv-ray/bin/python $(bin)/python -m pytest -m ray -n 0 $(ARGS)

source-test: $(VENV)/dev .venv-source  ## serve bundles that a real S3 server has (moto's)
	DROPSERVE_MOTO_PYTHON=$(CURDIR)/.venv-source/bin/python $(bin)/python -m pytest -m source -n 0 $(ARGS)

label-studio-test: $(VENV)/dev .venv-label-studio  ## pre-annotate for a real Label Studio, and take its annotations
	DROPSERVE_LABEL_STUDIO_PYTHON=$(CURDIR)/.venv-label-studio/bin/python $(bin)/python -m pytest -m label_studio -n 0 $(ARGS)

contract-test: $(VENV)/dev .venv-contract  ## try for two minutes what /openapi.json promises
	DROPSERVE_CONTRACT_PYTHON=$(CURDIR)/.venv-contract/bin/python $(bin)/python -m pytest -m contract -n 0

prometheus-test: $(VENV)/dev  ## try rules and dashboard with Debian's prometheus and promtool
	$(bin)/python -m pytest -m prometheus -n 0 $(ARGS)

deployment-test: $(VENV)/dev  ## try the files of deploy/ with Debian's nginx, HAProxy and systemd-analyze
	$(bin)/python -m pytest -m deployment -n 0 $(ARGS)

training-test: $(VENV)/dev  ## train on photographs, for int8, and for the quick form of every experiment
	$(bin)/python -m pytest -m training $(ARGS)

manifests-test: $(VENV)/manifests  ## check deploy/kubernetes against the schemas of Kubernetes, and the CRDs in the folder CRDS
	KUBERNETES_CRDS="$(abspath $(CRDS))" $(bin)/python -m pytest -m manifests -n 0 $(ARGS)

browser-test: $(VENV)/dev  ## open the pages in Chromium, /usr/bin/chromium or $$DROPSERVE_CHROMIUM
	$(bin)/python -m pytest -m browser -n 0 $(ARGS)

screenshots: $(VENV)/dev  ## take the pictures of the pages in docs/images, of models/digits
	@$(bin)/python -m benchmarks.screenshots $(ARGS)

bench: $(VENV)/dev  ## compare with other model servers; the first time installs each of them
	@$(bin)/python -m benchmarks.serving $(bench-index) $(ARGS)

bench-quick: $(VENV)/dev  ## the same with three servers, in under two minutes
	@$(bin)/python -m benchmarks.serving --quick $(bench-index) $(ARGS)

bench-overload: $(VENV)/dev  ## the service alone: at half and twice saturation, and on two cores
	@$(bin)/python -m benchmarks.serving.overload $(bench-index) $(ARGS)

soak: $(VENV)/dev  ## a million fuzzed requests; in less than a minute with ARGS=--quick
	@$(bin)/python -m benchmarks.reliability.fuzz $(ARGS)

faults: $(VENV)/dev  ## kill, stop, starve and damage the service, and see what its clients lose
	@$(bin)/python -m benchmarks.reliability.faults $(ARGS)

attacks: $(VENV)/dev  ## hide requests in others, also through proxies; then attack what is scarce
	@$(bin)/python -m benchmarks.reliability.smuggling $(ARGS)
	@$(bin)/python -m benchmarks.reliability.hostile $(ARGS)

rolling: $(VENV)/dev  ## end the service under load, again and again, and count lost requests
	@$(bin)/python -m benchmarks.reliability.rolling $(ARGS)

.venv-clients: tests/clients/requirements.txt
.venv-triton: tests/differential/requirements.txt
.venv-contract: tests/contract/requirements.txt
.venv-ray: tests/ray_serve/requirements.txt pyproject.toml constraints.txt
.venv-source: tests/service/models_source/requirements.txt
.venv-label-studio: tests/service/label_studio/requirements.txt
.venv-clients .venv-triton .venv-contract .venv-ray .venv-source .venv-label-studio:
	@$(PYTHON) -m venv $@
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

clean:  ## remove the environment and caches, keep models and runs
	rm -rf $(VENV) .venv-clients .venv-triton .venv-contract .venv-ray .venv-source .venv-label-studio .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(VENV)/training: pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the dependencies into $(VENV); the first time takes a minute or two."
	@$(install) --editable ".[training,photographs]"
	@touch $@

$(VENV)/dev: $(VENV)/training
	@$(install) --editable ".[training,photographs,dev]"
	@touch $@

$(VENV)/manifests: $(VENV)/dev
	@$(install) --editable ".[training,photographs,dev,manifests]"
	@touch $@
