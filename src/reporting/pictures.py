"""The pictures of a report. Each function draws one figure; None if there is nothing to draw.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines also differ in dashes, points in shape.
"""

from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from reporting import statistics
from reporting.runs import GATE
from reporting.study import Entry, Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
POINTS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID = 101  # points of a curve that is drawn over several runs
RESAMPLES = 500  # of the interval at each of them
LABELS = {
    "test_battle_won_mean": "test win rate",
    "test_normalised_return_mean": "normalised test return",
    "test_return_mean": "test return",
}
STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def draw_all(study: Study) -> dict[str, Figure]:
    """Every picture that these runs allow, by the name of its file."""
    drawings: dict[str, Callable[[Study], Figure | None]] = {
        "scores": draw_scores,
        "improvement": draw_improvement,
        "efficiency": draw_efficiency,
        "profiles": draw_profiles,
        "curves": draw_curves,
        "gate": draw_gate,
    }
    with plt.rc_context(STYLE):
        found = {name: draw(study) for name, draw in drawings.items()}
    plt.close("all")  # pyplot need not keep them
    return {name: figure for name, figure in found.items() if figure is not None}


def draw_scores(study: Study) -> Figure | None:
    """Statistics over all tasks, with intervals."""
    found = study.comparable(study.common_tasks)
    if not found:
        return None
    panels = {"interquartile mean": statistics.interquartile_mean, "median": statistics.median}
    panels |= {"mean": statistics.mean}
    if study.is_normalised:
        panels["optimality gap (less is better)"] = statistics.optimality_gap
    width = 1.6 + 0.06 * max(map(len, found))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width + 2.1 * len(panels), 0.9 + 0.32 * len(found)), sharey=True, layout="constrained"
    )
    for axis, (title, statistic) in zip(axes, panels.items(), strict=True):
        for row, (algorithm, scores) in enumerate(found.items()):
            low, high = statistics.interval(statistic, scores)
            colour, _, point = style(study, algorithm)
            axis.plot([low, high], [row, row], color=colour, lw=7, alpha=0.35, solid_capstyle="butt")
            axis.plot(statistic(scores), row, point, color=colour, ms=6)
        axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="y", visible=False)
    axes[0].set(yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
    figure.supxlabel(_score_label(study), fontsize=9)
    return figure


def draw_improvement(study: Study) -> Figure | None:
    """How likely a run of one algorithm (row) beats one of another (column)."""
    found = study.comparable(study.tasks)
    if len(found) < 2:
        return None
    names = list(found)
    chances = np.full((len(names), len(names)), np.nan)
    size = 1.1 * len(names) + 0.07 * max(map(len, names))
    figure, axis = plt.subplots(figsize=(size + 1.6, 0.62 * len(names) + 1.3), layout="constrained")
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if i == j:
                continue
            chances[i, j] = chance = statistics.probability_of_improvement(found[one], found[other])
            low, high = statistics.interval(statistics.probability_of_improvement, found[one], found[other])
            dark = abs(chance - 0.5) > 0.3
            text = f"{chance:.2f}\n[{low:.2f}, {high:.2f}]"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    image = axis.imshow(chances, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
    axis.set(xticks=range(len(names)), yticks=range(len(names)), yticklabels=names)
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticklabels(names, **(turned if max(map(len, names)) > 12 else {}))
    axis.set(xlabel="than a run of", ylabel="a run of ... is better")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="probability", shrink=0.9)
    return figure


def draw_efficiency(study: Study) -> Figure | None:
    """The interquartile mean over all tasks and runs on the way."""
    found = study.comparable(study.common_tasks)
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    same = len({entry.run.config["t_max"] for entry in study.of() if entry.task in study.common_tasks}) == 1
    scored = {(a, t): [e for e in study.of(a, t) if e.is_scored] for a in found for t in study.common_tasks}
    every = [e.run.metrics[study.metrics[e.task]] for entries in scored.values() for e in entries]
    span = _common_span(every) if same else (0.0, 1.0)
    for algorithm in found:
        curves = []
        for task in study.common_tasks:
            grid, values = _on_grid(study, scored[algorithm, task], span, by_share=not same)
            curves.append(study.normalise(values, task))
        _draw_band(axis, study, algorithm, grid, curves)
    if same:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel="environment steps" if same else "share of the budget", ylabel=_score_label(study, "IQM of the "))
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def draw_profiles(study: Study) -> Figure | None:
    """The share of runs that score more than a threshold."""
    found = study.comparable(study.common_tasks)
    if not found:
        return None
    pooled = np.concatenate([task for scores in found.values() for task in scores])
    low, high = (0.0, 1.0) if study.is_normalised else (pooled.min(), pooled.max())
    low, high = min(low, pooled.min()), max(high, pooled.max())
    thresholds = np.linspace(low - 0.02 * (high - low), high, GRID)
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")

    def profile(scores):
        return statistics.performance_profile(scores, thresholds)

    for algorithm, scores in found.items():
        colour, dash, _ = style(study, algorithm)
        axis.plot(thresholds, profile(scores), color=colour, ls=dash, lw=2, label=algorithm, drawstyle="steps-post")
        band = statistics.interval(profile, scores, resamples=RESAMPLES)
        axis.fill_between(thresholds, *band, color=colour, alpha=0.15, lw=0, step="post")
    axis.set(xlabel=f"{_score_label(study)} τ", ylabel="share of runs above τ", ylim=(-0.03, 1.03))
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def draw_curves(study: Study) -> Figure | None:
    """Each task: the interquartile mean over seeds, every run thin behind it, and those that did not finish."""
    columns = min(3, len(study.tasks))
    rows = -(-len(study.tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.2 * columns, 5), 3.1 * rows + 0.3), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(study.tasks) :]:
        axis.remove()
    drawn = {}
    for axis, task in zip(axes.flat, study.tasks, strict=False):
        metric = study.metrics[task]
        for algorithm in study.algorithms:
            entries = study.drawn(algorithm, task)
            colour, _, _ = style(study, algorithm)
            for entry in entries:
                steps, values = entry.run.metrics.get(metric, (np.empty(0), np.empty(0)))
                axis.plot(
                    steps, values, color=colour, lw=0.6, alpha=_faint(entries), ls="-" if entry.is_scored else ":"
                )
                if not entry.is_scored and len(steps):
                    axis.plot(steps[-1:], values[-1:], "x", color=colour, ms=7, mew=2)
            scored = [entry for entry in entries if entry.is_scored]
            if scored:
                grid, values = _on_grid(study, scored)
                drawn[algorithm] = _draw_band(axis, study, algorithm, grid, [values])
        axis.set(title=task, xlabel="environment steps", ylabel=LABELS.get(metric, metric))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        if metric == "test_battle_won_mean":
            axis.set_ylim(-0.03, 1.03)
    _legend(figure, list(drawn.values()), list(drawn))
    return figure


