"""The statistics of scores: by hand, by counting, and as rliable 1.2.0 has them."""

import itertools

import numpy as np
import pytest

from reporting import statistics

# Runs down, tasks across; what rliable.metrics gives for them stands in the test that uses them.
ONE = np.array([[0.64, 0.27, 0.04], [0.02, 0.81, 0.91], [0.61, 0.73, 0.54], [0.94, 0.82, 0.0], [0.86, 0.03, 0.73]])
OTHER = np.array([[0.28, 0.96, 0.64], [0.4, 0.52, 0.13], [0.22, 0.77, 0.75], [0.72, 0.48, 1.1], [1.08, 0.79, 0.75]])


def by_task(values) -> list[np.ndarray]:
    return list(np.transpose(values))


def test_by_hand():
    scores = [np.array([0.0, 0.2, 0.4, 1.2]), np.array([0.6, 0.8, 1.0, 1.0])]
    # The eight in order: 0, .2, | .4, .6, .8, 1, | 1, 1.2.
    assert statistics.interquartile_mean(scores) == pytest.approx(0.7)
    assert statistics.mean(scores) == pytest.approx((0.45 + 0.85) / 2)
    assert statistics.median(scores) == pytest.approx((0.45 + 0.85) / 2)
    assert statistics.median(scores[:1]) == pytest.approx(0.3)
    # What is missing to 1: 1, .8, .6, 0 and .4, .2, 0, 0.
    assert statistics.optimality_gap(scores) == pytest.approx((0.6 + 0.15) / 2)


def test_tasks_with_different_numbers_of_runs():
    scores = [np.array([0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])]
    assert statistics.mean(scores) == pytest.approx((0.5 + 0.75) / 2)  # each task counts once
    assert statistics.interquartile_mean(scores) == pytest.approx((0 + 1 + 1 + 1) / 4)
    assert statistics.optimality_gap(scores) == pytest.approx((0.5 + 0.25) / 2)


def test_as_rliable_has_it():
    scores = by_task(OTHER)
    assert statistics.interquartile_mean(scores) == pytest.approx(0.6466666666666667)
    assert statistics.mean(scores) == pytest.approx(0.6393333333333334)
    assert statistics.median(scores) == pytest.approx(0.674)
    assert statistics.optimality_gap(scores) == pytest.approx(0.3726666666666668)
    assert statistics.probability_of_improvement(by_task(ONE), scores) == pytest.approx(0.4133333333333334)


def test_probability_of_improvement_by_counting():
    rng = np.random.default_rng(1)
    scores = [rng.integers(4, size=n).astype(float) for n in (3, 5)]  # with ties
    others = [rng.integers(4, size=n).astype(float) for n in (4, 2)]
    chances = []
    for mine, theirs in zip(scores, others, strict=True):
        points = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(mine, theirs))
        chances.append(points / (len(mine) * len(theirs)))
    found = statistics.probability_of_improvement(scores, others)
    assert found == pytest.approx(np.mean(chances))
    assert statistics.probability_of_improvement(others, scores) == pytest.approx(1 - found)


def test_performance_profile():
    scores = [np.array([0.0, 0.5]), np.array([0.5, 1.0])]
    profile = statistics.performance_profile(scores, np.array([-0.1, 0.0, 0.4, 0.5, 1.0]))
    assert profile == pytest.approx([1, 0.75, 0.75, 0.25, 0])


def test_interval_by_nested_loops():
    """The same draws, one statistic after another."""
    scores = by_task(ONE)
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, size=(2000, 5)) for _ in scores]
    found = []
    for r in range(2000):
        pooled = sorted(task[row] for task, drawn in zip(scores, rows, strict=True) for row in drawn[r])
        found.append(np.mean(pooled[3:-3]))  # 15 runs: 3 are a quarter, rounded down
    low, high = statistics.interval(statistics.interquartile_mean, scores)
    assert (low, high) == pytest.approx(tuple(np.percentile(found, [2.5, 97.5])))


def test_interval_keeps_to_the_strata():
    """Runs are drawn within their tasks: where all runs of a task agree, there is nothing to be uncertain of."""
    scores = [np.zeros(4), np.ones(4)]
    assert statistics.interval(statistics.mean, scores) == (0.5, 0.5)


def test_interval_of_curves():
    """With points before runs: at each point what it is alone."""
    curves = [np.stack([ONE[:, k], OTHER[:, k]]) for k in range(3)]
    low, high = statistics.interval(statistics.interquartile_mean, curves)
    for point, values in enumerate((ONE, OTHER)):
        alone = statistics.interval(statistics.interquartile_mean, by_task(values))
        assert (low[point], high[point]) == pytest.approx(alone)


def test_interval_covers():
    """Of 200 samples of 10 runs, about 95% (the bootstrap with few runs: somewhat less) hold the mean they are of."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = statistics.interval(statistics.mean, [rng.normal(0.5, 0.1, 10)])
        held += low <= 0.5 <= high
    assert 170 <= held <= 198
