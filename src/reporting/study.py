"""Runs grouped by algorithm and task, what each has scored, and everything that makes a comparison less than fair."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from reporting.runs import Run
from reporting.statistics import Scores
from utils.errors import UserError
from utils.titles import MAP_KEYS, map_of

# Scored by the first of these that a task's runs log; the first two are shares, 1 is the best that can be.
METRICS = ("test_battle_won_mean", "test_normalised_return_mean", "test_return_mean")
SHARES = METRICS[:2]
# Keys that say where and how a run is recorded or how long it is, not what learns.
BESIDES = {"name", "env", "seed", "t_max", "label", "repeat_id", "use_cuda", "require_cuda", "torch_threads", "resume"}
BESIDES |= {"local_results_path", "plot", "use_tensorboard", "save_model", "save_model_interval", "load_step"}
BESIDES |= {"log_interval", "runner_log_interval", "learner_log_interval", "checkpoint_interval", "keep_checkpoints"}
BESIDES |= {"max_hours", "evaluate", "save_replay", "save_dataset", "buffer_cpu_only", "on_nonfinite"}
BESIDES |= {"env_deadline", "env_crash_limit", "seeds"}
PROTOCOL = ("test_nepisode", "test_interval", "test_greedy", "test_epsilon")
BESIDES |= set(PROTOCOL)
REPEATED = "repeated later"  # why a run is not scored of which there is a newer one with the same seed
BEGUN_ANEW = "killed, begun anew"  # why not, if its process was killed and a later one with the same seed is complete
AGAIN = (REPEATED, BEGUN_ANEW)
UNEQUAL = 0.05  # budgets that differ by more than this share are called so


@dataclass(frozen=True, eq=False)
class Entry:
    """A run in its place."""

    run: Run
    algorithm: str
    task: str
    seed: int
    score: float  # not a number: the run has none
    why: str  # it has none; empty if it has

    @property
    def is_scored(self) -> bool:
        return not self.why


@dataclass
class Study:
    """What the report is about."""

    entries: list[Entry]
    metrics: dict[str, str]  # of each task
    bounds: dict[str, tuple[float, float]]  # worst and best score of the tasks where these are known
    tests: int  # the last ones, whose mean is a run's score
    notes: list[str] = field(default_factory=list)  # whatever makes the comparison less than fair

    @property
    def algorithms(self) -> list[str]:
        return sorted({entry.algorithm for entry in self.entries})

    @property
    def tasks(self) -> list[str]:
        return sorted({entry.task for entry in self.entries})

    def of(self, algorithm: str | None = None, task: str | None = None) -> list[Entry]:
        return [e for e in self.entries if algorithm in (None, e.algorithm) and task in (None, e.task)]

    def drawn(self, algorithm: str, task: str) -> list[Entry]:
        """All but those that were repeated: they would be drawn twice."""
        return [entry for entry in self.of(algorithm, task) if entry.why not in AGAIN]

    def scores(self, algorithm: str, task: str) -> np.ndarray:
        """Of the runs that have one, as they were logged."""
        return np.array([entry.score for entry in self.of(algorithm, task) if entry.is_scored])

    @property
    def is_normalised(self) -> bool:
        """Whether scores over all tasks are told with 0 the worst and 1 the best."""
        return bool(self.bounds)

    @property
    def common_tasks(self) -> list[str]:
        """The tasks over which scores are summed up: those with known bounds, or the only one there is."""
        return [t for t in self.tasks if t in self.bounds] or (self.tasks if len(self.tasks) == 1 else [])

    def normalise(self, values: np.ndarray, task: str) -> np.ndarray:
        worst, best = self.bounds.get(task, (0.0, 1.0))
        return (values - worst) / (best - worst)

    def comparable(self, tasks: list[str]) -> dict[str, Scores]:
        """The normalised scores of the algorithms that have some on each of these tasks."""
        found = {a: [self.normalise(self.scores(a, task), task) for task in tasks] for a in self.algorithms}
        return {a: scores for a, scores in found.items() if scores and all(map(len, scores))}


def assemble(
    runs: Iterable[Run],
    unreadable: list[str],
    metric: str | None = None,
    tests: int = 1,
    worst: dict[str, float] | None = None,
    best: dict[str, float] | None = None,
) -> Study:
    """Group and score runs.

    Args:
        unreadable: a line for each record that could not be read.
        metric: what all runs are scored by; None: the first of `METRICS` that the task's runs log.
        tests: how many of the last tests a score is the mean of.
        worst, best: bounds of the tasks' metrics by the task's name; "" stands for all tasks that have none.

    Raises:
        UserError: no run trains, no run has logged the metric, or a bound is of a task that is not there.
    """
    runs = list(runs)
    training = [run for run in runs if not run.config.get("evaluate")]
    if not training:
        raise UserError("there is no run that trains among these records; give the folder of a run or a sweep")
    tasks, algorithms = _name_tasks(training), None
    algorithms = _name_algorithms(training, tasks)
    metrics = {task: _metric([r for r, t in zip(training, tasks, strict=True) if t == task], metric) for task in tasks}
    if metric is not None and not any(metric in run.metrics for run in training):
        logged = sorted({name for run in training for name in run.metrics if name.startswith("test_")})
        raise UserError(f"--metric {metric}: no run has logged it; there are {', '.join(logged) or 'no tests at all'}")
    entries = [
        _score(run, algorithm, task, metrics[task], tests)
        for run, algorithm, task in zip(training, algorithms, tasks, strict=True)
    ]
    entries.sort(key=lambda e: (e.task, e.algorithm, e.seed, e.run.started, e.run.place))
    entries = _drop_repeated(entries)
    study = Study(entries, metrics, _bounds(metrics, worst or {}, best or {}), tests)
    study.notes = [*unreadable, *_evaluations(len(runs) - len(training)), *_notes(study)]
    return study


# Names


def _name_tasks(runs: list[Run]) -> list[str]:
    """A name for each run's environment: what it plays, and the arguments in which runs of the same differ."""
    arguments = [{k: v for k, v in run.config["env_args"].items() if k != "seed"} for run in runs]
    played = [f"{map_of(one) or ''}" for one in arguments]
    names = [map_name.rpartition(":")[2] or run.config["env"] for run, map_name in zip(runs, played, strict=True)]
    places = {name: {run.config["env"] for run, n in zip(runs, names, strict=True) if n == name} for name in names}
    full = [
        name if len(places[name]) == 1 else f"{run.config['env']} {name}" for run, name in zip(runs, names, strict=True)
    ]
    return _distinguish(full, [{k: v for k, v in one.items() if k not in MAP_KEYS} for one in arguments], full)


