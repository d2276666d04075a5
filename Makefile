# `make train` and `make test` need nothing but Python 3.11 and make; `make help` lists everything.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
SEED ?= 1
T_MAX ?= 500000
SEEDS ?= 10
ENV ?= greed_games
EPISODES ?= 2000
DATASET ?= results/datasets/$(ENV).h5
WITH ?=
CONFIGS ?= qmix,greedy_qmix
ENVS ?= smax
MAPS ?= 3m,2s3z
RESULTS ?= results
IMAGE ?= greed-is-good
DOCKER ?= docker
BUILD ?=
DEVICE ?= cpu
PEERS ?=

.PHONY: help setup setup-ray doctor train sweep dataset test theory check format docs bench main-job greed ablation report \
	drill curves image browse browse-local clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## create .venv and install what is pinned

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-cuda.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH; install Python 3.11 or give PYTHON=..."; exit 2; }
	@echo "Creating $(VENV) and installing what requirements.txt pins (2 GB, a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then \
		echo "An NVIDIA GPU is here: installing JAX for it"; \
		$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-cuda.txt; \
	fi
	@touch $@

setup-ray: $(VENV)/.ray  ## Ray too, which sweeps need

$(VENV)/.ray: $(VENV)/.installed requirements-ray.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	@touch $@

# Without setup: where that fails, this says why.
doctor:  ## what is installed and usable (CONFIG=greedy_qmix ENV=smax: whether that could run)
	@$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) src/doctor.py $(if $(CONFIG),--config=$(CONFIG) --env-config=$(ENV))

train: setup  ## train greedy_qmix on SMAX 3m (SEED=1 T_MAX=500000)
	$(RUN) src/main.py --config=greedy_qmix --env-config=smax with env_args.map_name=3m \
		seed=$(SEED) t_max=$(T_MAX) use_tensorboard=True save_model=True

sweep: setup-ray  ## train algorithms on maps with seeds (CONFIGS=qmix,greedy_qmix ENVS=smax MAPS=3m,2s3z SEEDS=10 WITH="key=value ...")
	$(RUN) src/sweep.py --configs=$(CONFIGS) --env-configs=$(ENVS) $(if $(MAPS),--maps=$(MAPS)) \
		--seeds=0-$$(($(SEEDS) - 1)) $(if $(WITH),with $(WITH))

dataset: setup  ## record uniform play (ENV=greed_games EPISODES=2000 DATASET=results/datasets/$(ENV).h5 WITH="key=value ...")
	$(RUN) src/dataset.py $(DATASET) --config=qmix --env-config=$(ENV) --episodes=$(EPISODES) --uniform \
		$(if $(WITH),with $(WITH))

test: setup  ## run all tests
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

theory: setup  ## check every statement of docs/theory.md numerically (about three minutes)
	$(RUN) -m pytest tests/theory -m "slow or not slow" --statements -p no:cacheprovider

check: setup  ## format, lint, types, generated docs, known vulnerabilities of what is pinned
	$(RUN) -m ruff format --check src tests benchmarks
	$(RUN) -m ruff check src tests benchmarks
	$(RUN) -m pyright
	$(RUN) src/config/document.py --check
	@if command -v shellcheck >/dev/null; then shellcheck install_sc2.sh .ci/run docker/run.sh docker/browse.sh; \
	else echo "shellcheck is not installed: skipped"; fi
	@if [ -x $(VENV)/bin/hadolint ]; then $(VENV)/bin/hadolint docker/Dockerfile docker/omniboard.Dockerfile; \
	else echo "hadolint is not installed: skipped"; fi
	@$(RUN) benchmarks/audit.py requirements.txt requirements-dev.txt requirements-cuda.txt requirements-sc2.txt requirements-ray.txt

format: setup  ## format the code and mend what the linter can mend
	$(RUN) -m ruff check --fix src tests benchmarks
	$(RUN) -m ruff format src tests benchmarks

docs: setup  ## write docs/configuration.md anew from the yaml files and the schema
	$(RUN) src/config/document.py

bench: setup  ## speed, memory and start-up in about fifteen minutes (DEVICE=cuda PEERS="--peer pymarl=CHECKOUT")
	$(RUN) benchmarks/learner_step.py --configs qmix greedy_qmix vdn --rounds 3 --updates 3 --device $(DEVICE) $(PEERS)
	$(RUN) benchmarks/learner_step.py --name learner_step_all --shapes 3m --lengths realistic --rounds 3 --updates 3 \
		--device $(DEVICE)
	$(RUN) benchmarks/linear.py
	$(RUN) benchmarks/rollout.py --seconds 0.3 --device $(DEVICE)
	$(RUN) benchmarks/end_to_end.py --device $(DEVICE) $(PEERS)
	$(RUN) benchmarks/memory.py --device $(DEVICE)
	$(RUN) benchmarks/startup.py --rounds 1 --device $(DEVICE)

main-job: setup  ## measure the main job: six seeds of `make train`, one after another (about an hour)
	$(RUN) benchmarks/learning.py --name main_job --config greedy_qmix --env-config smax --metric test_battle_won_mean \
		--goal 0.9 --seeds 1 2 3 4 5 6 --with env_args.map_name=3m t_max=$(T_MAX)

greed: setup  ## sweep the greed games: who errs where, and what the gate does (SEEDS=10; about an hour)
	$(RUN) benchmarks/greed.py --seeds $(SEEDS)

ablation: setup  ## change one choice of greedy_qmix at a time (ENV=greed_games or smax, SEEDS=10)
	$(RUN) benchmarks/ablation.py --env $(ENV) --seeds $(SEEDS)

report: setup  ## a page of statistics and pictures of the runs below RESULTS (results)
	$(RUN) src/report.py $(RESULTS)

drill: setup  ## kill and resume a run 200 times, and compare it with an undisturbed one (about twenty minutes)
	$(RUN) benchmarks/drill.py kills --count 200 --with t_max=12000 rnn_hidden_dim=16

curves: SEEDS := 3
curves: setup  ## every algorithm on four small tasks (SEEDS=3; about an hour)
	$(RUN) benchmarks/curves.py --seeds $(SEEDS)

image:  ## build the container image (IMAGE=greed-is-good DOCKER=docker BUILD="--build-arg CUDA=0 ...")
	$(DOCKER) build -f docker/Dockerfile -t $(IMAGE) --build-arg COMMIT=$$(git rev-parse HEAD) $(BUILD) .

browse:  ## MongoDB and Omniboard in containers, with a password of their own
	@docker/browse.sh

browse-local: setup  ## a page of the runs below results, and TensorBoard (RESULTS=results)
	$(RUN) src/browse.py $(RESULTS) --open
	$(RUN) -m tensorboard.main --logdir $(RESULTS)/tb_logs --host 127.0.0.1

clean:  ## remove .venv; results stay
	rm -rf $(VENV)
