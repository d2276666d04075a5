"""What is said of the scores of several runs on several tasks (Agarwal et al. 2021, Deep RL at the Edge of the
Statistical Precipice), as their package rliable computes it, but for tasks with different numbers of runs.

Scores are a list with one array per task, shape (..., runs of the task): leading dimensions are bootstrap samples.
Legend: K tasks, n_k runs of task k, R bootstrap samples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]
RESAMPLES = 2000
CONFIDENCE = 0.95


def interquartile_mean(scores: Scores) -> np.ndarray:
    """The mean without the lowest and the highest quarter of all runs of all tasks: (...)."""
    return stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


def mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of their runs' mean: (...)."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def median(scores: Scores) -> np.ndarray:
    """The median over tasks of their runs' mean; of one task, the median of its runs: (...)."""
    if len(scores) == 1:
        return np.median(scores[0], axis=-1)
    return np.median([task.mean(axis=-1) for task in scores], axis=0)


def optimality_gap(scores: Scores) -> np.ndarray:
    """By how much runs fall short of 1, the best score, in the mean over tasks: (...). More than 1 counts as 1."""
    return mean([1 - np.minimum(task, 1) for task in scores])


def probability_of_improvement(scores: Scores, others: Scores) -> np.ndarray:
    """P(X > Y) of a run X and another algorithm's run Y of a task, ties counting half, mean over tasks: (...)."""
    chances = []
    for x, y in zip(scores, others, strict=True):
        x, y = x[..., :, None], y[..., None, :]
        chances.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The share of all runs that score more than each threshold: (..., thresholds)."""
    pooled = np.concatenate(scores, axis=-1)
    return np.stack([(pooled > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def resample(scores: Scores, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Bootstrap samples, (R, ..., n_k) for each task: the tasks stay, their runs are drawn anew with replacement."""
    drawn = (rng.integers(task.shape[-1], size=(count, task.shape[-1])) for task in scores)
    return [np.moveaxis(task[..., rows], -2, 0) for task, rows in zip(scores, drawn, strict=True)]


def interval(
    statistic: Callable[..., np.ndarray], *groups: Scores, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of a statistic by the stratified bootstrap.

    Args:
        groups: what the statistic is called with; each is drawn on its own.
    """
    rng = np.random.default_rng(0)  # the same runs, the same interval
    found = statistic(*(resample(scores, rng, resamples) for scores in groups))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, [tail, 100 - tail], axis=0)
    return low, high
