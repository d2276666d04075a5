"""A report as one page: tables and words as markdown, the same with the pictures as HTML that needs no other file.

What the curves are drawn from comes as CSV.
"""

import base64
import csv
import html
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from matplotlib import rc_context
from matplotlib.figure import Figure

from reporting import statistics
from reporting.study import Study

NONE = "-"


@dataclass
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    caption: str = ""


def tables(study: Study) -> list[Table]:
    """All that is said in numbers."""
    return [table for table in (_overall(study), _by_task(study), _improvement(study)) if table.rows]


def _overall(study: Study) -> Table:
    columns: dict[str, Callable] = {
        "interquartile mean": statistics.interquartile_mean,
        "median": statistics.median,
        "mean": statistics.mean,
    }
    if study.is_normalised:
        columns["optimality gap"] = statistics.optimality_gap
    found = study.comparable(study.common_tasks)
    rows = []
    for algorithm, scores in found.items():
        cells = [_with_interval(statistic, scores) for statistic in columns.values()]
        rows.append([algorithm, *cells, f"{sum(map(len, scores))}"])
    several = len(study.common_tasks) > 1
    over = f"all runs on {', '.join(study.common_tasks)}"
    caption = (
        f"Over {over}. Interquartile mean: without the lowest and the highest quarter of the runs. "
        + ("Median: over tasks, of their runs' mean. " if several else "")
        + ("Optimality gap: how far runs stay below the best score, less is better. " if study.is_normalised else "")
        + "In brackets: 95% intervals of the stratified bootstrap (runs are drawn anew within each task)."
    )
    return Table("All tasks" if several else "Scores", ["algorithm", *columns, "runs"], rows, caption)


def _by_task(study: Study) -> Table:
    rows = []
    for algorithm in study.algorithms:
        cells = []
        for task in study.tasks:
            scores, count = study.scores(algorithm, task), len(study.drawn(algorithm, task))
            runs = f"{len(scores)}" if len(scores) == count else f"{len(scores)} of {count} runs"
            value = _with_interval(statistics.interquartile_mean, [scores]) if len(scores) else NONE
            cells.append(f"{value} ({runs})" if count else NONE)
        rows.append([algorithm, *cells])
    named = "; ".join(f"{task}: {metric}" for task, metric in study.metrics.items())
    if len(set(study.metrics.values())) == 1:
        named = next(iter(study.metrics.values()))
    caption = f"Interquartile mean over seeds of {named}, with 95% intervals, and how many runs have a score."
    return Table("Each task", ["algorithm", *study.tasks], rows, caption)


def _improvement(study: Study) -> Table:
    found = study.comparable(study.tasks)
    rows = [
        [one, *(NONE if one == other else _chance(found[one], found[other]) for other in found)]
        for one in found
        if len(found) > 1
    ]
    caption = (
        "Probability that a run of the row's algorithm scores more than one of the column's on the same task "
        "(ties count half), mean over tasks. An interval that holds .5 says that neither was seen to be better."
    )
    return Table("Probability of improvement", ["", *found], rows, caption)


def _chance(scores, others) -> str:
    return _with_interval(statistics.probability_of_improvement, scores, others)


def _with_interval(statistic: Callable, *groups) -> str:
    value = _number(float(statistic(*groups)))
    if all(len(task) == 1 for scores in groups for task in scores):
        return value  # nothing to draw anew
    low, high = (_number(float(x)) for x in statistics.interval(statistic, *groups))
    return f"{value} [{low}, {high}]"


def _counted(count: int | str, noun: str) -> str:
    return f"{count} {noun}{'s' * (f'{count}' != '1')}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def run_table(study: Study) -> Table:
    """Every run, with a score or without."""
    rows = []
    for entry in study.entries:
        run = entry.run
        budget, cut = run.config["t_max"], run.error[:300]
        state = run.status if entry.is_scored or entry.why == run.status else f"{run.status}, {entry.why}"
        steps = f"{run.last_step:,} / {budget:,}"
        score = _number(entry.score) if entry.is_scored else NONE
        about = [entry.task, entry.algorithm, f"{entry.seed}", f"{state}: {cut}" if cut else state]
        rows.append([*about, steps, score, run.commit, run.started[:16], run.place])
    head = ["task", "algorithm", "seed", "state", "last test / t_max", "score", "commit", "started (UTC)", "record"]
    return Table("Runs", head, rows)