def draw_gate(study: Study) -> Figure | None:
    """What the gate weighed, and what it saw, on each task: the mean over scored runs, over all where none is."""
    algorithms = [a for a in study.algorithms if any(GATE[0] in e.run.metrics for e in study.of(a))]
    tasks = [t for t in study.tasks if any(GATE[0] in e.run.metrics for e in study.of(task=t))]
    if not algorithms:
        return None
    columns = min(3, len(tasks))
    rows = 2 * -(-len(tasks) // columns)
    size = (max(4.2 * columns, 5.5), 2.5 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.reshape(-1, 2, columns).swapaxes(1, 2).reshape(-1, 2)[len(tasks) :].flat:
        axis.remove()
    handles = {}
    for index, task in enumerate(tasks):
        row, column = divmod(index, columns)
        weight, gaps = axes[2 * row, column], axes[2 * row + 1, column]
        for algorithm in algorithms:
            entries = [e for e in study.drawn(algorithm, task) if GATE[0] in e.run.metrics]
            if not entries:
                continue
            colour, _, _ = style(study, algorithm)
            for entry in entries:
                weight.plot(*entry.run.metrics[GATE[0]], color=colour, lw=0.6, alpha=_faint(entries))
            entries = [entry for entry in entries if entry.is_scored] or entries  # others would cut the mean short
            steps, values = _interpolate([entry.run.metrics[GATE[0]] for entry in entries])
            (handles[algorithm],) = weight.plot(steps, values.mean(axis=1), color=colour, lw=2)
            for name, dash in (("gap_independent", "-"), ("gap_cooperative", "--")):
                known = [entry.run.metrics[name] for entry in entries if name in entry.run.metrics]
                if known:
                    steps, values = _interpolate(known)
                    gaps.plot(steps, values.mean(axis=1), color=colour, ls=dash, lw=1.8)
        weight.axhline(0.5, color="grey", lw=0.8, ls=":")
        weight.set(title=task, ylim=(-0.03, 1.03))
        gaps.set(xlabel="environment steps")
        for axis in (weight, gaps):
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        if column == 0:
            weight.set_ylabel("weight of the independent head")
            gaps.set_ylabel("gap (value above the data's)")
    heads = [Line2D([], [], color="grey", ls=dash) for dash in ("-", "--")]
    names = [*handles, "gap: independent head", "gap: cooperative head"]
    _legend(figure, [*handles.values(), *heads], names)
    return figure


def style(study: Study, algorithm: str):
    """The algorithm's colour, dashes and point in every picture."""
    index = study.algorithms.index(algorithm)
    other = index + index // len(COLOURS)  # where colours come again, dashes and points are others
    return COLOURS[index % len(COLOURS)], DASHES[other % len(DASHES)], POINTS[other % len(POINTS)]


def _faint(entries: list[Entry]) -> float:
    """How opaque the thin lines of so many runs are."""
    return min(0.4, max(0.08, 4 / len(entries)))


def _score_label(study: Study, before: str = "") -> str:
    metrics = {study.metrics[task] for task in study.common_tasks}
    if len(metrics) == 1:
        metric = metrics.pop()
        known = LABELS.get(metric, metric)
        return before + (f"normalised {known}" if study.is_normalised and metric == "test_return_mean" else known)
    return f"{before}normalised score"


def _draw_band(axis, study: Study, algorithm: str, grid: np.ndarray, curves: list[np.ndarray]):
    """The interquartile mean of curves (points, runs) of each task, and its interval; returns the line."""
    colour, dash, _ = style(study, algorithm)
    (line,) = axis.plot(grid, statistics.interquartile_mean(curves), color=colour, ls=dash, lw=2, label=algorithm)
    if max(curve.shape[1] for curve in curves) > 1:
        band = statistics.interval(statistics.interquartile_mean, curves, resamples=RESAMPLES)
        axis.fill_between(grid, *band, color=colour, alpha=0.18, lw=0)
    return line


def _on_grid(
    study: Study, entries: list[Entry], span: tuple[float, float] | None = None, by_share: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Curves of scored runs on common steps, (points, runs); steps as shares of each run's budget if so asked."""
    curves = []
    for entry in entries:
        steps, values = entry.run.metrics[study.metrics[entry.task]]
        curves.append((steps / entry.run.config["t_max"] if by_share else steps, values))
    return _interpolate(curves, span)


def _interpolate(curves, span: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Curves on a common grid, of the span or where all of them are known: points, and values (points, runs)."""
    points = GRID if span is not None else min(max(len(steps) for steps, _ in curves), GRID)
    grid = np.linspace(*(span or _common_span(curves)), points)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves], axis=-1)


def _common_span(curves) -> tuple[float, float]:
    """The first and the last step between which all curves are known."""
    first = max(steps[0] for steps, _ in curves)
    return first, max(first, min(steps[-1] for steps, _ in curves))


def _legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """Above the axes, in as many columns as there is room for."""
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
