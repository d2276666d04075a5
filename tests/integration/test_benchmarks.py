"""The benchmarks' own code: a run of a sweep, and that all their variants are configurations which load."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from config.schema import load

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{BENCHMARKS}"):
            del sys.modules[name]


def nested(overrides) -> dict:
    found: dict = {}
    for dotted, value in overrides:
        *blocks, key = dotted.split(".")
        place = found
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = value
    return found


def test_a_run_of_a_sweep(module):
    jobs = module("jobs")
    small = {"t_max": 40, "test_interval": 20, "test_nepisode": 4, "rnn_hidden_dim": 8, "batch_size": 4}
    overrides = tuple(sorted({"env_args.game": "penalty", "env_args.k": -5.0, **small}.items()))
    record = jobs._run(jobs.Job("group", "method", "qmix", "matrix_games", overrides, seed=3))
    assert "error" not in record
    assert math.isfinite(jobs.last(record, "test_return_mean"))
    bad = jobs.Job("group", "method", "qmix", "matrix_games", (("env_args.game", "chess"),), seed=3)
    assert "chess" in jobs._run(bad)["error"]  # counted, not raised


def test_every_ablation_loads(module):
    ablation = module("ablation")
    for env, environment in ablation.ENVIRONMENTS.items():
        for _, config, changes in ablation.variants(list(ablation.CHOICES)):
            for task in environment.tasks.values():
                load(config, env, nested((changes | task).items()))


def test_every_question_loads(module):
    for question in module("questions")._questions().values():
        for config, changes in question.variants.values():
            load(config, question.env, nested(changes.items()))


def test_tasks_are_resampled_one_by_one(module):
    """Two tasks with runs that agree: nothing is left to chance, although the tasks differ."""
    found = module("jobs").summarise_tasks({"easy": [1.0] * 4, "hard": [0.0] * 4, "lost": [math.nan]})
    assert (found["low"], found["iqm"], found["high"]) == (0.5, 0.5, 0.5)
    assert (found["runs"], found["failed"]) == (9, 1)
    assert found["tasks"] == {"easy": 1.0, "hard": 0.0}