def as_csv(study: Study) -> str:
    """Every test of every run by its task's metric, for other programs."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["task", "algorithm", "seed", "state", "metric", "step", "value"])
    for entry in study.entries:
        metric = study.metrics[entry.task]
        for step, value in zip(*entry.run.metrics.get(metric, ((), ())), strict=True):
            about = [entry.task, entry.algorithm, entry.seed, entry.why or entry.run.status, metric]
            rows.writerow([*about, f"{step:.0f}", f"{value:.6g}"])
    return file.getvalue()


def protocol(study: Study) -> str:
    """Seeds, steps, evaluation, versions, machines: what belongs below every picture."""
    configs = [entry.run.config for entry in study.entries]
    seeds = {(e.algorithm, e.task): set() for e in study.entries}
    for entry in study.entries:
        if entry.is_scored:
            seeds[entry.algorithm, entry.task].add(entry.seed)
    counts = [len(found) for found in seeds.values()]
    tested = _span(config.get("test_nepisode", 0) for config in configs)
    every = _span(config.get("test_interval", 0) for config in configs)
    greedy = all(config.get("test_greedy", True) and not config.get("test_epsilon") for config in configs)
    score = "the last test" if study.tests == 1 else f"the mean of the last {study.tests} tests"
    commits = Counter(entry.run.commit for entry in study.entries)
    return (
        f"{_counted(_span(counts), 'seed')} per algorithm and task, "
        f"{_span(config['t_max'] for config in configs)} steps. "
        f"Tests: {tested} {'greedy ' if greedy else ''}episodes every {every} steps"
        f"{'' if greedy else ' (with exploration: see test_greedy and test_epsilon)'}; "
        f"a run's score is {score}. "
        f"Commits: {_few(commits)}. Versions: {_few(Counter(e.run.versions for e in study.entries))}. "
        f"Machines: {_few(Counter(e.run.machine for e in study.entries))}."
    )


def _span(values) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _few(found: Counter, most: int = 3) -> str:
    names = [name for name, _ in found.most_common(most)]
    return "; ".join(names) + (f" and {len(found) - most} others" if len(found) > most else "")


CAPTIONS = {
    "scores": "Statistics over all tasks and seeds. Bars: 95% intervals of the stratified bootstrap.",
    "improvement": "Probability that a run of the row's algorithm scores more than one of the column's on the same "
    "task, mean over tasks, with 95% intervals.",
    "efficiency": "Sample efficiency: interquartile mean over all tasks and seeds during training. "
    "Bands: 95% intervals of the stratified bootstrap at each point.",
    "profiles": "Performance profiles: the share of runs whose score is above τ. The higher curve is better; where "
    "curves cross, neither algorithm is. Bands: 95% intervals at each point.",
    "curves": "Each task: interquartile mean over seeds with its 95% interval, every run thin behind it. "
    "Dotted lines that end in a cross are runs without a score (failed, stopped, killed or still running).",
    "gate": "What the gate did. Above: how far it trusts the independent head (0: the cooperative one alone), every "
    "run thin, their mean thick. Below: the gaps that it reads, mean over runs; trust falls with a head's gap.",
}


def as_markdown(study: Study) -> str:
    parts = [f"# {_title(study)}", protocol(study)]
    if study.notes:
        parts += ["## To be known first", "\n".join(f"- {_plain(note)}" for note in study.notes)]
    for table in tables(study):
        head = "| " + " | ".join(table.head) + " |\n" + "|---" * len(table.head) + "|"
        rows = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in table.rows]
        parts += [f"## {table.title}", "\n".join([head, *rows]), table.caption]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _title(study: Study) -> str:
    runs, tasks = len(study.entries), len(study.tasks)
    place = study.tasks[0] if tasks == 1 else f"{tasks} tasks"
    return f"{_counted(runs, 'run')} of {_counted(len(study.algorithms), 'algorithm')} on {place}"


def as_html(study: Study, figures: dict[str, Figure], command: str) -> str:
    """A page that holds its pictures.

    Args:
        command: what was typed to make it.
    """
    say = html.escape
    about = protocol(study)
    body = [f"<h1>{say(_title(study))}</h1>", f"<p>{say(about)}</p>"]
    if study.notes:
        notes = "".join(f"<li>{say(note)}</li>" for note in study.notes)
        body.append(f'<section class="notes"><h2>To be known first</h2><ul>{notes}</ul></section>')
    for table in tables(study):
        body.append(f"<h2>{say(table.title)}</h2>{_html_table(table)}<p>{say(table.caption)}</p>")
    for name, figure in figures.items():
        data = base64.b64encode(picture(figure, "svg")).decode()
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{say(CAPTIONS[name])}">'
        body.append(f"<figure>{image}<figcaption>{say(CAPTIONS[name])} {say(about)}</figcaption></figure>")
    runs = run_table(study)
    body.append(f"<h2>{runs.title}</h2>{_html_table(runs)}")
    body.append(f"<footer>Made {datetime.now():%Y-%m-%d %H:%M} by <code>{say(command)}</code></footer>")
    return PAGE.format(title=say(_title(study)), style=STYLE, body="\n".join(body))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        f"<tr{' class=unscored' if NONE in row and table.title == 'Runs' else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in table.rows
    )
    name = table.title.lower().replace(" ", "-")
    return f'<div class="wide {name}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # the same picture, the same file
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{style}</style></head>
<body>
{body}
</body>
</html>
"""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto; width: max-content; max-width: max(100%, min(50vw + 28rem, 100vw - 3rem)) }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; white-space: nowrap;
  vertical-align: top }
th { border-bottom: 2px solid #888 }
.runs td:nth-child(4) { white-space: normal; min-width: 9rem }
.unscored td { background: #fff4e0 }
.notes { border-left: 4px solid #d55e00; padding: .1rem 1rem; background: #fff8f2 }
.notes h2 { margin-top: .6rem }
figure { margin: 2rem 0 } img { max-width: 100% }
figcaption, footer { font-size: .85rem; color: #555 }
"""