def _name_algorithms(runs: list[Run], tasks: list[str]) -> list[str]:
    """A name for what learns in each run: its config's, and the keys in which runs of the same on one task differ."""
    names = [run.config["name"] for run in runs]
    keys = [{k: v for k, v in flatten(run.config).items() if not _is_beside(k)} for run in runs]
    return _distinguish(names, keys, [f"{name} {task}" for name, task in zip(names, tasks, strict=True)])


def _is_beside(key: str) -> bool:
    return key in BESIDES or key.startswith("env_args.")


def _distinguish(names: list[str], values: list[dict[str, Any]], groups: list[str]) -> list[str]:
    """Names followed by the keys that have several values within any group of the same name.

    A key that a record of an older commit does not have yet says nothing of it.
    """
    differing: dict[str, set[str]] = {name: set() for name in names}
    for group in set(groups):
        rows = [(name, value) for name, value, g in zip(names, values, groups, strict=True) if g == group]
        for key in {key for _, value in rows for key in value}:
            if len({repr(value[key]) for _, value in rows if key in value}) > 1:
                differing[rows[0][0]].add(key)
    return [
        " ".join([name, *(f"{key}={value[key]}" for key in sorted(differing[name]) if key in value)])
        for name, value in zip(names, values, strict=True)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots."""
    found = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


# Scores


def _metric(runs: list[Run], metric: str | None) -> str:
    if metric is not None:
        return metric
    return next((name for name in METRICS if any(name in run.metrics for run in runs)), METRICS[-1])


def _score(run: Run, algorithm: str, task: str, metric: str, tests: int) -> Entry:
    values = run.metrics.get(metric, (None, np.empty(0)))[1]
    score = float(np.mean(values[-tests:])) if len(values) else np.nan
    why = ""
    if run.status != "complete":
        why = run.status
    elif not len(values):
        why = f"no {metric}"
    elif not np.isfinite(score):
        why = "not finite"
    return Entry(run, algorithm, task, run.config["seed"], np.nan if why else score, why)


def _drop_repeated(entries: list[Entry]) -> list[Entry]:
    """Of several runs with the same seed only the newest scored one counts: copies would make intervals too narrow.

    Those that were killed before it are no failures of what it ran, and not counted as such.
    """
    newest = {(e.algorithm, e.task, e.seed): e for e in entries if e.is_scored}  # sorted: the last is the newest

    def settled(e: Entry) -> Entry:
        last = newest.get((e.algorithm, e.task, e.seed), e)
        if last is e or last.run.started < e.run.started or e.why not in ("", "killed"):
            return e
        return replace(e, score=np.nan, why=REPEATED if e.is_scored else BEGUN_ANEW)

    return [settled(e) for e in entries]


def _bounds(metrics: dict[str, str], worst: dict[str, float], best: dict[str, float]) -> dict[str, tuple[float, float]]:
    for option, given in (("--worst", worst), ("--best", best)):
        if unknown := sorted(given.keys() - metrics.keys() - {""}):
            raise UserError(f"{option} {unknown[0]}=...: no such task; there are {', '.join(sorted(metrics))}")
    found = {}
    for task, metric in metrics.items():
        share = (0.0, 1.0) if metric in SHARES else (None, None)
        low = worst.get(task, share[0] if metric in SHARES else worst.get(""))
        high = best.get(task, share[1] if metric in SHARES else best.get(""))
        if low is None or high is None:
            continue
        if not low < high:
            raise UserError(f"--worst and --best: {low:g} is not below {high:g} (on {task}); give the lower one first")
        found[task] = (low, high)
    return found


# What is to be known before a number is believed


def _evaluations(count: int) -> list[str]:
    return [f"Evaluations of saved models, not training, and so left out: {_runs(count)}."] if count else []


def _notes(study: Study) -> list[str]:
    notes = []
    unscored = Counter(entry.why for entry in study.entries if not entry.is_scored)
    if killed := unscored.pop(BEGUN_ANEW, 0):
        notes.append(f"Killed, and completed by a later run with the same seed; left out: {_runs(killed)}.")
    if repeated := unscored.pop(REPEATED, 0):
        notes.append(
            f"Of several complete runs with the same seed only the newest counts; left out: {_runs(repeated)}."
        )
    if unscored:
        kinds = ", ".join(f"{count} {why}" for why, count in sorted(unscored.items()))
        notes.append(
            f"Without a score, and so in no statistic: {unscored.total()} of {_runs(len(study.entries))} ({kinds}). "
            "If they ended for what the algorithm did, its numbers flatter it."
        )
    tasks_of: dict[str, list[str]] = {}  # the tasks of which the same is to be said
    for task in study.tasks:
        for note in _notes_on(study, task):
            tasks_of.setdefault(note, []).append(task)
    every = study.tasks if len(study.tasks) > 1 else []
    notes += [f"{'every task' if tasks == every else ', '.join(tasks)}: {note}" for note, tasks in tasks_of.items()]
    lacking = [a for a in study.algorithms if a not in study.comparable(study.common_tasks)]
    if lacking and len(study.common_tasks) > 1:
        notes.append(
            f"Without a score on some task, and so left out of what is said of all tasks: {', '.join(lacking)}."
        )
    if unbounded := [task for task in study.tasks if task not in study.bounds]:
        names = ", ".join(f"{task} ({study.metrics[task]})" for task in unbounded)
        rest = "" if len(study.tasks) == 1 else ", and they are no part of what is said of all tasks"
        notes.append(f"Without --worst and --best there is no optimality gap of {names}{rest}.")
    for what, found in (
        ("commits", Counter(entry.run.commit for entry in study.entries)),
        ("versions", Counter(entry.run.versions for entry in study.entries)),
    ):
        if len(found) > 1:
            kinds = "; ".join(f"{name} ({_runs(count)})" for name, count in found.most_common(6))
            notes.append(f"Runs are of {len(found)} {what}: {kinds}{' ...' if len(found) > 6 else ''}.")
    if edited := sum(entry.run.commit.endswith("+") for entry in study.entries):
        notes.append(f"Started with files changed since their commit (marked +): {_runs(edited)}.")
    return notes


def _notes_on(study: Study, task: str) -> list[str]:
    notes, entries = [], study.of(task=task)
    seeds = {a: {e.seed for e in study.of(a, task) if e.is_scored} for a in {e.algorithm for e in entries}}
    everyone = set().union(*seeds.values())
    for algorithm, mine in sorted(seeds.items()):
        if missing := sorted(everyone - mine):
            notes.append(f"{algorithm} lacks seed{'s' * (len(missing) > 1)} {_list(missing)}, which others have.")
    if budgets := _differing(f"{entry.run.config['t_max']:,}" for entry in entries):
        notes.append(f"budgets differ, t_max is {budgets}.")
    ends = [entry.run.last_step for entry in entries if entry.is_scored]
    if ends and max(ends) > (1 + UNEQUAL) * min(ends) and not budgets:
        notes.append(f"complete runs end between step {min(ends):,} and {max(ends):,}.")
    for key in PROTOCOL:
        if values := _differing(f"{entry.run.config.get(key)}" for entry in entries):
            notes.append(f"tests differ, {key} is {values}.")
    infinite = [e for e in entries if not np.isfinite(e.run.metrics.get(study.metrics[task], ((), [0.0]))[1]).all()]
    notes += [f"{e.algorithm}, seed {e.seed}, has logged values that are not finite." for e in infinite]
    return notes


def _differing(values: Iterable[str]) -> str:
    """Values and how often each is there; empty if all are the same."""
    found = Counter(values)
    return "" if len(found) < 2 else ", ".join(f"{value} ({_runs(count)})" for value, count in sorted(found.items()))


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (" ..." if len(numbers) > 12 else "")
