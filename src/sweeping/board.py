"""How far a sweep is: lines and tables."""

import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence

from sweeping.attempts import SHOWN
from sweeping.plan import CUT, DONE, FAILED, RUNNING, STATES, WAITING, Plan, Run
from utils.logging import get_logger
from utils.timehelper import time_str


class Board:
    """How far a sweep is: a table that renews itself on a terminal, else a line for each thing that happens."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.log = get_logger()
        self.started = time.monotonic()
        self._terminal = sys.__stdout__ if sys.__stdout__ is not None and sys.__stdout__.isatty() else None
        self._lines = 0  # of the table that is shown

    def say(self, text: str) -> None:
        self.release()
        self.log.info("%s", text)

    def tell(self, run: Run) -> None:
        """Say what has become of a run. On a terminal the table shows it, but for what went wrong."""
        if self._terminal is None or run.state in (FAILED, CUT):
            self.say(f"{run.name}: {self._in_words(run)}")

    def draw(self) -> None:
        """Renew the table, as much of it as the terminal has room for."""
        if self._terminal is None:
            return
        columns, rows = shutil.get_terminal_size()
        lines = [self.headline(), *format_running(self.plan.runs)]
        if len(lines) > rows - 1:
            lines = [*lines[: rows - 2], f"and {len(lines) - rows + 2} more"]
        text = "".join(f"\x1b[K{line[: columns - 1]}\n" for line in lines)
        self._terminal.write(f"{self._up()}{text}\x1b[J")
        self._terminal.flush()
        self._lines = len(lines)

    def release(self) -> None:
        """Remove the table: other lines come now."""
        if self._terminal is not None and self._lines:
            self._terminal.write(f"{self._up()}\x1b[J")
            self._terminal.flush()
        self._lines = 0

    def headline(self) -> str:
        counts = {state: sum(run.state == state for run in self.plan.runs) for state in STATES}
        text = f"{self.plan.name}: {counts[DONE]} of {len(self.plan.runs)} done"
        text += "".join(f", {counts[state]} {state}" for state in STATES if state != DONE and counts[state])
        return f"{text}; {time_str(time.monotonic() - self.started)}"

    def _up(self) -> str:
        return f"\x1b[{self._lines}F" if self._lines else ""

    def _in_words(self, run: Run) -> str:
        if run.state == RUNNING:
            origin = f", goes on at step {run.step:,}" if run.step else ""
            return f"attempt {run.attempts} on {run.where}{origin}"
        if run.state == DONE:
            found = ", ".join(f"{SHOWN[key]} {run.metrics[key]:.2f}" for key in SHOWN if key in run.metrics)
            done = sum(one.state == DONE for one in self.plan.runs)
            return f"done in {time_str(run.seconds)}; {found} ({done} of {len(self.plan.runs)})"
        goes_on = f"; it can go on at step {run.step:,}" if run.step and run.state == CUT else ""
        return f"{run.state}: {run.reason}{goes_on}"


def format_columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows with their columns below each other, the first `left` of them from the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_running(runs: Sequence[Run]) -> list[str]:
    """A table of the runs that are under way; empty if there is none."""
    rows = [["run", "where", "attempt", "steps", "done", *SHOWN.values()]]
    for run in runs:
        if run.state == RUNNING:
            tests = [f"{run.metrics[key]:.2f}" if key in run.metrics else "-" for key in SHOWN]
            share = f"{100 * (run.step or 0) / run.t_max:.0f}%"
            rows.append([run.name, run.where, f"{run.attempts}", f"{run.step or 0:,}", share, *tests])
    return format_columns(rows, left=2) if len(rows) > 1 else []


def format_groups(runs: Sequence[Run]) -> str:
    """What became of the runs, by algorithm and map: mean and standard deviation over seeds; and what went wrong."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rows = [["", "runs", *(state for state in STATES if state != RUNNING), *SHOWN.values(), "time of a run"]]
    for group, members in groups.items():
        done = [run for run in members if run.state == DONE]
        counts = [sum(run.state == state for run in members) or "-" for state in STATES if state != RUNNING]
        tests = [spread([run.metrics[key] for run in done if key in run.metrics]) for key in SHOWN]
        seconds = time_str(statistics.mean(run.seconds for run in done)) if done else "-"
        rows.append([group, f"{len(members)}", *map(str, counts), *tests, seconds])
    wrong = [f"{run.name} {run.state}: {run.reason}" for run in runs if run.state in (FAILED, CUT)]
    return "\n".join([*format_columns(rows), *([""] if wrong else []), *wrong])


def spread(values: Sequence[float]) -> str:
    """1.85 (0.04): the mean, and the standard deviation if there are several."""
    if not values:
        return "-"
    deviation = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def describe(plan: Plan) -> str:
    """What a sweep would do."""
    options = plan.options
    words = {
        DONE: "complete: left alone",
        CUT: "was cut: goes on",
        FAILED: "failed before: tried again",
        WAITING: "new",
    }
    rows = [["run", "", "at step"]]
    for run in plan.runs:
        rows.append([run.name, words[run.state], f"{run.step:,}" if run.step else ""])
    todo = [run for run in plan.runs if run.state != DONE]
    share = f"{options.cpus_per_run:g} CPU(s) and {options.gpus_per_run:g} GPU(s) each"
    lines = [f"{len(plan.runs)} runs in {plan.folder}, {len(todo)} to be trained, with {share}", ""]
    lines += format_columns(rows, left=2)
    if todo:
        lines += ["", "The first: python " + shlex.join(plan.command(todo[0]))]
    return "\n".join(lines)
